"""The chat API over real HTTP, behind a scripted engine."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from openai import AsyncOpenAI, BadRequestError

from rl.chat.parsers import PARSERS
from rl.config.schema import RLConfig
from rl.rollout.episode import Episode
from rl.rollout.rollout_function import Policy
from rl.rollout.tool_environment import ToolEnvironment
from rl.serving.client import AgentClient
from rl.serving.dialogs import Dialogs
from rl.serving.endpoint import Endpoint
from rl.types import Generation
from tests.fakes import ScriptedEngine
from tests.unit.serving.agents import ADD
from tests.unit.serving.parts import CALL, PROMPT, SAMPLING, ids, make_renderer, saying

USER = {"role": "user", "content": "What is 1 + 2?"}


@asynccontextmanager
async def serving(script: Sequence[Generation]) -> AsyncIterator[tuple[Endpoint, AgentClient, Episode]]:
    renderer, parser, rl = make_renderer(), PARSERS["hermes"], RLConfig(multi_turn_enable=True)
    episode = Episode(
        ScriptedEngine(list(script)), renderer, PROMPT, 0, SAMPLING, stop=(), max_context=4096, max_response=100
    )
    policy = Policy(episode, parser, ToolEnvironment(None, renderer, parser, rl, None, lambda turn: None))
    endpoint = Endpoint(Dialogs(renderer.tokenizer, rl), model="tiny", max_model_len=4096)
    await endpoint.start()
    try:
        yield endpoint, endpoint.open(policy, SAMPLING), episode
    finally:
        await endpoint.close()


async def ask(script: Sequence[Generation], body: Any, path: str = "chat/completions") -> tuple[int, Any]:
    async with serving(script) as (_, client, _), aiohttp.ClientSession() as session:
        data = body if isinstance(body, str) else json.dumps(body)
        headers = {"Content-Type": "application/json"}
        async with session.post(f"{client.base_url}/{path}", data=data, headers=headers) as answer:
            return answer.status, await answer.json()


async def test_an_answer_has_tokens_logprobs_and_usage():
    body = {"model": "any", "messages": [USER], "logprobs": True, "return_token_ids": True, "max_tokens": 50}
    status, answer = await ask([saying("3")], body)
    (choice,) = answer["choices"]
    assert (status, answer["model"], choice["finish_reason"]) == (200, "tiny", "stop")
    assert choice["message"] == {"role": "assistant", "content": "3"}
    assert choice["token_ids"] == ids("3<|im_end|>")
    assert [t["token"] for t in choice["logprobs"]["content"]] == ["3", "<|im_end|>"]
    expected = [-token / 100 for token in choice["token_ids"]]
    assert [t["logprob"] for t in choice["logprobs"]["content"]] == pytest.approx(expected, abs=1e-6)
    num_prompt = len(answer["prompt_token_ids"])
    assert answer["usage"] == {"prompt_tokens": num_prompt, "completion_tokens": 2, "total_tokens": num_prompt + 2}


async def test_a_stream_carries_calls_their_end_and_the_usage():
    async with serving([saying(CALL)]) as (_, client, _), client.openai() as openai:
        stream = await openai.chat.completions.create(
            model="any", messages=[USER], tools=[ADD], stream=True, stream_options={"include_usage": True}
        )  # fmt: skip
        parts = [part async for part in stream]
    (call,) = parts[0].choices[0].delta.tool_calls
    assert (call.index, call.function.name, json.loads(call.function.arguments)) == (0, "add", {"a": 1})
    assert [part.choices[0].finish_reason for part in parts[:2]] == [None, "tool_calls"]
    assert parts[2].usage.completion_tokens == len(ids(CALL)) + 1


async def test_the_api_key_alone_names_the_trajectory():
    async with serving([saying("3")]) as (_, client, episode):
        root = client.base_url.split("/rollouts")[0]
        async with AsyncOpenAI(base_url=f"{root}/v1", api_key=client.api_key, max_retries=0) as openai:
            assert [model.id async for model in openai.models.list()] == ["tiny"]
            await openai.chat.completions.create(model="tiny", messages=[USER])
        assert episode.turns[0].num_tokens == 2


async def test_a_history_that_a_client_wrote_anew_keeps_its_sampled_tokens():
    async with serving([saying(" 3 "), saying("4")]) as (_, client, episode), client.openai() as openai:
        first = await openai.chat.completions.create(model="any", messages=[USER])
        given = [USER, {"role": "assistant", "content": f"  {first.choices[0].message.content}\n"}, USER]
        await openai.chat.completions.create(model="any", messages=given)
    (sequence,) = episode.ledger.sequences
    assert sequence.num_sampled == len(ids(" 3 ")) + 1 + len(ids("4")) + 1
    tokens = list(sequence.token_ids)
    start = sequence.prompt_length
    assert tokens[start : start + len(ids(" 3 "))] == ids(" 3 ")


async def test_another_list_of_tools_starts_a_sequence():
    async with serving([saying("3"), saying("4")]) as (_, client, episode), client.openai() as openai:
        await openai.chat.completions.create(model="any", messages=[USER])
        await openai.chat.completions.create(model="any", messages=[USER], tools=[ADD])
    assert [sequence.num_sampled for sequence in episode.ledger.sequences] == [2, 2]


async def test_a_used_up_budget_is_the_error_that_clients_know():
    async with serving([saying("3")]) as (_, client, _), client.openai() as openai:
        with pytest.raises(BadRequestError) as caught:
            await openai.chat.completions.create(model="any", messages=[{**USER, "content": "one " * 5000}])
    assert (caught.value.code, caught.value.status_code) == ("context_length_exceeded", 400)


async def test_an_ended_trajectory_is_not_found():
    async with serving([]) as (endpoint, client, _), aiohttp.ClientSession() as session:
        endpoint.end(client)
        async with session.get(f"{client.base_url}/models") as answer:
            assert (answer.status, (await answer.json())["error"]["code"]) == (404, "rollout_not_found")


async def test_a_dead_engine_is_an_error_of_the_server():
    status, answer = await ask([], {"messages": [USER]})
    assert (status, answer["error"]["type"]) == (500, "server_error")


@pytest.mark.parametrize(
    ("body", "param", "message"),
    [
        ("{", None, "not JSON"),
        ("[" * 100_000, None, "not JSON"),
        ("[]", None, "must be a JSON object, got list"),
        ({}, "messages", "missing"),
        ({"messages": []}, "messages", "at least 1 item"),
        ({"messages": "hello"}, "messages", "list"),
        ({"messages": [{"content": "hello"}]}, "messages", "needs a role"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages", "must be text"),
        ({"messages": [USER], "n": 0}, "n", "greater than or equal to 1"),
        ({"messages": [USER], "n": 10**9}, "n", "less than or equal to 128"),
        ({"messages": [USER], "max_tokens": 0}, "max_tokens", "greater than or equal to 1"),
        ({"messages": [USER], "temperature": -1}, "temperature", "greater than or equal to 0"),
        ({"messages": [USER], "temperature": "hot"}, "temperature", "number"),
        ({"messages": [USER], "top_p": 0}, "top_p", "greater than 0"),
        ({"messages": [USER], "frequency_penalty": 0.5}, "frequency_penalty", "only 0 is supported, got 0.5"),
        ({"messages": [USER], "response_format": {"type": "json_object"}}, "response_format", "only"),
        ({"messages": [USER], "tool_choice": "required"}, "tool_choice", "auto or none"),
        ({"messages": [USER], "top_logprobs": 5}, "top_logprobs", "only 0"),
        ({"messages": [USER], "temprature": 1}, "temprature", "Did you mean 'temperature'"),
        ({"messages": [USER], "tools": [{"type": "function"}]}, "tools", "function.name"),
        ({"messages": [USER], "tools": [{"type": "search", "function": {"name": "x"}}]}, "tools", "of type function"),
    ],
)  # fmt: skip
async def test_a_wrong_request_is_refused_by_name(body: Any, param: str | None, message: str):
    status, answer = await ask([saying("3")], body)
    assert (status, answer["error"]["param"], answer["error"]["type"]) == (400, param, "invalid_request_error")
    assert message in answer["error"]["message"]


async def test_habitual_keys_without_effect_are_accepted():
    habits = {"user": "me", "metadata": {"a": "b"}, "frequency_penalty": 0.0, "presence_penalty": 0, "store": False}
    neutral = {"response_format": {"type": "text"}, "parallel_tool_calls": True, "logit_bias": {}, "seed": None}
    status, _ = await ask([saying("3")], {"messages": [USER], **habits, **neutral})
    assert status == 200
