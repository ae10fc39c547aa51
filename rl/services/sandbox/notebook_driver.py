"""Runs the cells of a notebook and records their results. Runs in the sandbox; standard library only."""

from __future__ import annotations

import ast
import json
import linecache
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from types import FrameType
from typing import IO, Any

OUTPUTS = ".notebook_outputs.jsonl"
"""One line for each cell that ended."""
STREAMS = (".notebook_stdout", ".notebook_stderr")
"""Output of the current cell. The files remain if the notebook is stopped during a cell."""
MAX_STREAM_BYTES = 1 << 20


class CellTimeout(BaseException):
    """Raised in a cell at its time limit. `except Exception` in the cell does not catch it."""


def run_cells(cells: list[str], limit: float) -> None:
    """Run all cells. An error or a timeout ends only its cell.

    Args:
        cells: Python code.
        limit: Seconds for each cell; 0 for no limit.
    """
    scope: dict[str, Any] = {"__name__": "__main__"}
    signal.signal(signal.SIGALRM, _stop)
    real = [os.dup(1), os.dup(2)]
    with open(OUTPUTS, "w", encoding="utf-8") as outputs:
        for number, cell in enumerate(cells, start=1):
            streams = [open(name, "w+b") for name in STREAMS]  # noqa: SIM115  # closed by _read
            _redirect([stream.fileno() for stream in streams])
            display, error = _run(cell, f"cell {number}", limit, scope)
            texts = [_read(stream) for stream in streams]
            _redirect(real)
            result = {"stdout": texts[0], "stderr": texts[1], "display": display, "error": error}
            outputs.write(json.dumps(result) + "\n")
            outputs.flush()
            for name in STREAMS:
                os.remove(name)


def _stop(_: int, __: FrameType | None) -> None:
    raise CellTimeout


def _redirect(descriptors: Sequence[int]) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    for target, descriptor in enumerate(descriptors, start=1):
        os.dup2(descriptor, target)


def _read(stream: IO[bytes]) -> str:
    sys.stdout.flush()
    sys.stderr.flush()
    with stream:
        size = stream.seek(0, os.SEEK_END)
        stream.seek(0)
        text = stream.read(MAX_STREAM_BYTES).decode("utf-8", "replace")
    return text if size <= MAX_STREAM_BYTES else f"{text}\n...(output cut after {MAX_STREAM_BYTES} bytes)"


def _run(cell: str, name: str, limit: float, scope: dict[str, Any]) -> tuple[list[Any], list[Any]]:
    """Returns what the cell displays and its error, each in a list that may be empty."""
    try:
        signal.setitimer(signal.ITIMER_REAL, limit)
        return _evaluate(cell, name, scope), []
    except CellTimeout:
        text = f"the cell ran for {limit:g} s"
        return [], [{"ename": "TimeoutError", "evalue": text, "traceback": [f"TimeoutError: {text}"]}]
    except BaseException as error:  # a cell may raise anything
        trace = error.__traceback__
        while trace is not None and trace.tb_frame.f_code.co_filename == __file__:
            trace = trace.tb_next
        lines = "".join(traceback.format_exception(type(error), error, trace)).splitlines()
        return [], [{"ename": type(error).__name__, "evalue": str(error), "traceback": lines}]
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)


def _evaluate(cell: str, name: str, scope: dict[str, Any]) -> list[dict[str, str]]:
    """Run the statements. Displays the value of a last expression, as text and, if it supports that, as HTML."""
    linecache.cache[name] = (len(cell), None, cell.splitlines(keepends=True), name)  # tracebacks quote lines from here
    tree = ast.parse(cell, name)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, name, "exec", dont_inherit=True), scope)
    if not isinstance(last, ast.Expr):
        return []
    value = eval(compile(ast.Expression(last.value), name, "eval", dont_inherit=True), scope)
    if value is None:
        return []
    shown = {"text/plain": repr(value)[:MAX_STREAM_BYTES]}
    if hasattr(value, "_repr_html_") and not isinstance(value, type):
        shown["text/html"] = str(value._repr_html_())[:MAX_STREAM_BYTES]
    return [shown]
