"""Deadlines on an event loop that user code may hold up: the time in which it stood still is charged to nobody else."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from types import TracebackType

logger = logging.getLogger(__name__)

STALL_S = 0.25
"""Seconds in which one piece of code holds the event loop up before it counts."""
_BEAT_S = 0.25
_PRECISION_S = 0.002
"""Timers of some event loops count milliseconds."""


class LoopClock:
    """The time of the running event loop, without the stretches in which it stood still.

    A coroutine that computes or sleeps and does not await holds up every other one on its loop: their answers may be
    there, but their deadlines pass before they are looked at. Whoever measures such a stretch says so (`lose`); the
    others show in a timer that fires late.
    """

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self.lost_s = 0.0
        """Seconds left out so far."""
        self._next_beat_at = 0.0
        self._beat: asyncio.TimerHandle | None = None
        self._num_open = 0
        self._open: Counter[str] = Counter()
        self._has_warned = False

    def time(self) -> float:
        """Seconds, from an arbitrary beginning."""
        now = asyncio.get_running_loop().time()
        return now - self.lost_s - self._unmeasured(now)

    def lose(self, seconds: float) -> None:
        """Leave out a stretch that has just ended."""
        self.lost_s += seconds
        self._next_beat_at += seconds

    def open(self, name: str) -> None:
        """Begin to look for stretches, because a deadline of this tool is running."""
        if not self._num_open:
            self._start_beating()
        self._num_open += 1
        self._open[name] += 1

    def close(self, name: str) -> None:
        """The deadline of this tool runs no more."""
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
            self.lose(unmeasured)
            self._warn(unmeasured)
        self._next_beat_at = self._loop.time() + _BEAT_S
        self._beat = self._loop.call_at(self._next_beat_at, self._note_beat)

    def _unmeasured(self, now: float) -> float:
        """By how much the next beat is late, where the loop runs deadlines and stood still."""
        late = now - self._next_beat_at
        return late if late > STALL_S and self._num_open else 0.0

    def _warn(self, seconds: float) -> None:
        if self._has_warned:
            return
        self._has_warned = True
        names = ", ".join(f"'{name}'" for name, number in sorted(self._open.items()) if number)
        logger.warning(
            "the event loop stood still for %.1f s while calls of %s were running, and in no coroutine of theirs: a "
            "callback of a tool, or another part of this process. Told once.",
            *(seconds, names),
        )


class Deadline:
    """`asyncio.timeout_at` by a `LoopClock`.

    Args:
        clock: Of the event loop.
        name: Of the tool whose deadline this is.
        when: The deadline by the clock.
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
        """Whether it would end its block at the next look."""
        return self._clock.time() > self._when

    def move(self, when: float) -> None:
        """Set another deadline; within the block."""
        self._when = when
        self._stop_timer()
        self._start_timer()

    def advance(self, seconds: float) -> None:
        """Let it pass earlier, if its block has not ended."""
        if self._is_open:
            self.move(self._when - seconds)

    def _start_timer(self) -> None:
        self._timer = asyncio.get_running_loop().call_at(self._when + self._clock.lost_s, self._look)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _look(self) -> None:
        if self._when - self._clock.time() > _PRECISION_S:
            self._start_timer()
        else:
            self._timeout.reschedule(asyncio.get_running_loop().time())
