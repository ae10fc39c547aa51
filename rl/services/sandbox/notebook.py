"""Runs the cells of `POST /run_jupyter` as one program (`rl.services.sandbox.notebook_driver`)."""

from __future__ import annotations

import json
from io import BytesIO
from pathlib import Path
from typing import Any

from rl.services.sandbox import notebook_driver
from rl.services.sandbox.notebook_driver import MAX_STREAM_BYTES, OUTPUTS, STREAMS
from rl.services.sandbox.outcome import RunOutcome
from rl.services.sandbox.request import NotebookRequest, RunRequest

_MAX_OUTPUTS_BYTES = 16 << 20
_DRIVER = Path(notebook_driver.__file__).read_text(encoding="utf-8")


def notebook_program(request: NotebookRequest) -> RunRequest:
    """Make the program that runs all cells."""
    arguments = json.dumps([request.cells, request.cell_timeout])
    return RunRequest(
        code=f"{_DRIVER}\n\nrun_cells(*json.loads({arguments!r}))\n",
        language="python",
        stdin=b"",
        run_timeout=request.total_timeout,
        memory_limit_mb=request.memory_limit_mb,
        files=request.files,
        fetch_files=(*request.fetch_files, OUTPUTS, *STREAMS),
        queue_timeout=request.queue_timeout,
    )


def cell_results(outcome: RunOutcome) -> list[dict[str, Any]]:
    """The results of the cells that began. The notebook's limits may have stopped the last one.

    Args:
        outcome: Outcome of `notebook_program`.

    Returns:
        `{stdout, stderr, display, error}` for each cell, as in SandboxFusion.
    """
    outputs = outcome.files.get(OUTPUTS, b"")
    results = []
    for line in BytesIO(outputs[:_MAX_OUTPUTS_BYTES]):
        if (cell := _read(line)) is None:
            break  # a cell has written to the file; the rest may be forged
        results.append(cell)
    if len(outputs) > _MAX_OUTPUTS_BYTES:
        text = f"the outputs of all cells exceed {_MAX_OUTPUTS_BYTES >> 20} MiB, from this cell on they are lost"
        error = {"ename": "OutputLimitError", "evalue": text, "traceback": []}
        results.append({"stdout": "", "stderr": "", "display": [], "error": [error]})
    if any(name in outcome.files for name in STREAMS):
        stdout, stderr = (
            outcome.files.get(name, b"")[:MAX_STREAM_BYTES].decode("utf-8", "replace") for name in STREAMS
        )
        name = "TimeoutError" if outcome.timed_out else "DeadKernelError"
        how = "time was up" if outcome.timed_out else f"interpreter ended with code {outcome.return_code}"
        error = {"ename": name, "evalue": f"the notebook's {how}", "traceback": []}
        results.append({"stdout": stdout, "stderr": stderr, "display": [], "error": [error]})
    return results


def visible_files(outcome: RunOutcome) -> dict[str, bytes]:
    """The requested files, without those of the driver."""
    return {name: content for name, content in outcome.files.items() if name not in (OUTPUTS, *STREAMS)}


def _read(line: bytes) -> dict[str, Any] | None:
    """Parse a line of the driver; None if it is malformed, because the cells can write to the file too."""
    try:
        cell = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(cell, dict) or set(cell) != {"stdout", "stderr", "display", "error"}:
        return None
    streams, shown, errors = [cell["stdout"], cell["stderr"]], cell["display"], cell["error"]
    is_right = _are_texts(streams) and isinstance(shown, list) and isinstance(errors, list)
    return cell if is_right and all(map(_is_display, shown)) and all(map(_is_error, errors)) else None


def _are_texts(values: Any) -> bool:
    return isinstance(values, list) and all(isinstance(value, str) for value in values)


def _is_display(value: Any) -> bool:
    return isinstance(value, dict) and _are_texts(list(value.values()))


def _is_error(value: Any) -> bool:
    if not isinstance(value, dict) or set(value) != {"ename", "evalue", "traceback"}:
        return False
    return _are_texts([value["ename"], value["evalue"]]) and _are_texts(value["traceback"])
