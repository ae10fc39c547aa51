"""`POST /run_jupyter`: the cells of a notebook as one program for the pool (`rl.services.notebook_driver`)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rl.services import notebook_driver
from rl.services.notebook_driver import MAX_STREAM_BYTES, OUTPUTS, STREAMS
from rl.services.sandbox_outcome import RunOutcome
from rl.services.sandbox_request import NotebookRequest, RunRequest

_DRIVER = Path(notebook_driver.__file__).read_text(encoding="utf-8")


def notebook_program(request: NotebookRequest) -> RunRequest:
    """The one program that runs all cells.

    Args:
        request: Checked.

    Returns:
        What the pool shall run.
    """
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
    """What each cell wrote and showed; the last one may have been stopped by the notebook's own limits.

    Args:
        outcome: Of `notebook_program`.

    Returns:
        SandboxFusion's form, one for each cell that began: `{stdout, stderr, display, error}`.
    """
    results = [cell for line in outcome.files.get(OUTPUTS, b"").splitlines() if (cell := _read(line)) is not None]
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
    """The files that the request asked for, without those of the driver."""
    return {name: content for name, content in outcome.files.items() if name not in (OUTPUTS, *STREAMS)}


def _read(line: bytes) -> dict[str, Any] | None:
    """A line of the driver, or None for something else: the cells can write to that file too."""
    try:
        cell = json.loads(line)
    except (ValueError, RecursionError):
        return None
    keys = {"stdout", "stderr", "display", "error"}
    return cell if isinstance(cell, dict) and set(cell) == keys else None
