"""The chat API over real HTTP, behind a scripted engine."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import aiohttp
import pytest
from anthropic import BadRequestError as AnthropicBadRequest
from openai import AsyncOpenAI, BadRequestError, NotFoundError

from rl.rollout.episode import Episode, request_seed
from rl.rollout.rollout_function import Policy
from tests.unit.serving.agents import ADD
from tests.unit.serving.parts import CALL, PROMPT, SAMPLING, USER, ask, ids, saying, saying_raw, serving, text_of


def tool_with(parameters: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "add", "parameters": parameters}}


async def test_an_answer_has_tokens_logprobs_and_usage():
    body = {"model": "tiny", "messages": [USER], "logprobs": True, "return_token_ids": True, "max_tokens": 50}
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
            model="tiny", messages=[USER], tools=[ADD], stream=True, stream_options={"include_usage": True}
        )  # fmt: skip
        parts = [part async for part in stream]
    deltas = [choice.delta for part in parts for choice in part.choices]
    first, *rest = [call for delta in deltas for call in delta.tool_calls or []]
    assert (first.index, first.function.name, first.function.arguments) == (0, "add", "")
    assert len(rest) > 1
    assert json.loads("".join(call.function.arguments for call in rest)) == {"a": 1}
    assert [part.choices[0].finish_reason for part in parts[-3:-1]] == [None, "tool_calls"]
    assert parts[-1].usage.completion_tokens == len(ids(CALL)) + 1


async def test_the_api_key_alone_names_the_trajectory():
    async with serving([saying("3")]) as (_, client, episode):
        root = client.base_url.split("/rollouts")[0]
        async with AsyncOpenAI(base_url=f"{root}/v1", api_key=client.api_key, max_retries=0) as openai:
            assert [model.id async for model in openai.models.list()] == ["tiny"]
            await openai.chat.completions.create(model="tiny", messages=[USER])
        assert episode.turns[0].num_tokens == 2


async def test_a_history_that_a_client_wrote_anew_keeps_its_sampled_tokens():
    async with serving([saying(" 3 "), saying("4")]) as (_, client, episode), client.openai() as openai:
        first = await openai.chat.completions.create(model="tiny", messages=[USER])
        given = [USER, {"role": "assistant", "content": f"  {first.choices[0].message.content}\n"}, USER]
        await openai.chat.completions.create(model="tiny", messages=given)
    (sequence,) = episode.ledger.sequences
    assert sequence.num_sampled == len(ids(" 3 ")) + 1 + len(ids("4")) + 1
    tokens = list(sequence.token_ids)
    start = sequence.prompt_length
    assert tokens[start : start + len(ids(" 3 "))] == ids(" 3 ")


async def test_another_list_of_tools_starts_a_sequence():
    async with serving([saying("3"), saying("4")]) as (_, client, episode), client.openai() as openai:
        await openai.chat.completions.create(model="tiny", messages=[USER])
        await openai.chat.completions.create(model="tiny", messages=[USER], tools=[ADD])
    assert [sequence.num_sampled for sequence in episode.ledger.sequences] == [2, 2]


async def test_a_used_up_budget_is_the_error_that_clients_know():
    async with serving([saying("3")]) as (_, client, _), client.openai() as openai:
        with pytest.raises(BadRequestError) as caught:
            await openai.chat.completions.create(model="tiny", messages=[{**USER, "content": "one " * 5000}])
    assert (caught.value.code, caught.value.status_code) == ("context_length_exceeded", 400)


async def test_an_ended_trajectory_is_not_found():
    async with serving([]) as (endpoint, client, _), aiohttp.ClientSession() as session:
        await endpoint.end(client.api_key)
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
        ({"messages": [{"content": "hello"}]}, None, "needs a role"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, None, "must be text"),
        ({"messages": [USER], "n": 0}, "n", "greater than or equal to 1"),
        ({"messages": [USER], "n": 10**9}, "n", "less than or equal to 128"),
        ({"messages": [USER], "max_tokens": 0}, "max_tokens", "greater than or equal to 1"),
        ({"messages": [USER], "temperature": -1}, "temperature", "greater than or equal to 0"),
        ({"messages": [USER], "temperature": "hot"}, "temperature", "number"),
        ({"messages": [USER], "top_p": 0}, "top_p", "greater than 0"),
        ({"messages": [USER], "frequency_penalty": 0.5}, "frequency_penalty", "only 0 is supported, got 0.5"),
        ({"messages": [USER], "response_format": {"type": "grammar"}}, "response_format", "text, json_object"),
        ({"messages": [USER], "response_format": {"type": "json_schema"}}, "response_format", "json_schema"),
        ({"messages": [USER], "tool_choice": "always"}, "tool_choice", "auto, none, required or a function"),
        ({"messages": [USER], "tool_choice": "required"}, "tool_choice", "one of the tools"),
        ({"messages": [USER], "tools": [ADD], "tool_choice": {"function": {"name": "x"}}}, "tool_choice", "one of the"),
        ({"messages": [USER], "parallel_tool_calls": False}, "parallel_tool_calls", "only true"),
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


async def test_the_responses_api_keeps_the_same_tokens_as_the_chat_api():
    async with serving([saying(CALL), saying("3")]) as (_, client, chat), client.openai() as openai:
        messages: list[Any] = [USER]
        for _ in range(2):
            done = await openai.chat.completions.create(model="tiny", messages=messages, tools=[ADD])
            message = done.choices[0].message
            messages.append(message.model_dump(exclude_none=True))
            messages += [{"role": "tool", "tool_call_id": c.id, "content": "3"} for c in message.tool_calls or []]
    async with serving([saying(CALL), saying("3")]) as (_, client, responses), client.openai() as openai:
        items: list[Any] = [USER]
        tool = {"type": "function", **ADD["function"], "strict": None}
        for _ in range(2):
            answer = await openai.responses.create(model="tiny", input=items, tools=[tool])
            items += [item.model_dump(exclude_none=True) for item in answer.output]
            calls = [item for item in answer.output if item.type == "function_call"]
            items += [{"type": "function_call_output", "call_id": c.call_id, "output": "3"} for c in calls]
    assert (answer.output_text, answer.status, answer.usage.output_tokens) == ("3", "completed", 2)
    assert tokens_of(responses) == tokens_of(chat)


async def test_the_messages_api_keeps_the_same_tokens_as_the_chat_api():
    async with serving([saying(CALL), saying("3")]) as (_, client, chat), client.openai() as openai:
        messages: list[Any] = [{"role": "system", "content": "Be short."}, USER]
        for _ in range(2):
            done = await openai.chat.completions.create(model="tiny", messages=messages, tools=[ADD])
            message = done.choices[0].message
            messages.append(message.model_dump(exclude_none=True))
            messages += [{"role": "tool", "tool_call_id": c.id, "content": "3"} for c in message.tool_calls or []]
    function = ADD["function"]
    tool = {"name": function["name"], "description": function["description"], "input_schema": function["parameters"]}
    async with serving([saying(CALL), saying("3")]) as (_, client, anthropic_episode), client.anthropic() as anthropic:
        said: list[Any] = [USER]
        for _ in range(2):
            answer = await anthropic.messages.create(
                model="tiny", system="Be short.", messages=said, tools=[tool], max_tokens=50
            )
            said.append({"role": "assistant", "content": [block.model_dump() for block in answer.content]})
            calls = [block for block in answer.content if block.type == "tool_use"]
            said.append(
                {
                    "role": "user",
                    "content": [{"type": "tool_result", "tool_use_id": c.id, "content": "3"} for c in calls],
                }
            )
    assert (answer.content[0].text, answer.stop_reason, answer.usage.output_tokens) == ("3", "end_turn", 2)
    assert tokens_of(anthropic_episode) == tokens_of(chat)


async def test_streams_of_the_other_apis_end_in_the_whole_answer():
    async with serving([saying(CALL), saying("3"), saying("3")]) as (_, client, _):
        async with client.openai() as openai:
            tool = {"type": "function", **ADD["function"], "strict": None}
            async with openai.responses.stream(model="tiny", input="What is 1 + 2?", tools=[tool]) as stream:
                (call,) = (await stream.get_final_response()).output
            assert (call.type, call.name, json.loads(call.arguments)) == ("function_call", "add", {"a": 1})
            async with openai.responses.stream(model="tiny", input="What is 1 + 2?") as stream:
                assert (await stream.get_final_response()).output_text == "3"
        async with client.anthropic() as anthropic:
            async with anthropic.messages.stream(model="tiny", messages=[USER], max_tokens=50) as events:
                final = await events.get_final_message()
            assert (final.content[0].text, final.stop_reason) == ("3", "end_turn")


async def test_errors_of_the_messages_api_have_its_form():
    async with serving([]) as (_, client, _), client.anthropic() as anthropic:
        with pytest.raises(AnthropicBadRequest) as caught:
            await anthropic.messages.create(model="tiny", messages=[USER], max_tokens=0)
    assert caught.value.body["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("path", "body", "param", "message"),
    [
        ("responses", {}, "input", "missing"),
        ("responses", {"input": "x", "previous_response_id": "r1"}, "previous_response_id", "unknown name"),
        ("responses", {"input": [{"type": "web_search_call"}]}, "input", "not supported"),
        ("responses", {"input": "x", "tools": [{"type": "web_search"}]}, "tools", "only functions"),
        ("responses", {"input": "x", "truncation": "auto"}, "truncation", "disabled"),
        ("messages", {"messages": [USER]}, None, "max_tokens: is missing"),
        ("messages", {"messages": [USER], "max_tokens": 5, "thinking": {"type": "enabled"}}, None, "only disabled"),
        ("messages", {"messages": [{"role": "user", "content": [{"type": "image"}]}], "max_tokens": 5}, None, "image"),
        ("messages", {"messages": [USER], "max_tokens": 5, "tool_choice": {"type": "any"}}, None, "of the tools"),
    ],
)
async def test_wrong_requests_of_the_other_apis_are_refused_by_name(
    path: str, body: dict[str, Any], param: str | None, message: str
):
    status, answer = await ask([saying("3")], body, path)
    assert (status, answer["error"]["type"]) == (400, "invalid_request_error")
    assert answer["error"].get("param") == param
    assert message in answer["error"]["message"]


async def test_tokens_under_a_json_schema_are_not_trained_on():
    async with serving([saying('{"a": 1}')]) as (_, client, episode), client.openai() as openai:
        await openai.chat.completions.create(
            model="tiny", messages=[USER], response_format={"type": "json_object"}
        )  # fmt: skip
    assert [turn.is_trained for turn in episode.turns] == [False]


def tokens_of(episode: Episode) -> list[tuple[list[int], list[int]]]:
    return [(s.token_ids.tolist(), s.loss_mask.tolist()) for s in episode.ledger.sequences]


async def test_what_is_being_sampled_ends_with_its_trajectory():
    async with serving([saying("3")], hangs=True) as (endpoint, client, episode), client.openai() as openai:
        await openai.chat.completions.create(model="tiny", messages=[USER])
        running = asyncio.create_task(openai.chat.completions.create(model="tiny", messages=[USER]))
        while len(episode.turns) < 2:
            await asyncio.sleep(0)
        await endpoint.end(client.api_key)
        with pytest.raises(NotFoundError):
            await running
    assert [sequence.num_sampled for sequence in episode.ledger.sequences] == [2, 0]


@pytest.mark.parametrize("tools_first", [True, False])
async def test_the_seed_of_a_turn_does_not_depend_on_the_order_of_requests(tools_first: bool):
    async with serving([saying("3")] * 4) as (_, client, episode), client.openai() as openai:
        for with_tools in (tools_first, not tools_first):
            given: Any = {"model": "tiny", "tools": [ADD] if with_tools else []}
            messages: list[Any] = [USER]
            done = await openai.chat.completions.create(messages=messages, **given)
            messages += [done.choices[0].message.model_dump(exclude_none=True), USER]
            await openai.chat.completions.create(messages=messages, **given)
    assert seeds_of(episode) == sorted(seed(turn) for turn in ("0", "0", "1", "1"))


async def test_equal_requests_have_seeds_of_their_own():
    async with serving([saying("3")] * 3) as (_, client, episode), client.openai() as openai:
        await openai.chat.completions.create(model="tiny", messages=[USER], n=3)
    assert seeds_of(episode) == sorted(seed(turn) for turn in ("0", "0.1", "0.2"))


def seed(turn: str) -> int:
    return request_seed(SAMPLING.seed or 0, PROMPT.id, 0, turn, 0)


def seeds_of(episode: Episode) -> list[int]:
    engine: Any = episode.engine
    return sorted(request.sampling.seed for request in engine.requests)


async def test_a_stop_string_ends_the_text_and_is_not_in_it():
    async with serving([saying_raw("Thought\nObservation:")] * 2) as (_, client, episode):
        async with client.openai() as openai:
            done = await openai.chat.completions.create(model="tiny", messages=[USER], stop=["Observation:"])
        async with client.anthropic() as anthropic:
            told = await anthropic.messages.create(
                model="tiny", messages=[USER], stop_sequences=["Observation:"], max_tokens=50
            )
    assert done.choices[0].message.content == "Thought"
    assert (told.content[0].text, told.stop_reason, told.stop_sequence) == ("Thought", "stop_sequence", "Observation:")
    assert all(text_of(sequence).endswith("Thought\nObservation:") for sequence in episode.ledger.sequences)


@pytest.mark.parametrize("given", [{}, {"tools": [ADD], "tool_choice": "none"}])
async def test_without_tools_nothing_is_a_call(given: dict[str, Any]):
    status, answer = await ask([saying(CALL)], {"messages": [USER], **given})
    (choice,) = answer["choices"]
    assert (status, choice["finish_reason"], choice["message"]["content"]) == (200, "stop", CALL)


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        ("chat/completions", {"messages": [USER], "top_k": 10**30}, "top_k"),
        ("chat/completions", {"messages": [USER], "temperature": 3}, "temperature"),
        ("chat/completions", {"messages": [USER], "stop": [""]}, "stop"),
        ("chat/completions", {"messages": [USER], "seed": 10**30}, "seed"),
        ("chat/completions", {"messages": [{"role": "assistant", "tool_calls": 5}, USER]}, "tool_calls"),
        ("chat/completions", {"messages": [USER], "tools": [tool_with("abc")]}, "not a JSON schema"),
        ("chat/completions", {"messages": [USER], "tools": [tool_with({"properties": [1]})]}, "not a JSON schema"),
        ("chat/completions", {"messages": [USER], "tools": [tool_with({"properties": {"a": 5}})]}, "not a JSON schema"),
        ("responses", {"input": [{"role": "assistant", "content": 5}]}, "JSON objects"),
    ],
)
async def test_values_that_the_engine_or_a_template_cannot_take_are_refused(path: str, body: Any, message: str):
    status, answer = await ask([saying("3")], body, path)
    assert (status, answer["error"]["type"]) == (400, "invalid_request_error")
    assert message in answer["error"]["message"]


async def test_half_a_surrogate_pair_is_replaced():
    status, _ = await ask([saying("3")], '{"messages": [{"role": "user", "content": "\\ud800"}]}')
    assert status == 200


async def test_what_nobody_expects_is_an_error_in_the_form_of_the_api(monkeypatch: pytest.MonkeyPatch):
    async def fail(self: Policy, *given: Any, **named: Any) -> None:
        raise RecursionError("too deep")

    monkeypatch.setattr(Policy, "chat", fail)
    status, answer = await ask([saying("3")], {"messages": [USER]})
    assert (status, answer["error"]["type"]) == (500, "server_error")
    assert answer["error"]["message"] == "RecursionError: too deep"


async def test_more_lists_of_tools_than_are_kept_are_served(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("rl.serving.dialogs._MOST", 2)
    async with serving([saying("3")] * 4) as (_, client, _), client.openai() as openai:
        for name in ("a", "b", "c", "a"):
            tool: Any = {"type": "function", "function": {**ADD["function"], "name": name}}
            await openai.chat.completions.create(model="tiny", messages=[USER], tools=[tool])


@pytest.mark.parametrize(("choice", "is_single"), [("required", False), ("add", True)])
async def test_a_required_call_is_a_form_that_the_engine_follows_and_is_not_trained_on(choice: str, is_single: bool):
    named: Any = {"type": "function", "function": {"name": choice}}
    other: Any = {"type": "function", "function": {**ADD["function"], "name": "other"}}
    async with serving([saying(CALL)] * 3) as (_, client, episode):
        async with client.openai() as openai:
            done = await openai.chat.completions.create(
                model="tiny", messages=[USER], tools=[ADD, other], tool_choice=named if is_single else "required"
            )
            tools: Any = [{"type": "function", **tool["function"]} for tool in (ADD, other)]
            told: Any = {"type": "function", "name": choice} if is_single else "required"
            await openai.responses.create(model="tiny", input="one", tools=tools, tool_choice=told)
        async with client.anthropic() as anthropic:
            given: Any = [
                {"name": tool["function"]["name"], "input_schema": ADD["function"]["parameters"]}
                for tool in (ADD, other)
            ]
            asked: Any = {"type": "tool", "name": choice} if is_single else {"type": "any"}
            await anthropic.messages.create(
                model="tiny", messages=[USER], tools=given, tool_choice=asked, max_tokens=50
            )
    assert done.choices[0].finish_reason == "tool_calls"
    assert [turn.is_trained for turn in episode.turns] == [False] * 3
    engine: Any = episode.engine
    for request in engine.requests:
        form = json.loads(request.sampling.structural_tag)["format"]
        first, *rest = form["tags"]
        assert (form["stop_after_first"], len(rest)) == (is_single, 0 if is_single else 1)
        assert first["begin"] + '{"a": 1}' + first["end"] == CALL
        assert first["content"]["json_schema"] == ADD["function"]["parameters"]
