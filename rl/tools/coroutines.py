"""Runs user coroutines: measures how long they block the event loop, and ends those that ignore a cancellation."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Generator
from typing import Any

from rl.tools.deadlines import STALL_S

logger = logging.getLogger(__name__)

_CANCEL_GRACE_S = 1.0
_CLEAN_UP_S = 30.0
"""Time for a cancelled coroutine to release its resources, before it is closed."""


def start(coroutine: Coroutine[Any, Any, Any], note_stall: Callable[[float], None]) -> asyncio.Task[Any]:
    """Run a coroutine in a task of its own.

    Args:
        coroutine: User code.
        note_stall: Called with the seconds each time it, or a task that it started, has blocked the event loop.
    """
    return asyncio.get_running_loop().create_task(_Measured(coroutine, note_stall))


async def wait_for_end(task: asyncio.Future[Any]) -> None:
    """Wait until a task has ended. A cancellation of the caller does not cancel the task."""
    waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def wake(_: asyncio.Future[Any]) -> None:
        if not waiter.done():
            waiter.set_result(None)

    task.add_done_callback(wake)
    await waiter


async def end(task: asyncio.Task[Any], tool: str) -> bool:
    """Cancel a task of `start` and wait a short time for its end, then abandon it.

    Args:
        task: It may have ended already.
        tool: Name of the tool, for the log.

    Returns:
        Whether it has ended.
    """
    if task.done():
        return True
    task.cancel()
    try:
        await asyncio.wait({task}, timeout=_CANCEL_GRACE_S)
    finally:
        abandon(task)
        if not task.done():
            logger.warning(
                "tool '%s': a coroutine did not end when it was cancelled. It is abandoned, and closed in %.0f s.",
                *(tool, _CLEAN_UP_S),
            )
    return task.done()


def abandon(task: asyncio.Task[Any]) -> None:
    """Stop waiting for a cancelled task of `start`.

    The next cancellation closes its coroutine: after half a minute, or earlier if the event loop ends.
    """
    task.add_done_callback(_retrieve_exception)
    if not task.done():
        coroutine = task.get_coro()
        assert isinstance(coroutine, _Measured), "a task of `start`"
        coroutine.is_abandoned = True
        closing = asyncio.get_running_loop().call_later(_CLEAN_UP_S, task.cancel)
        task.add_done_callback(lambda _: closing.cancel())


def _retrieve_exception(task: asyncio.Future[Any]) -> None:
    """Retrieve an abandoned task's exception, so that asyncio does not print it."""
    if not task.cancelled():
        task.exception()


class _Measured(Coroutine[Any, Any, Any]):
    """A coroutine that measures each of its steps, and those of the tasks that it starts."""

    __slots__ = ("_coroutine", "_note_stall", "is_abandoned")

    def __init__(self, coroutine: Coroutine[Any, Any, Any], note_stall: Callable[[float], None]) -> None:
        self._coroutine, self._note_stall = coroutine, note_stall
        self.is_abandoned = False
        """The next cancellation closes it. Before that it receives all, including those of its own timeouts."""

    def send(self, value: Any) -> Any:
        return self._step(self._coroutine.send, value)

    def throw(self, error: Any, *rest: Any) -> Any:
        if self.is_abandoned and isinstance(error, asyncio.CancelledError):
            self._close_by_force()
            raise error
        return self._step(self._coroutine.throw, error, *rest)

    def close(self) -> None:
        self._coroutine.close()

    def __await__(self) -> Generator[Any, Any, Any]:
        return self._coroutine.__await__()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._coroutine, name)  # such as `cr_running`, which anyio reads

    def _step(self, resume: Callable[..., Any], *args: Any) -> Any:
        loop = asyncio.get_running_loop()
        factory = loop.get_task_factory()
        loop.set_task_factory(self._start_child)
        began_at = loop.time()
        try:
            return resume(*args)
        finally:
            took = loop.time() - began_at
            loop.set_task_factory(factory)
            if took > STALL_S:
                self._note_stall(took)

    def _start_child(self, loop: asyncio.AbstractEventLoop, coroutine: Any, **kwargs: Any) -> asyncio.Task[Any]:
        if asyncio.iscoroutine(coroutine):
            coroutine = _Measured(coroutine, self._note_stall)
        return asyncio.Task(coroutine, loop=loop, **kwargs)

    def _close_by_force(self) -> None:
        try:
            self._coroutine.close()
        except Exception as error:  # it raised or awaited while it was closed; it does not run any further
            logger.debug("closing a coroutine: %r", error)
