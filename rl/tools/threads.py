"""The threads of one tool whose `execute` is a plain function."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from functools import partial
from queue import SimpleQueue
from typing import Any

logger = logging.getLogger(__name__)

MAX_ABANDONED = 100
"""Abandoned threads of one tool that may still run before new calls wait for one of them to end."""


class ThreadPool:
    """Runs functions in threads that are kept for the next ones.

    A thread cannot be stopped. One that nobody waits for any more is abandoned, which means that it ends after its
    function, and that the next call gets another. How many run at once is up to the callers, but for `MAX_ABANDONED`.

    Args:
        name: Of the threads.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._idle: list[_Worker] = []
        self._left: set[asyncio.Future[Any]] = set()
        self._one_ended = asyncio.Event()
        self.num_abandoned = 0
        """Threads abandoned so far."""

    @property
    def num_left(self) -> int:
        """Abandoned threads whose function still runs."""
        return len(self._left)

    async def wait_for_room(self) -> None:
        """Wait while so many abandoned threads run that no further one may start."""
        while self.num_left >= MAX_ABANDONED:
            self._one_ended.clear()
            await self._one_ended.wait()

    def start(self, function: Callable[[], Any]) -> asyncio.Future[Any]:
        """Run a function in a thread.

        Returns:
            What it returns or raises. Not to be cancelled: `abandon` it.
        """
        worker = self._idle.pop() if self._idle else _Worker(self._name)
        future = worker.submit(function)
        future.add_done_callback(lambda _: self._end(worker, future))
        return future

    def abandon(self, future: asyncio.Future[Any]) -> None:
        """Wait no longer for what `start` returned."""
        self._left.add(future)
        self.num_abandoned += 1
        logger.warning("%s: a thread was abandoned at its deadline, %d so far.", self._name, self.num_abandoned)

    def close(self) -> None:
        """End the idle threads; the others end after their functions."""
        while self._idle:
            self._idle.pop().retire()

    def _end(self, worker: _Worker, future: asyncio.Future[Any]) -> None:
        if future not in self._left:
            self._idle.append(worker)
            return
        self._left.remove(future)
        future.exception()  # looked at, so that asyncio does not print it
        worker.retire()
        self._one_ended.set()


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
            settle: Callable[[], None]
            try:
                settle = partial(future.set_result, function())
            except StopIteration as error:  # the one exception that futures refuse
                settle = partial(future.set_exception, RuntimeError(f"StopIteration: {error}"))
            except (Exception, SystemExit) as error:  # a tool may raise anything; handed to the caller
                settle = partial(future.set_exception, error)
            loop = future.get_loop()
            try:
                loop.call_soon_threadsafe(settle)
            except RuntimeError:  # the loop was closed meanwhile: nobody waits any more
                return
