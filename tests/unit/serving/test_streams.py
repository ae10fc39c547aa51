"""Streams begin before the answer is there; clients that leave, slow bodies and large ones."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import anthropic
import openai
import pytest

from rl.config.schema import RLConfig
from rl.errors import RolloutError
from rl.serving.client import AgentClient
from rl.serving.dialogs import Dialogs
from rl.serving.endpoint import Endpoint
from rl.types import Generation, Sampling
from tests.unit.serving.parts import CALL, SAMPLING, USER, make_policy, saying, serving, tokenizer
from tests.unit.serving.test_endpoint import ADD

BODIES = [
    ("chat/completions", {"messages": [USER]}),
    ("completions", {"prompt": "one"}),
    ("responses", {"input": "one"}),
    ("messages", {"messages": [USER], "max_tokens": 5}),
]


class HeldEngine:
    """Answers when it is released, and notes what was cancelled."""

    def __init__(self, answer: Generation | Exception) -> None:
        self.answer, self.released = answer, asyncio.Event()
        self.begun, self.cancelled = asyncio.Event(), asyncio.Event()

    async def generate(self, token_ids: list[int], sampling: Sampling, *, session_id: str) -> Generation:
        self.begun.set()
        try:
            await self.released.wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


@asynccontextmanager
async def holding(answer: Generation | Exception) -> AsyncIterator[tuple[HeldEngine, AgentClient]]:
    engine = HeldEngine(answer)
    endpoint = Endpoint(Dialogs(tokenizer(), RLConfig(multi_turn_enable=True)), model="tiny", max_model_len=4096)
    await endpoint.start()
    try:
        yield engine, endpoint.open(make_policy(engine), SAMPLING)
    finally:
        await endpoint.close()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Streams that begin at once and are kept alive in short intervals."""
    monkeypatch.setattr("rl.serving.streams._ERRORS_S", 0.01)
    monkeypatch.setattr("rl.serving.streams._KEEP_ALIVE_S", 0.01)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(("path", "body"), BODIES)
async def test_a_stream_begins_before_the_answer_and_is_kept_alive(path: str, body: dict[str, Any]):
    async with holding(saying("3")) as (engine, client), aiohttp.ClientSession() as session:
        answer = await session.post(f"{client.base_url}/{path}", json={**body, "stream": True})
        assert (answer.status, answer.content_type) == (200, "text/event-stream")
        assert [await answer.content.readline() for _ in range(4)] == [b": keep-alive\n", b"\n"] * 2
        engine.released.set()
        rest = (await answer.content.read()).decode()
    assert "3" in rest
    assert not rest.replace(": keep-alive\n\n", "").startswith(":")


@pytest.mark.parametrize("is_streamed", [True, False])
@pytest.mark.parametrize(("path", "body"), BODIES)
@pytest.mark.usefixtures("impatient")
async def test_a_client_that_disconnects_ends_the_engines_request(path: str, body: dict[str, Any], is_streamed: bool):
    async with holding(saying("3")) as (engine, client), aiohttp.ClientSession() as session:
        request = session.post(f"{client.base_url}/{path}", json={**body, "stream": is_streamed})
        if is_streamed:
            answer = await request
            await engine.begun.wait()
            await answer.content.readline()
            answer.close()
        else:
            waiting = asyncio.ensure_future(request)
            await engine.begun.wait()
            waiting.cancel()
        async with asyncio.timeout(5):
            await engine.cancelled.wait()


@pytest.mark.usefixtures("impatient")
async def test_an_error_within_a_stream_is_an_event_that_clients_raise():
    async with holding(RolloutError("engine 0: died.")) as (engine, client):

        async def release() -> None:
            await engine.begun.wait()
            await asyncio.sleep(0.05)
            engine.released.set()

        releasing = asyncio.create_task(release())
        async with client.openai() as own:
            with pytest.raises(openai.APIError, match="engine 0: died"):
                async for _ in await own.chat.completions.create(model="tiny", messages=[USER], stream=True):
                    pass
            with pytest.raises(openai.APIError, match="engine 0: died"):
                async for _ in await own.responses.create(model="tiny", input="one", stream=True):
                    pass
        async with client.anthropic() as own_anthropic:
            with pytest.raises(anthropic.APIStatusError, match="engine 0: died"):
                async for _ in await own_anthropic.messages.create(
                    model="tiny", messages=[USER], max_tokens=5, stream=True
                ):
                    pass
        await releasing


async def test_what_fails_at_once_has_a_status_in_a_stream_too():
    async with serving([saying("3")]) as (_, client, _), client.openai() as own:
        with pytest.raises(openai.BadRequestError) as caught:
            message: Any = {**USER, "content": "one " * 5000}
            await own.chat.completions.create(model="tiny", messages=[message], stream=True)
    assert caught.value.code == "context_length_exceeded"


async def test_the_pieces_of_a_stream_are_the_whole_answer():
    text = "  So: 1 + 2 =\n\n3, ünïcödé " + "x" * 50 + " end"
    parts = []
    for is_streamed in (True, False):
        async with serving([saying(text)]) as (_, client, _), client.openai() as own:
            answer: Any = await own.chat.completions.create(model="tiny", messages=[USER], stream=is_streamed)
            parts += [part.choices[0].delta async for part in answer] if is_streamed else []
    whole = answer
    tool: Any = {"name": "add", "input_schema": ADD["function"]["parameters"]}
    given: Any = {"model": "tiny", "messages": [USER], "tools": [tool], "max_tokens": 90}
    async with (
        serving([saying(f"Let me see.\n{CALL}")]) as (_, client, _),
        client.anthropic() as own_anthropic,
        own_anthropic.messages.stream(**given) as events,
    ):
        final = await events.get_final_message()
    assert len(parts) > 8
    assert "".join(part.content or "" for part in parts) == whole.choices[0].message.content
    assert [block.type for block in final.content] == ["text", "tool_use"]
    assert final.content[1].input == {"a": 1}


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
@pytest.mark.parametrize("key", ["temperature", "top_p", "min_p", "max_tokens", "seed"])
async def test_numbers_that_are_none_are_refused(key: str, number: str):
    async with serving([saying("3")]) as (_, client, _), aiohttp.ClientSession() as session:
        body = json.dumps({"messages": [USER]})[:-1] + f', "{key}": {number}}}'
        headers = {"Content-Type": "application/json"}
        async with session.post(f"{client.base_url}/chat/completions", data=body, headers=headers) as answer:
            error = (await answer.json())["error"]
            assert (answer.status, error["type"]) == (400, "invalid_request_error")


@pytest.mark.parametrize("is_announced", [True, False])
async def test_a_body_of_100_mb_is_refused(is_announced: bool):
    async def body() -> AsyncIterator[bytes]:
        for _ in range(100):
            yield b" " * (1 << 20)

    async with serving([]) as (_, client, _), aiohttp.ClientSession() as session:
        headers = {"Content-Type": "application/json"}
        data: Any = b" " * (100 << 20) if is_announced else body()
        async with session.post(f"{client.base_url}/chat/completions", data=data, headers=headers) as answer:
            assert (answer.status, "more than 8 MiB" in await answer.text()) == (413, True)


async def test_a_body_that_does_not_arrive_is_given_up(monkeypatch: pytest.MonkeyPatch):
    sent = asyncio.Event()

    async def body() -> AsyncIterator[bytes]:
        yield b'{"messages": '
        await sent.wait()

    async with serving([]) as (endpoint, client, _), aiohttp.ClientSession() as session:
        monkeypatch.setattr(endpoint._bodies, "_timeout_s", 0.05)
        headers = {"Content-Type": "application/json"}
        async with session.post(f"{client.base_url}/chat/completions", data=body(), headers=headers) as answer:
            assert (answer.status, (await answer.json())["error"]["type"]) == (408, "invalid_request_error")
        sent.set()
