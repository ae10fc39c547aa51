"""A circuit breaker: holds back calls to a service that is down, and detects when it is back."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress

from rl.tools.base import ServiceUnavailableError

logger = logging.getLogger(__name__)

_FAILURES_TO_OPEN = 5
_FIRST_PAUSE_S = 0.25
_LONGEST_PAUSE_S = 5.0


class CircuitBreaker:
    """Guards the attempts to reach one tool's service.

    It opens after five failures in a row. While it is open attempts wait, except for one probe at a time: after a
    quarter of a second, and after each failed probe twice as long, at most 5 s. The first answer closes it and lets all
    attempts continue. They wait instead of failing so that trajectories survive a restart of the service. The calls'
    own deadlines end the wait.

    Each process has its own breaker for a tool, unlike the rate limit. A limit is a promise to the service, which needs
    a common count. Whether the service answers is an observation and may differ between machines: one whose network is
    down must not hold back the others. It costs a process five failed attempts and then at most a probe every 5 s. A
    common breaker would need a request to another process for every call, and stall when that process dies.

    Args:
        name: Name of the tool, for the log.

    Source: Nygard, Release It!, "Circuit Breaker".
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._num_failures = 0
        self._opened_at = 0.0
        self._pause_s = 0.0
        self._next_probe_at: float | None = None
        self._is_probing = False
        self._changed = asyncio.Event()
        self.failure: ServiceUnavailableError | None = None
        """The reason why it is open; None while it is closed."""

    @property
    def is_open(self) -> bool:
        """Whether attempts wait."""
        return self._next_probe_at is not None

    def guard(self) -> _Guard:
        """A context that waits until an attempt may start, and judges the service by how the block ends.

        `ServiceUnavailableError` is a failure of the service. A timeout or a cancellation says nothing about it.
        Everything else, including the tool's own errors, is an answer.
        """
        return _Guard(self)

    async def admit(self) -> bool:
        """Wait while the breaker is open; True if the attempt is the probe."""
        loop = asyncio.get_running_loop()
        while self._next_probe_at is not None:
            if not self._is_probing and loop.time() >= self._next_probe_at:
                self._is_probing = True
                return True
            changed = self._changed
            with suppress(TimeoutError):
                async with asyncio.timeout_at(None if self._is_probing else self._next_probe_at):
                    await changed.wait()
        return False

    def judge(self, error: BaseException | None, *, is_probe: bool) -> None:
        """Record how an attempt ended.

        Args:
            error: What it raised, if anything.
            is_probe: What `admit` returned.
        """
        if isinstance(error, ServiceUnavailableError):
            self._note_failure(error, is_probe=is_probe)
        elif not isinstance(error, asyncio.CancelledError | TimeoutError):
            self._note_answer()
        elif is_probe:
            self._end_probe()

    def _note_failure(self, error: ServiceUnavailableError, *, is_probe: bool) -> None:
        now = asyncio.get_running_loop().time()
        if self.is_open:
            self.failure = error
        if is_probe and self.is_open:
            self._pause_s = min(2 * self._pause_s, _LONGEST_PAUSE_S)
            self._next_probe_at = now + self._pause_s
            self._end_probe()
            return
        self._num_failures += 1
        if self._num_failures >= _FAILURES_TO_OPEN and not self.is_open:
            self._opened_at, self._pause_s, self.failure = now, _FIRST_PAUSE_S, error
            self._next_probe_at = now + self._pause_s
            logger.warning("tool '%s': %s. Calls wait until its service answers.", self._name, error)

    def _note_answer(self) -> None:
        self._num_failures = 0
        if self.is_open:
            lasted = asyncio.get_running_loop().time() - self._opened_at
            logger.warning("tool '%s': its service answers again, after %.1f s.", self._name, lasted)
            self._next_probe_at = self.failure = None
            self._end_probe()

    def _end_probe(self) -> None:
        """Wake the waiting attempts to check the new state."""
        self._is_probing = False
        self._changed.set()
        self._changed = asyncio.Event()


class _Guard:
    """See `CircuitBreaker.guard`. `contextlib.asynccontextmanager` would be several times slower."""

    __slots__ = ("_breaker", "_is_probe")

    def __init__(self, breaker: CircuitBreaker) -> None:
        self._breaker = breaker

    async def __aenter__(self) -> None:
        self._is_probe = await self._breaker.admit()

    async def __aexit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        self._breaker.judge(error, is_probe=self._is_probe)
