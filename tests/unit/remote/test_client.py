"""Requests to a server that fails in every way."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from aiohttp import web

from rl.errors import ConfigError, ServiceError
from rl.remote.client import ChatClient, Completion, Endpoint, RefusedError
from rl.remote.launch import check_endpoint
from rl.tools.base import ServiceUnavailableError
from rl.types import Sampling
from tests.unit.remote.conftest import ChatServer, chat, in_turn

ASK = [{"role": "user", "content": "2+2?"}]
GREEDY = Sampling(temperature=0.0, max_tokens=16, seed=7)


def ask(endpoint: Endpoint, *, timeout_s: float = 10.0, retry_for_s: float = 5.0, **more: Any) -> Completion:
    async def run() -> Completion:
        client = ChatClient(endpoint, timeout_s=timeout_s, num_at_once=4, retry_for_s=retry_for_s)
        try:
            return await client.complete(ASK, more.pop("tools", []), more.pop("sampling", GREEDY))
        finally:
            await client.close()

    return asyncio.run(run())


def test_complete_sends_what_is_set_and_reads_the_answer(server: ChatServer) -> None:
    server.answer = in_turn(lambda: chat("four", finish="length", tokens=(12, 3)))
    found = ask(server.endpoint)
    assert (found.message["content"], found.is_cut, found.prompt_tokens, found.num_tokens) == ("four", True, 12, 3)
    assert server.bodies == [
        {"model": "m", "messages": ASK, "max_tokens": 16, "temperature": 0.0, "top_p": 1.0, "seed": 7}
    ]
    assert "Authorization" not in server.headers[0]
    ask(Endpoint(server.url, "m", "secret"), sampling=Sampling(1.0, 8, top_k=5), tools=[{"type": "function"}])
    assert (server.bodies[1]["top_k"], server.bodies[1]["tools"]) == (5, [{"type": "function"}])
    assert server.headers[1]["Authorization"] == "Bearer secret"


@pytest.mark.parametrize(
    "failure",
    [
        lambda: web.Response(status=429, text="slow down"),
        lambda: web.Response(status=500, text="oops"),
        lambda: web.Response(text="not JSON {", content_type="application/json"),
        lambda: web.json_response({"error": "no choices"}),
        lambda: web.json_response({"choices": [{"message": {"tool_calls": [{"function": {}}]}}]}),
        lambda: web.json_response([]),
    ],
)
def test_complete_tries_again_what_may_pass(server: ChatServer, failure: Any) -> None:
    server.answer = in_turn(failure, chat("four"))
    assert ask(server.endpoint).message["content"] == "four"
    assert len(server.bodies) == 2


def test_complete_gives_up_a_server_that_keeps_failing(server: ChatServer) -> None:
    server.answer = in_turn(lambda: web.Response(status=503, text="loading"))
    with pytest.raises(ServiceUnavailableError, match="HTTP 503: loading"):
        ask(server.endpoint, retry_for_s=0.01)


def test_complete_does_not_repeat_what_is_refused(server: ChatServer) -> None:
    server.answer = in_turn(lambda: web.Response(status=400, text="tools are not supported"))
    with pytest.raises(RefusedError, match="refused, tools are not supported"):
        ask(server.endpoint)
    assert len(server.bodies) == 1


def test_complete_gives_up_an_attempt_at_its_time_limit(server: ChatServer) -> None:
    async def silent(body: dict[str, Any]) -> web.StreamResponse:
        await asyncio.Event().wait()
        raise AssertionError

    server.answer = silent
    with pytest.raises(ServiceUnavailableError, match="TimeoutError"):
        ask(server.endpoint, timeout_s=0.2, retry_for_s=0.01)


def test_check_endpoint_names_what_is_wrong(server: ChatServer) -> None:
    check_endpoint(server.endpoint)
    with pytest.raises(ConfigError, match=r"--model: .*'othr'.*'other'"):
        check_endpoint(Endpoint(server.url, "othr"))
    with pytest.raises(ConfigError, match=r"--api-key-env: .*/v1/models refused the key, got HTTP 401"):
        check_endpoint(Endpoint(server.url, "m", "wrong"))
    with pytest.raises(ServiceError, match=r"--endpoint: no answer from http://127.0.0.1:9/v1/models .*Start the serv"):
        check_endpoint(Endpoint("http://127.0.0.1:9/v1", "m"))
    with pytest.raises(ConfigError, match=r"--endpoint: not an address"):
        check_endpoint(Endpoint("http://", "m"))
    check_endpoint(Endpoint(server.url.removesuffix("/v1"), "m"))  # 404: no list of models


def test_an_endpoint_does_not_show_its_key() -> None:
    endpoint = Endpoint("http://host/v1", "m", "secret")
    assert "secret" not in f"{endpoint!r} {endpoint}"
