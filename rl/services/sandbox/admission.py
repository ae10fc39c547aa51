"""Decides which request runs next: a bounded, fair queue between callers, in which requests time out."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import ClassVar


class RefusedError(Exception):
    """A request was not admitted, and nothing has run; the text gives the reason."""

    http_status: ClassVar[int] = 503


class QueueFullError(RefusedError):
    """The queue is full."""


class QueueTimeoutError(RefusedError):
    """The request reached its time limit in the queue."""

    http_status = 504


class ClosedError(RefusedError):
    """The server is stopping."""


class Turn:
    """An admitted request. It computes until it reports that it waits."""

    def __init__(self, admission: Admission, waited_s: float) -> None:
        self._admission = admission
        self.waited_s = waited_s
        """Seconds in the queue."""
        self.is_waiting = False

    def set_waiting(self, is_waiting: bool) -> None:
        """Give the slot to another request while this one waits for something; take it back when it continues."""
        if is_waiting is not self.is_waiting:
            self.is_waiting = is_waiting
            self._admission._add_slots(1 if is_waiting else -1)


class Admission:
    """Admits `num_slots` requests that compute, plus some that wait for something. Further requests queue.

    A request that sleeps or waits for input needs no slot, and is not delayed when it continues. One caller cannot take
    all places: `num_slots` of them are reserved for others.

    Callers take turns, one request each, so a caller that sends thousands delays another by one program and not by
    thousands. When the queue is full, the newest request of the caller with the longest queue is refused in favor of a
    caller with a shorter queue.

    Source: turns between sources, Nagle, RFC 970 (1985); the longest queue pays, McKenney, Stochastic Fairness
    Queueing (1990).
    """

    def __init__(self, num_slots: int, max_queue: int, num_places: int = 0) -> None:
        """Set the limits.

        Args:
            num_slots: Requests that compute at once, at least 1.
            max_queue: Requests in the queue.
            num_places: Admitted requests, including those that wait for something; at least `num_slots`.
        """
        self._num_free = num_slots
        """Free slots; negative while more requests compute, because some that waited have continued."""
        self._num_places = max(num_slots, num_places)
        self._most_of_one = max(num_slots, self._num_places - num_slots)
        self._max_queue = max_queue
        self._queues: dict[str, dict[asyncio.Future[None], None]] = {}
        """Queued requests of each caller, oldest first. The caller whose turn is next comes first."""
        self._running: Counter[str] = Counter()
        """Admitted requests of each caller that have not ended."""
        self._idle = asyncio.Event()
        self._idle.set()
        self.num_running = 0
        """Admitted requests that have not ended."""
        self.num_waiting = 0
        """Requests in the queue."""
        self.is_closed = False

    @asynccontextmanager
    async def admit(self, caller: str, timeout: float) -> AsyncIterator[Turn]:
        """Wait for a slot and hold it.

        Args:
            caller: Name of the caller.
            timeout: Longest wait, seconds.

        Raises:
            QueueFullError: The queue is full, or a caller with fewer requests needed the place.
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
            self._release(caller)

    def close(self) -> None:
        """Refuse queued and new requests. Running ones continue."""
        self.is_closed = True
        for queue in self._queues.values():
            for waiter in queue:
                if not waiter.done():
                    waiter.set_exception(ClosedError("the sandbox is stopping; the program was not run"))

    async def wait_idle(self, timeout: float) -> bool:
        """Wait up to `timeout` seconds until nothing runs; whether nothing runs."""
        try:
            await asyncio.wait_for(self._idle.wait(), timeout)
        except TimeoutError:
            return False
        return True

    async def _enter(self, caller: str, timeout: float) -> None:
        if self.is_closed:
            raise ClosedError("the sandbox is stopping; the program was not run")
        if self._has_place(caller):  # then no queued request could be admitted
            self._acquire(caller)
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
                self._release(caller)  # the slot came at the same time as the cancellation
            raise
        finally:
            timer.cancel()
            self._forget(caller, waiter)

    def _make_room(self, caller: str) -> None:
        """Refuse the newest request of the caller with the most, unless that is this caller."""
        longest = max(self._queues, key=lambda name: len(self._queues[name]), default=caller)
        text = f"{self._max_queue} programs are already waiting"
        if len(self._queues.get(longest, {})) <= len(self._queues.get(caller, {})) + 1:
            raise QueueFullError(text)
        newest = next(reversed(self._queues[longest]))
        self._forget(longest, newest)
        if not newest.done():
            newest.set_exception(QueueFullError(f"{text}, most of them from this caller"))

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

    def _acquire(self, caller: str) -> None:
        self._num_free -= 1
        self.num_running += 1
        self._running[caller] += 1
        self._idle.clear()

    def _release(self, caller: str) -> None:
        self.num_running -= 1
        self._running[caller] -= 1
        if not self._running[caller]:
            del self._running[caller]
        self._add_slots(1)
        if not self.num_running:
            self._idle.set()

    def _add_slots(self, num_slots: int) -> None:
        """Add free slots, and admit requests from the queue."""
        self._num_free += num_slots
        while (caller := next(filter(self._has_place, self._queues), None)) is not None:
            queue = self._queues.pop(caller)
            waiter = next(iter(queue))
            del queue[waiter]
            self.num_waiting -= 1
            if queue:
                self._queues[caller] = queue  # the caller is last in turn now
            if not waiter.done():
                waiter.set_result(None)
                self._acquire(caller)


def _expire(waiter: asyncio.Future[None], timeout: float) -> None:
    if not waiter.done():
        waiter.set_exception(QueueTimeoutError(f"no worker was free within {timeout:g} s; the program was not run"))
