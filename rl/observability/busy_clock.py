"""How long something was at work at all, when its tasks overlap."""

from __future__ import annotations

import time
from types import TracebackType


class BusyClock:
    """Seconds in which at least one of several overlapping blocks was being run; of one event loop.

    Example: blocks from 0 to 3 s and from 2 to 5 s, and one from 8 to 9 s, make 6 s.
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
        """Begin anew.

        Returns:
            The busy seconds until now.
        """
        self._count()
        busy_s, self._busy_s = self._busy_s, 0.0
        return busy_s

    def _count(self) -> None:
        now = time.monotonic()
        if self._num_open:
            self._busy_s += now - self._since
        self._since = now
