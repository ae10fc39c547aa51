"""Measures busy time across overlapping tasks."""

from __future__ import annotations

import time
from types import TracebackType


class BusyClock:
    """Measures the time in which at least one `with` block is open, in one event loop.

    Example: blocks from 0 to 3 s, from 2 to 5 s and from 8 to 9 s give 6 s.
    """

    def __init__(self) -> None:
        self._num_open = 0
        self._busy_s = 0.0
        self._since = time.monotonic()

    def __enter__(self) -> BusyClock:
        self._count()
        self._num_open += 1
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._count()
        self._num_open -= 1

    def restart(self) -> float:
        """Reset the clock and return the busy seconds so far."""
        self._count()
        busy_s, self._busy_s = self._busy_s, 0.0
        return busy_s

    def _count(self) -> None:
        now = time.monotonic()
        if self._num_open:
            self._busy_s += now - self._since
        self._since = now
