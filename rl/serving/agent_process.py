"""A process that runs agents: many at once, coroutines on one event loop and plain functions in threads.

Messages to it: `("run", number, prompt, client)`, `("cancel", number)`. From it: `("end", number, is_value, value)`,
with an `Outcome`, what is wrong with the agent's result, or None; or else the text of an exception.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import os
import sys
import threading
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from typing import Any

from rl.config.imports import import_target
from rl.rewards.outcome import Outcome, read_outcome
from rl.serving.client import AgentClient
from rl.types import Prompt


def main() -> None:
    """Entry point: import the agent, then run it whenever the parent asks, until the parent closes the connection."""
    descriptor, target = int(sys.argv[1]), sys.argv[2]
    connection = Connection(descriptor)
    kwargs = connection.recv()
    try:
        function = import_target(target)
    except BaseException as error:  # user code may raise anything
        connection.send((False, f"{type(error).__name__}: {error}"))
        return
    connection.send((True, None))
    asyncio.run(_Agents(connection, function, kwargs).serve())
    os._exit(0)  # threads of plain functions may never end


class _Agents:
    def __init__(self, connection: Connection, function: Callable[..., Any], kwargs: Mapping[str, Any]) -> None:
        self._connection, self._function, self._kwargs = connection, function, kwargs
        self._running: dict[int, asyncio.Task[None]] = {}
        self._closed = asyncio.Event()

    async def serve(self) -> None:
        asyncio.get_running_loop().add_reader(self._connection.fileno(), self._read)
        await self._closed.wait()

    def _read(self) -> None:
        try:
            while self._connection.poll():
                kind, number, *arguments = self._connection.recv()
                if kind == "run":
                    self._running[number] = asyncio.create_task(self._run(number, *arguments))
                elif number in self._running:
                    self._running[number].cancel()
        except (EOFError, ConnectionError):
            self._closed.set()

    async def _run(self, number: int, prompt: Prompt, client: AgentClient) -> None:
        try:
            answer = (True, _read(await self._result(prompt, client)))
        except asyncio.CancelledError:
            answer = (False, "cancelled")
        except (Exception, SystemExit) as error:
            answer = (False, f"{type(error).__name__}: {error}")
        del self._running[number]
        self._connection.send(("end", number, *answer))

    async def _result(self, prompt: Prompt, client: AgentClient) -> Any:
        if inspect.iscoroutinefunction(self._function):
            return await self._function(prompt, client, **self._kwargs)
        value = await _in_thread(lambda: self._function(prompt, client, **self._kwargs))
        return await value if inspect.isawaitable(value) else value


def _read(value: Any) -> Outcome | str | None:
    """The agent's result. The parent compares the number of turns."""
    if value is None:
        return None
    given = value.get("turn_scores") if isinstance(value, Mapping) else None
    return read_outcome(value, len(given) if given is not None else 0)


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
