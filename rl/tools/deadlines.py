"""Deadlines that do not count the time in which other code blocked the event loop."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from types import TracebackType

logger = logging.getLogger(__name__)

STALL_S = 0.25
"""Shortest blocking of the event loop that counts as a stall."""
_BEAT_S = 0.25
_PRECISION_S = 0.002
"""The timers of some event loops have a resolution of a millisecond."""


class LoopClock:
    """The time of the running event loop, without its stalls.

    A coroutine that computes or sleeps without an await blocks all others on its loop: their answers may have arrived,
    but their deadlines pass before they can read them. `exclude` reports a measured stall. A timer that fires late
    reveals the others.
    """

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self.excluded_s = 0.0
        """Seconds of all stalls so far."""
        self._next_beat_at = 0.0
        self._beat: asyncio.TimerHandle | None = None
        self._num_open = 0
        self._open: Counter[str] = Counter()
        self._has_warned = False

    def time(self) -> float:
        """Seconds since an arbitrary time."""
        now = asyncio.get_running_loop().time()
        return now - self.excluded_s - self._unmeasured(now)

    def expect_stalls(self) -> None:
        """Do not warn of stalls: someone stands at a breakpoint."""
        self._has_warned = True

    def exclude(self, seconds: float) -> None:
        """Exclude a stall that has just ended."""
        self.excluded_s += seconds
        self._next_beat_at += seconds

    def open(self, name: str) -> None:
        """Start the detection of stalls, because a deadline of this tool is running."""
        if not self._num_open:
            self._start_beating()
        self._num_open += 1
        self._open[name] += 1

    def close(self, name: str) -> None:
        """End a deadline of this tool."""
        self._num_open -= 1
        self._open[name] -= 1

    def _start_beating(self) -> None:
        if self._beat is not None:
            self._beat.cancel()
        self._loop = asyncio.get_running_loop()
        self._next_beat_at = self._loop.time() + _BEAT_S
        self._beat = self._loop.call_at(self._next_beat_at, self._note_beat)

    def _note_beat(self) -> None:
        if not self._num_open:
            return
        assert self._loop is not None, "set before the first beat"
        unmeasured = self._unmeasured(self._loop.time())
        if unmeasured:
            self.exclude(unmeasured)
            self._warn(unmeasured)
        self._next_beat_at = self._loop.time() + _BEAT_S
        self._beat = self._loop.call_at(self._next_beat_at, self._note_beat)

    def _unmeasured(self, now: float) -> float:
        """Seconds by which the next beat is late, if deadlines are running and the loop stalled."""
        late = now - self._next_beat_at
        return late if late > STALL_S and self._num_open else 0.0

    def _warn(self, seconds: float) -> None:
        if self._has_warned:
            return
        self._has_warned = True
        names = ", ".join(f"'{name}'" for name, number in sorted(self._open.items()) if number)
        logger.warning(
            "the event loop was blocked for %.1f s while calls of %s were running, but not by their coroutines. A "
            "callback of a tool or another part of this process blocks it. This warning appears once.",
            *(seconds, names),
        )


class Deadline:
    """`asyncio.timeout_at` with the time of a `LoopClock`.

    Args:
        clock: Clock of the event loop.
        name: Name of the tool.
        when: The deadline on that clock.
    """

    __slots__ = ("_clock", "_is_open", "_name", "_timeout", "_timer", "_when")

    def __init__(self, clock: LoopClock, name: str, when: float) -> None:
        self._clock, self._name, self._when = clock, name, when
        self._timeout = asyncio.timeout(None)
        self._timer: asyncio.TimerHandle | None = None
        self._is_open = False

    async def __aenter__(self) -> Deadline:
        self._clock.open(self._name)
        await self._timeout.__aenter__()
        self._is_open = True
        self._start_timer()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stop_timer()
        self._is_open = False
        self._clock.close(self._name)
        await self._timeout.__aexit__(kind, error, traceback)

    def expired(self) -> bool:
        """Whether it has ended its block."""
        return self._timeout.expired()

    def has_passed(self) -> bool:
        """Whether its time has passed, even if the event loop has not noticed yet."""
        return self._clock.time() > self._when

    def move(self, when: float) -> None:
        """Change the deadline, within the block."""
        self._when = when
        self._stop_timer()
        self._start_timer()

    def advance(self, seconds: float) -> None:
        """Move the deadline forward, if its block has not ended."""
        if self._is_open:
            self.move(self._when - seconds)

    def _start_timer(self) -> None:
        self._timer = asyncio.get_running_loop().call_at(self._when + self._clock.excluded_s, self._check)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _check(self) -> None:
        if self._when - self._clock.time() > _PRECISION_S:
            self._start_timer()
        else:
            self._timeout.reschedule(asyncio.get_running_loop().time())
