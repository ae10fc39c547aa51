"""User coroutines: how long one holds the event loop up, and how one ends that does not listen to its cancellation."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Generator
from typing import Any

from rl.tools.deadlines import STALL_S

logger = logging.getLogger(__name__)

_CANCEL_GRACE_S = 1.0
_CLEAN_UP_S = 30.0
"""Seconds that a cancelled coroutine may take to free what it holds, before it is closed."""


def start(coroutine: Coroutine[Any, Any, Any], note_stall: Callable[[float], None]) -> asyncio.Task[Any]:
    """Run a coroutine in a task of its own.

    Args:
        coroutine: User code.
        note_stall: Called with the seconds of each stretch in which it, or a task that it started, held the event loop
            up.
    """
    return asyncio.get_running_loop().create_task(_Measured(coroutine, note_stall))


async def ended(task: asyncio.Future[Any]) -> None:
    """Wait until a task has ended. Whoever is cancelled while it waits does not cancel the task."""
    waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def wake(_: asyncio.Future[Any]) -> None:
        if not waiter.done():
            waiter.set_result(None)

    task.add_done_callback(wake)
    await waiter


async def end(task: asyncio.Task[Any], tool: str) -> bool:
    """Cancel a task of `start` and wait until it has ended, but not long: one that goes on is left to itself.

    Args:
        task: May have ended already.
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
        leave(task)
        if not task.done():
            logger.warning(
                "tool '%s': a coroutine did not end when it was cancelled. It is left to itself, and closed in %.0f s.",
                *(tool, _CLEAN_UP_S),
            )
    return task.done()


def leave(task: asyncio.Task[Any]) -> None:
    """Wait no longer for a task of `start` that was cancelled.

    Its coroutine is closed where it stands when the task is cancelled again: after half a minute, or before that by
    whoever ends the event loop.
    """
    task.add_done_callback(_look_at)
    if not task.done():
        coroutine = task.get_coro()
        assert isinstance(coroutine, _Measured), "a task of `start`"
        coroutine.is_left = True
        closing = asyncio.get_running_loop().call_later(_CLEAN_UP_S, task.cancel)
        task.add_done_callback(lambda _: closing.cancel())


def _look_at(task: asyncio.Future[Any]) -> None:
    """See how a task ended that nobody waits for, so that asyncio does not print its exception."""
    if not task.cancelled():
        task.exception()


class _Measured(Coroutine[Any, Any, Any]):
    """A coroutine with a clock at each of its steps. The tasks that it starts are measured in the same way."""

    __slots__ = ("_coroutine", "_note_stall", "is_left")

    def __init__(self, coroutine: Coroutine[Any, Any, Any], note_stall: Callable[[float], None]) -> None:
        self._coroutine, self._note_stall = coroutine, note_stall
        self.is_left = False
        """The next cancellation closes it. Before that it gets every one, as those of its own time limits."""

    def send(self, value: Any) -> Any:
        return self._step(self._coroutine.send, value)

    def throw(self, error: Any, *rest: Any) -> Any:
        if self.is_left and isinstance(error, asyncio.CancelledError):
            self._close_by_force()
            raise error
        return self._step(self._coroutine.throw, error, *rest)

    def close(self) -> None:
        self._coroutine.close()

    def __await__(self) -> Generator[Any, Any, Any]:
        return self._coroutine.__await__()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._coroutine, name)  # `cr_running` and the like, which anyio looks at

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
        except Exception as error:  # it raises while it is closed, or awaits again: it is not run any further
            logger.debug("closing a coroutine: %r", error)
