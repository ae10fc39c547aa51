"""A limit on concurrent calls that several processes share."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections import deque
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol

from rl.tools.base import ServiceUnavailableError

Limiter = AbstractAsyncContextManager[Any]
"""Limits concurrent calls: `async with limiter:` waits for a permit and returns it. An `asyncio.Semaphore` for one
process, a `SharedLimiter` for several, or `contextlib.nullcontext()` without a limit."""


class PermitSource(Protocol):
    """The source of permits for all processes: a `PermitPool`, usually in another process."""

    async def take(self, at_most: int, lease_s: float) -> list[int]:
        """Wait for permits; see `PermitPool.take`."""
        ...

    def give_back(self, permits: list[int]) -> None:
        """Return permits; see `PermitPool.give_back`."""
        ...


class PermitPool:
    """The permits of one tool.

    Permits have a lease, so that those of a dead process become free again. Requests are served in order.
    `SharedLimiter` makes one request per process at a time, so processes take turns.

    Args:
        limit: Permits, at least 1.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._leases: dict[int, float] = {}
        self._numbers = itertools.count(random.getrandbits(48))  # different from those of an earlier pool
        self._turn = asyncio.Lock()
        self._returned = asyncio.Event()

    async def take(self, at_most: int, lease_s: float) -> list[int]:
        """Wait until at least one permit is free.

        Args:
            at_most: Permits wanted, at least 1.
            lease_s: Seconds after which the permits expire.

        Returns:
            1 to `at_most` permits.
        """
        loop = asyncio.get_running_loop()
        async with self._turn:
            while True:
                now = loop.time()
                for number in [number for number, end in self._leases.items() if end <= now]:
                    del self._leases[number]
                free = self._limit - len(self._leases)
                if free > 0:
                    permits = list(itertools.islice(self._numbers, min(free, at_most)))
                    self._leases |= dict.fromkeys(permits, now + lease_s)
                    return permits
                self._returned.clear()
                try:
                    async with asyncio.timeout_at(min(self._leases.values())):
                        await self._returned.wait()
                except TimeoutError:
                    continue

    def give_back(self, permits: list[int]) -> None:
        """Return permits. Expired ones are ignored."""
        for number in permits:
            self._leases.pop(number, None)
        self._returned.set()


class SharedLimiter:
    """One process's access to a `PermitPool`, used like an `asyncio.Semaphore`.

    It requests as many permits as calls are waiting, one request at a time.

    Args:
        source: The pool.
        lease_s: Seconds; longer than any call holds its permit.
    """

    def __init__(self, source: PermitSource, lease_s: float) -> None:
        self._source, self._lease_s = source, lease_s
        self._waiting: deque[asyncio.Future[int]] = deque()
        self._held: deque[int] = deque()
        self._request: asyncio.Task[None] | None = None

    async def __aenter__(self) -> None:
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._waiting.append(future)
        if self._request is None or self._request.done():
            self._request = asyncio.ensure_future(self._serve())
        try:
            self._held.append(await future)
        except asyncio.CancelledError:
            if future.done() and not future.cancelled() and future.exception() is None:
                self._source.give_back([future.result()])
            raise

    async def __aexit__(self, *_: object) -> None:
        self._source.give_back([self._held.popleft()])  # the oldest lease, so that the remaining leases are the newest

    async def _serve(self) -> None:
        """Request permits until no call waits. If a request fails, all waiting calls fail."""
        while self._drop_cancelled():
            try:
                permits = deque(await self._source.take(len(self._waiting), self._lease_s))
            except Exception as error:  # communication with another process may raise anything
                while self._drop_cancelled():
                    failure = ServiceUnavailableError(f"the shared rate limit: {type(error).__name__}: {error}")
                    self._waiting.popleft().set_exception(failure)
                return
            while permits and self._drop_cancelled():
                self._waiting.popleft().set_result(permits.popleft())
            if permits:
                self._source.give_back(list(permits))

    def _drop_cancelled(self) -> bool:
        """Remove cancelled calls from the front of the queue; whether a call remains."""
        while self._waiting and self._waiting[0].done():
            self._waiting.popleft()
        return bool(self._waiting)
