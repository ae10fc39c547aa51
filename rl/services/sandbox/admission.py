"""Who may run next: a bounded queue that takes turns between callers and tells each request before its time is up."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import ClassVar


class RefusedError(Exception):
    """A request was not let in; the text says why. Nothing of it has run."""

    http_status: ClassVar[int] = 503


class QueueFullError(RefusedError):
    """As many requests wait as may."""


class QueueTimeoutError(RefusedError):
    """The request waited as long as its caller is ready to."""

    http_status = 504


class ClosedError(RefusedError):
    """The server is stopping."""


class Turn:
    """A request that was let in. It computes until it says that it waits."""

    def __init__(self, admission: Admission, waited_s: float) -> None:
        self._admission = admission
        self.waited_s = waited_s
        """Seconds in the queue."""
        self.is_waiting = False

    def set_waiting(self, is_waiting: bool) -> None:
        """Give the slot to another request while this one waits for something; take it back when it goes on.

        Args:
            is_waiting: Whether it waits now.
        """
        if is_waiting is not self.is_waiting:
            self.is_waiting = is_waiting
            self._admission._lend(1 if is_waiting else -1)


class Admission:
    """Lets `num_slots` requests compute at once, beside some that wait for something; further ones queue.

    A request that sleeps or waits for input needs no slot, and one that goes on is not held up again. No caller takes
    the places of all: as many as there are slots are left to others.

    Callers take turns: each gets one request through before any gets its next, so one that sends thousands delays
    another by a program of its own and not by thousands. When the queue is full, the newest request of the caller with
    the longest queue makes room for a caller with a shorter one.

    Source: turns between sources, Nagle, RFC 970 (1985); the longest queue pays, McKenney, Stochastic Fairness
    Queueing (1990).
    """

    def __init__(self, num_slots: int, max_queue: int, num_places: int = 0) -> None:
        """Let nothing in yet.

        Args:
            num_slots: Requests that compute at once, at least 1.
            max_queue: Requests that may queue.
            num_places: Requests at once, those that wait for something included; not fewer than `num_slots`.
        """
        self._num_free = num_slots
        """Slots; below 0 where more go on than there are."""
        self._num_places = max(num_slots, num_places)
        self._most_of_one = max(num_slots, self._num_places - num_slots)
        self._max_queue = max_queue
        self._queues: dict[str, dict[asyncio.Future[None], None]] = {}
        """The queueing requests of each caller, oldest first; the caller whose turn is next stands first."""
        self._running: Counter[str] = Counter()
        """Requests of each caller that were let in and have not ended."""
        self._idle = asyncio.Event()
        self._idle.set()
        self.num_running = 0
        """Requests that were let in and have not ended."""
        self.num_waiting = 0
        """Requests in the queue."""
        self.is_closed = False

    @asynccontextmanager
    async def admit(self, caller: str, timeout: float) -> AsyncIterator[Turn]:
        """Wait for a slot and hold it.

        Args:
            caller: Whose turn this takes.
            timeout: Longest wait, seconds.

        Yields:
            The turn, which says how long it waited.

        Raises:
            QueueFullError: At once, or when a caller with fewer requests needed the place.
            QueueTimeoutError: After `timeout`.
            ClosedError: The server is stopping.
        """
        start = time.monotonic()
        await self._enter(caller, timeout)
        turn = Turn(self, time.monotonic() - start)
        try:
            yield turn
        finally:
            turn.set_waiting(False)
            self._leave(caller)

    def close(self) -> None:
        """Refuse what waits and what comes; what runs goes on."""
        self.is_closed = True
        for queue in self._queues.values():
            for waiter in queue:
                if not waiter.done():
                    waiter.set_exception(ClosedError("the sandbox is stopping; the program was not run"))

    async def wait_idle(self, timeout: float) -> bool:
        """Wait until nothing runs.

        Args:
            timeout: Longest wait, seconds.

        Returns:
            Whether nothing runs.
        """
        try:
            await asyncio.wait_for(self._idle.wait(), timeout)
        except TimeoutError:
            return False
        return True

    async def _enter(self, caller: str, timeout: float) -> None:
        if self.is_closed:
            raise ClosedError("the sandbox is stopping; the program was not run")
        if self._has_place(caller):  # then nobody waits who could be let in
            self._take(caller)
            return
        if self.num_waiting >= self._max_queue:
            self._make_room(caller)
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[None] = loop.create_future()
        self._queues.setdefault(caller, {})[waiter] = None
        self.num_waiting += 1
        timer = loop.call_later(timeout, _expire, waiter, timeout)
        try:
            await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                self._leave(caller)  # the slot came in the same moment as the end
            raise
        finally:
            timer.cancel()
            self._forget(caller, waiter)

    def _make_room(self, caller: str) -> None:
        """Turn away the newest request of whoever has the most, unless that is this caller."""
        longest = max(self._queues, key=lambda name: len(self._queues[name]), default=caller)
        text = f"{self._max_queue} programs are waiting already"
        if len(self._queues.get(longest, {})) <= len(self._queues.get(caller, {})) + 1:
            raise QueueFullError(text)
        newest = next(reversed(self._queues[longest]))
        self._forget(longest, newest)
        if not newest.done():
            newest.set_exception(QueueFullError(f"{text}, most of them of this caller"))

    def _forget(self, caller: str, waiter: asyncio.Future[None]) -> None:
        queue = self._queues.get(caller)
        if queue is not None and waiter in queue:
            del queue[waiter]
            self.num_waiting -= 1
            if not queue:
                del self._queues[caller]

    def _has_place(self, caller: str) -> bool:
        is_room = self._num_free > 0 and self.num_running < self._num_places
        return is_room and self._running[caller] < self._most_of_one

    def _take(self, caller: str) -> None:
        self._num_free -= 1
        self.num_running += 1
        self._running[caller] += 1
        self._idle.clear()

    def _leave(self, caller: str) -> None:
        self.num_running -= 1
        self._running[caller] -= 1
        if not self._running[caller]:
            del self._running[caller]
        self._lend(1)
        if not self.num_running:
            self._idle.set()

    def _lend(self, num_slots: int) -> None:
        """Add slots, and let in whoever has a place now."""
        self._num_free += num_slots
        while (caller := next(filter(self._has_place, self._queues), None)) is not None:
            queue = self._queues.pop(caller)
            waiter = next(iter(queue))
            del queue[waiter]
            self.num_waiting -= 1
            if queue:
                self._queues[caller] = queue  # now the last in turn
            if not waiter.done():
                waiter.set_result(None)
                self._take(caller)


def _expire(waiter: asyncio.Future[None], timeout: float) -> None:
    if not waiter.done():
        waiter.set_exception(QueueTimeoutError(f"no worker was free within {timeout:g} s; the program was not run"))
