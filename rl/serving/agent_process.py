"""A process that runs agents: many at once, coroutines on one event loop and plain functions in threads.

Messages to it: `("run", number, prompt, client)`, `("cancel", number)`. From it: `(number, is_value, value)`, with an
`Outcome`, what is wrong with the agent's result, or None; or else the text of an exception.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from rl.config.imports import import_target
from rl.rewards.outcome import Outcome, read_outcome
from rl.serving.client import AgentClient
from rl.serving.frames import read_frame, to_frame
from rl.types import Prompt

_LONGEST_TEXT = 2000
_WATCH_EVERY_S = 1.0


def main() -> None:
    """Entry point: import the agent, then run it whenever the parent asks, until the parent is gone."""
    descriptor, target, parent = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    threading.Thread(target=_watch, args=(parent,), daemon=True).start()
    function, problem = None, None
    try:
        function = import_target(target)  # before the event loop runs: a module may use one of its own
    except BaseException as error:  # user code may raise anything
        problem = _text(error)
    asyncio.run(_serve(descriptor, function, problem))
    os._exit(0)  # threads of plain functions may never end


def _watch(parent: int) -> None:
    """End this process with its parent, even while an agent blocks the event loop."""
    while os.getppid() == parent:
        time.sleep(_WATCH_EVERY_S)
    os._exit(1)


async def _serve(descriptor: int, function: Callable[..., Any] | None, problem: str | None) -> None:
    reader, writer = await asyncio.open_unix_connection(sock=socket.socket(fileno=descriptor))
    try:
        kwargs = await read_frame(reader)
        writer.write(to_frame((problem is None, problem)))
        await writer.drain()
        if function is not None:
            await _Agents(reader, writer, function, kwargs).serve()
    except (EOFError, ConnectionError):
        return


class _Agents:
    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        function: Callable[..., Any],
        kwargs: Mapping[str, Any],
    ) -> None:
        self._reader, self._writer, self._function, self._kwargs = reader, writer, function, kwargs
        self._running: dict[int, asyncio.Task[None]] = {}

    async def serve(self) -> None:
        while True:
            kind, number, *arguments = await read_frame(self._reader)
            if kind == "run":
                self._running[number] = asyncio.create_task(self._run(number, *arguments))
            elif number in self._running:
                self._running[number].cancel()

    async def _run(self, number: int, prompt: Prompt, client: AgentClient) -> None:
        try:
            answer = (True, _outcome(await self._result(prompt, client)))
        except asyncio.CancelledError:
            answer = (False, "cancelled")
        except (Exception, SystemExit) as error:
            answer = (False, _text(error))
        del self._running[number]
        self._writer.write(to_frame((number, *answer)))

    async def _result(self, prompt: Prompt, client: AgentClient) -> Any:
        if inspect.iscoroutinefunction(self._function):
            return await self._function(prompt, client, **self._kwargs)
        value = await _in_thread(lambda: self._function(prompt, client, **self._kwargs))
        return await value if inspect.isawaitable(value) else value


def _outcome(value: Any) -> Outcome | str | None:
    """The agent's result. The parent compares the number of its turn scores with that of the turns."""
    if value is None:
        return None
    given = value.get("turn_scores") if isinstance(value, Mapping) else None
    return read_outcome(value, len(given) if given is not None else 0)


def _text(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"[:_LONGEST_TEXT]


async def _in_thread(call: Callable[[], Any]) -> Any:
    """Run a plain function in a thread of its own. A pool would make agents wait for those that hang."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[Any] = loop.create_future()

    def finish(is_value: bool, value: Any) -> None:
        if not done.done():
            done.set_result(value) if is_value else done.set_exception(value)

    def run() -> None:
        try:
            answer = (True, call())
        except BaseException as error:  # user code may raise anything
            answer = (False, error if isinstance(error, Exception | SystemExit) else RuntimeError(repr(error)))
        loop.call_soon_threadsafe(finish, *answer)

    context = contextvars.copy_context()
    threading.Thread(target=context.run, args=(run,), daemon=True).start()
    return await done
