"""Captures the output of starting child processes, so that an error message can include their reason."""

from __future__ import annotations

import os
import re
import sys
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

_MAX_LINES = 2000
_ERROR_LINE = re.compile(r"\b((?:[A-Za-z_]\w*\.)*\w*(?:Error|Exception)): (.+)")
_NO_REASON = re.compile(r"initialization failed|[Ss]ee (root cause|stack trace)|background process")


@contextmanager
def tail_of_output() -> Iterator[deque[str]]:
    """Collect the last lines of stdout and stderr, including those of children started inside; output still appears.

    At the end this process writes to its own output again. The children keep the pipes until they exit.

    Yields:
        The lines so far; background threads append to it.
    """
    lines: deque[str] = deque(maxlen=_MAX_LINES)
    sys.stdout.flush()
    sys.stderr.flush()
    originals = {fd: os.dup(fd) for fd in (1, 2)}
    pumps = []
    for fd, original in originals.items():
        source, sink = os.pipe()
        os.dup2(sink, fd)
        os.close(sink)
        pump = threading.Thread(target=_pump, args=(source, original, lines), daemon=True, name="output-tail")
        pump.start()
        pumps.append(pump)
    try:
        yield lines
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for fd, original in originals.items():
            os.dup2(original, fd)
        for pump in pumps:
            pump.join(0.2)  # ends at once if no child is left


def first_error(lines: deque[str]) -> str | None:
    """Return the first exception with a reason, as `Type: reason`, or None."""
    for line in list(lines):
        match = _ERROR_LINE.search(line)
        if match and not _NO_REASON.search(match[2]):
            return f"{match[1]}: {match[2].strip()}"
    return None


def _pump(source: int, sink: int, lines: deque[str]) -> None:
    with os.fdopen(source, "rb") as stream, os.fdopen(sink, "wb", buffering=0) as out:
        for line in stream:
            out.write(line)
            lines.append(line.decode(errors="replace"))
