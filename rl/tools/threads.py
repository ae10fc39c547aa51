"""The threads of one tool whose `execute` is a plain function."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any

logger = logging.getLogger(__name__)


class ThreadPool:
    """Runs functions in threads that are kept for the next ones.

    A thread cannot be stopped: when a caller is cancelled, by a deadline or with its trajectory, the thread it waits
    for is abandoned, which means that it ends after its function, and that the next call gets another. How many run at
    once is up to the callers.

    Args:
        name: Of the threads.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._idle: list[_Worker] = []
        self.num_abandoned = 0
        """Threads abandoned so far."""

    async def run(self, function: Callable[[], Any]) -> Any:
        """Run a function in a thread and return its result, or raise what it raised."""
        worker = self._idle.pop() if self._idle else _Worker(self._name)
        future = worker.submit(function)
        try:
            outcome = await future
        finally:
            if future.done() and not future.cancelled():
                self._idle.append(worker)
            else:
                worker.retire()
                self.num_abandoned += 1
                logger.warning("%s: a thread was abandoned at its deadline, %d so far.", self._name, self.num_abandoned)
        if outcome.error is not None:
            raise outcome.error
        return outcome.value

    def close(self) -> None:
        """End the idle threads; the others end after their functions."""
        while self._idle:
            self._idle.pop().retire()


@dataclass(slots=True)
class _Outcome:
    """What a function returned or raised. Not every exception can be given to a future."""

    value: Any = None
    error: BaseException | None = None


class _Worker:
    def __init__(self, name: str) -> None:
        self._jobs: SimpleQueue[tuple[Callable[[], Any], asyncio.Future[_Outcome]] | None] = SimpleQueue()
        threading.Thread(target=self._work, name=name, daemon=True).start()

    def submit(self, function: Callable[[], Any]) -> asyncio.Future[_Outcome]:
        future: asyncio.Future[_Outcome] = asyncio.get_running_loop().create_future()
        self._jobs.put((function, future))
        return future

    def retire(self) -> None:
        self._jobs.put(None)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            function, future = job
            outcome = _Outcome()
            try:
                outcome.value = function()
            except (Exception, SystemExit) as error:  # a tool may raise anything; handed to the caller
                outcome.error = error
            loop = future.get_loop()
            try:
                loop.call_soon_threadsafe(_settle, future, outcome)
            except RuntimeError:  # the loop was closed meanwhile: nobody waits any more
                return


def _settle(future: asyncio.Future[_Outcome], outcome: _Outcome) -> None:
    if not future.done():
        future.set_result(outcome)
