"""The threads of one tool whose `execute` is a plain function.

docs/decisions/0032-own-threads.md says why they are not those of anyio.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from functools import partial
from queue import SimpleQueue
from typing import Any

from rl.errors import raise_if_quit

logger = logging.getLogger(__name__)

MAX_ABANDONED = 100
"""If this many abandoned threads of a tool still run, new calls wait until one ends."""


class ThreadPool:
    """Runs functions in threads, which are reused.

    A thread cannot be stopped. An abandoned one ends after its function, and the next call gets another thread. The
    callers limit how many run at once; the pool only enforces `MAX_ABANDONED`. The threads are daemons, so a function
    that never returns does not keep the process from exiting.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._idle: list[_Worker] = []
        self._abandoned: set[asyncio.Future[Any]] = set()
        self._one_ended = asyncio.Event()
        self.num_abandoned = 0
        """Number of threads abandoned so far."""

    @property
    def num_running_abandoned(self) -> int:
        """Abandoned threads whose function still runs."""
        return len(self._abandoned)

    async def wait_for_room(self) -> None:
        """Wait while `MAX_ABANDONED` abandoned threads are running."""
        while self.num_running_abandoned >= MAX_ABANDONED:
            self._one_ended.clear()
            await self._one_ended.wait()

    def start(self, function: Callable[[], Any]) -> asyncio.Future[Any]:
        """Run a function in a thread. Call `abandon` instead of cancelling the future."""
        worker = self._idle.pop() if self._idle else _Worker(self._name)
        future = worker.submit(function)
        future.add_done_callback(lambda _: self._end(worker, future))
        return future

    def abandon(self, future: asyncio.Future[Any]) -> None:
        """Stop waiting for a future of `start`."""
        self._abandoned.add(future)
        self.num_abandoned += 1
        logger.warning("%s: a thread was abandoned at its deadline, %d so far.", self._name, self.num_abandoned)

    def close(self) -> None:
        """End the idle threads."""
        while self._idle:
            self._idle.pop().retire()

    def _end(self, worker: _Worker, future: asyncio.Future[Any]) -> None:
        if future not in self._abandoned:
            self._idle.append(worker)
            return
        self._abandoned.remove(future)
        future.exception()  # retrieved, so that asyncio does not print it
        worker.retire()
        self._one_ended.set()


class CallerThread(ThreadPool):
    """Runs functions at once, in the thread that calls `start`: for breakpoints."""

    def start(self, function: Callable[[], Any]) -> asyncio.Future[Any]:
        """Run a function and return its ended future."""
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        _settler(future, function)()
        if (error := future.exception()) is not None:
            raise_if_quit(error)  # here, before the event loop begins the next call
        return future


class _Worker:
    def __init__(self, name: str) -> None:
        self._jobs: SimpleQueue[tuple[Callable[[], Any], asyncio.Future[Any]] | None] = SimpleQueue()
        threading.Thread(target=self._work, name=name, daemon=True).start()

    def submit(self, function: Callable[[], Any]) -> asyncio.Future[Any]:
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._jobs.put((function, future))
        return future

    def retire(self) -> None:
        self._jobs.put(None)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            function, future = job
            settle = _settler(future, function)
            loop = future.get_loop()
            try:
                loop.call_soon_threadsafe(settle)
            except RuntimeError:  # the loop is closed, so nobody waits
                return


def _settler(future: asyncio.Future[Any], function: Callable[[], Any]) -> Callable[[], None]:
    """Call a function; returns what gives its result, or what it raised, to a future."""
    try:
        return partial(future.set_result, function())
    except StopIteration as error:  # a future does not accept this exception
        return partial(future.set_exception, RuntimeError(f"StopIteration: {error}"))
    except (Exception, SystemExit) as error:  # a tool may raise anything; the caller gets it
        return partial(future.set_exception, error)
