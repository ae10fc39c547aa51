"""Answers as server-sent events: the headers go out early, and comments keep the connection busy until the answer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

from aiohttp import web

from rl.services.http_guard import SEND_TIMEOUT_S
from rl.serving.chat_answer import Answer
from rl.serving.errors import ApiError, as_api_error, route_of

_KEEP_ALIVE_S = 10.0
_ERRORS_S = 0.5
"""What fails within these seconds is answered with an HTTP status, which clients understand better."""


async def stream_answer(
    http: web.Request,
    answer: Coroutine[Any, Any, Answer],
    events_of: Callable[[Answer], Iterator[str]],
    error_event: Callable[[ApiError], str],
) -> web.StreamResponse:
    """Send an answer as events. A client that disconnects ends what is sampled for it.

    Args:
        http: The request.
        answer: Samples the answer.
        events_of: The answer's events.
        error_event: The event of an error.

    Raises:
        Exception: It failed before anything was sent.
    """
    task = asyncio.create_task(answer)
    try:
        if (await asyncio.wait({task}, timeout=_ERRORS_S))[0]:
            task.result()
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache"})
        try:
            await _send(http, response, task, events_of, error_event)
        except (ConnectionError, TimeoutError):  # the client is gone, or does not read
            if http.transport is not None:
                http.transport.abort()
        return response
    finally:
        task.cancel()


async def _send(
    http: web.Request,
    response: web.StreamResponse,
    task: asyncio.Task[Answer],
    events_of: Callable[[Answer], Iterator[str]],
    error_event: Callable[[ApiError], str],
) -> None:
    await response.prepare(http)
    while not (await asyncio.wait({task}, timeout=_KEEP_ALIVE_S))[0]:
        await response.write(b": keep-alive\n\n")
    try:
        text = "".join(events_of(task.result()))
    except Exception as error:  # as for an answer that is not streamed
        text = error_event(as_api_error(error, route_of(http)))
    async with asyncio.timeout(SEND_TIMEOUT_S):
        await response.write(text.encode())
        await response.write_eof()
