"""A chat server in a thread of its own, whose answers a test writes."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
from aiohttp import web

from rl.remote.client import Endpoint

Answer = Callable[[dict[str, Any]], Awaitable[web.StreamResponse]]


class ChatServer:
    """Answers `/v1/models` with the model `m`, and `/v1/chat/completions` with what `answer` returns."""

    def __init__(self) -> None:
        self.answer: Answer = always("\\boxed{4}")
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.num_running = self.most_running = 0
        self.url = ""
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def start(self) -> None:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._open(), self._loop).result(10)

    def stop(self) -> None:
        asyncio.run_coroutine_threadsafe(self._runner.cleanup(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    @property
    def endpoint(self) -> Endpoint:
        return Endpoint(self.url, "m")

    async def _open(self) -> None:
        application = web.Application()
        application.router.add_get("/v1/models", self._models)
        application.router.add_post("/v1/chat/completions", self._chat)
        self._runner = web.AppRunner(application, shutdown_timeout=0.1, handler_cancellation=True)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}/v1"

    async def _models(self, request: web.Request) -> web.Response:
        if request.headers.get("Authorization") == "Bearer wrong":
            return web.Response(status=401)
        return web.json_response({"data": [{"id": "m"}, {"id": "other"}]})

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.bodies.append(body)
        self.headers.append(dict(request.headers))
        self.num_running += 1
        self.most_running = max(self.most_running, self.num_running)
        try:
            return await self.answer(body)
        finally:
            self.num_running -= 1


def chat(text: str, *calls: tuple[str, str], finish: str = "stop", tokens: tuple[int, int] = (10, 5)) -> web.Response:
    """An answer with calls, each a name and the text of its arguments."""
    called = [
        {"id": f"id-{number}", "type": "function", "function": {"name": name, "arguments": arguments}}
        for number, (name, arguments) in enumerate(calls)
    ]
    message = {"role": "assistant", "content": text, "tool_calls": called}
    usage = {"prompt_tokens": tokens[0], "completion_tokens": tokens[1]}
    return web.json_response({"choices": [{"message": message, "finish_reason": finish}], "usage": usage})


def always(text: str) -> Answer:
    async def answer(body: dict[str, Any]) -> web.StreamResponse:
        return chat(text)

    return answer


def in_turn(*answers: web.StreamResponse | Callable[[], web.StreamResponse]) -> Answer:
    """The given answers one after another; the last is repeated. A function is called for each."""
    remaining = list(answers)

    async def answer(body: dict[str, Any]) -> web.StreamResponse:
        found = remaining.pop(0) if len(remaining) > 1 else remaining[0]
        return found() if callable(found) else found

    return answer


@pytest.fixture
def server() -> Iterator[ChatServer]:
    started = ChatServer()
    started.start()
    yield started
    started.stop()
