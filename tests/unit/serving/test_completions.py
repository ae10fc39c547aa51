"""Completions of texts and of token ids over real HTTP: OpenAI's API, vLLM's, and the tokenizer's routes."""

from __future__ import annotations

from typing import Any

import pytest
from openai import BadRequestError

from tests.fakes import said
from tests.unit.serving.parts import HEAD, USER, ask, ids, post, saying, saying_raw, serving, text_of, tokenizer
from tests.unit.serving.test_endpoint import ADD, tokens_of
from tests.unit.serving.test_identity import Recorded


async def test_a_text_is_continued_without_a_chat_template():
    body = {"prompt": "one", "logprobs": 1, "return_token_ids": True, "max_tokens": 10}
    status, answer = await ask([saying(" two")], body, "completions")
    (choice,) = answer["choices"]
    sampled = ids(" two<|im_end|>")
    assert (status, answer["object"], answer["id"][:5]) == (200, "text_completion", "cmpl-")
    assert (choice["text"], choice["finish_reason"], choice["stop_reason"]) == (" two", "stop", None)
    assert (choice["prompt_token_ids"], choice["token_ids"]) == (ids("one"), sampled)
    logprobs = choice["logprobs"]
    assert "".join(logprobs["tokens"]) == " two<|im_end|>"
    assert logprobs["text_offset"][:2] == [0, len(logprobs["tokens"][0])]
    assert logprobs["token_logprobs"] == pytest.approx([-token / 100 for token in sampled], abs=1e-5)
    num = len(ids("one")), len(sampled)
    assert answer["usage"] == {"prompt_tokens": num[0], "completion_tokens": num[1], "total_tokens": sum(num)}


async def test_a_text_that_repeats_what_was_said_keeps_the_sampled_ids():
    odd = [ids(letter)[0] for letter in "tool"]
    assert odd != ids("tool")
    async with serving([said(odd), saying("!")]) as (_, client, episode), client.openai() as openai:
        first = await openai.completions.create(model="tiny", prompt="one ")
        await openai.completions.create(model="tiny", prompt=f"one {first.choices[0].text} three")
    (sequence,) = episode.ledger.sequences
    start = len(ids("one "))
    assert sequence.token_ids[start : start + 4].tolist() == odd
    assert sequence.num_sampled == 4 + len(ids("!<|im_end|>"))
    assert text_of(sequence) == "one tool three!<|im_end|>"


async def test_ids_in_and_out_make_one_sequence():
    async with serving([saying("2"), saying("4")]) as (_, client, episode):
        prompt = ids("one")
        for _ in range(2):
            body = {"prompt": prompt, "return_token_ids": True}
            _, answer = await post(f"{client.base_url}/completions", body)
            prompt = [*prompt, *answer["choices"][0]["token_ids"], *ids("one")]
    assert [s.token_ids.tolist() for s in episode.ledger.sequences] == [prompt[: -len(ids("one"))]]


@pytest.mark.parametrize("prompts", [["one", "two"], [ids("one"), ids("two")]])
async def test_several_prompts_have_n_completions_each(prompts: Any):
    body = {"prompt": prompts, "n": 2, "return_token_ids": True}
    status, answer = await ask([saying(str(i)) for i in range(4)], body, "completions")
    assert status == 200
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
    contexts = [choice["prompt_token_ids"] for choice in answer["choices"]]
    assert contexts == [ids("one"), ids("one"), ids("two"), ids("two")]
    assert answer["usage"]["prompt_tokens"] == len(ids("one")) + len(ids("two"))


async def test_a_stream_of_a_completion_is_its_text_in_pieces():
    async with serving([saying("two three four")]) as (_, client, _), client.openai() as openai:
        stream = await openai.completions.create(
            model="tiny", prompt="one", stream=True, stream_options={"include_usage": True}
        )
        parts = [part async for part in stream]
    texts = [part.choices[0].text for part in parts[:-1]]
    assert len(texts) > 1
    assert "".join(texts) == "two three four"
    assert [part.choices[0].finish_reason for part in parts[:-1]] == [None] * (len(texts) - 1) + ["stop"]
    assert parts[-1].usage.completion_tokens == len(ids("two three four<|im_end|>"))


async def test_a_stop_string_ends_a_completion_and_is_told():
    status, answer = await ask([saying_raw("two\nStop")], {"prompt": "one", "stop": ["Stop"]}, "completions")
    (choice,) = answer["choices"]
    assert (status, choice["text"], choice["stop_reason"]) == (200, "two\n", "Stop")


async def test_completions_without_a_rollout_have_an_episode_each():
    plain = Recorded([saying("2"), saying("3")])
    async with serving([], plain=plain) as (endpoint, _, _):
        status, _ = await post(f"{endpoint.address}/v1/completions", {"prompt": ["one", "two"]})
    ((_, replies, policies),) = plain.completions
    assert (status, [reply.text for reply in replies], len(policies)) == (200, ["2", "3"], 2)


async def test_a_prompt_that_is_too_long_is_the_error_that_clients_know():
    async with serving([saying("3")]) as (_, client, _), client.openai() as openai:
        with pytest.raises(BadRequestError) as caught:
            await openai.completions.create(model="tiny", prompt="one " * 5000)
    assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "prompt")


@pytest.mark.parametrize(
    ("body", "param", "message"),
    [
        ({}, "prompt", "missing"),
        ({"prompt": ""}, "prompt", "at least 1 character"),
        ({"prompt": []}, "prompt", "list of at most"),
        ({"prompt": [[]]}, "prompt", "at least 1 item"),
        ({"prompt": [1, -1]}, "prompt", "greater than or equal to 0"),
        ({"prompt": [1, "one"]}, "prompt", "integer"),
        ({"prompt": [10**9]}, None, "token ids must be below"),
        ({"prompt": "one", "echo": True}, "echo", "only false"),
        ({"prompt": "one", "logprobs": 5}, "logprobs", "less than or equal to 1"),
        ({"prompt": "one", "suffix": "x"}, "suffix", "only"),
        ({"prompt": "one", "messages": [USER]}, "messages", "unknown name"),
    ],
)
async def test_a_wrong_completion_request_is_refused_by_name(body: Any, param: str | None, message: str):
    status, answer = await ask([saying("3")], body, "completions")
    assert (status, answer["error"]["param"]) == (400, param)
    assert message in answer["error"]["message"]


async def test_vllms_tokens_in_tokens_out():
    async with serving([saying("2"), saying("4")]) as (_, client, episode):
        url = client.base_url.removesuffix("/v1") + "/inference/v1/generate"
        sampling = {"max_tokens": 10, "temperature": 1.0, "logprobs": 0, "stop_token_ids": [3], "detokenize": False}
        body = {"model": "tiny", "token_ids": ids("one"), "sampling_params": sampling, "stream": False}
        status, answer = await post(url, body)
        (choice,) = answer["choices"]
        again = {**body, "token_ids": [*ids("one"), *choice["token_ids"], 7]}
        await post(url, again)
    sampled = ids("2<|im_end|>")
    assert (status, choice["token_ids"], choice["finish_reason"]) == (200, sampled, "stop")
    assert answer["request_id"]
    content = choice["logprobs"]["content"]
    assert [(c["token_id"], c["token"]) for c in content] == [(i, f"token_id:{i}") for i in sampled]
    assert [c["logprob"] for c in content] == pytest.approx([-i / 100 for i in sampled], abs=1e-5)
    engine: Any = episode.engine
    assert engine.requests[0].sampling.stop_token_ids == (3,)
    assert tokens_of(episode) == [
        (
            [*ids("one"), *sampled, 7, *ids("4<|im_end|>")],
            [0] * len(ids("one")) + [1] * len(sampled) + [0] + [1] * len(ids("4<|im_end|>")),
        )
    ]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"sampling_params": {}}, "token_ids"),
        ({"token_ids": [1]}, "sampling_params"),
        ({"token_ids": "one", "sampling_params": {}}, "token_ids"),
        ({"token_ids": [1], "sampling_params": {"repetition_penalty": 1.1}}, "repetition_penalty"),
        ({"token_ids": [1], "sampling_params": {}, "stream": True}, "stream"),
        ({"token_ids": [1], "sampling_params": {}, "features": {"a": 1}}, "features"),
    ],
)
async def test_a_wrong_generate_request_is_refused_by_name(body: Any, param: str):
    async with serving([saying("3")]) as (_, client, _):
        status, answer = await post(client.base_url.removesuffix("/v1") + "/inference/v1/generate", body)
    assert (status, answer["error"]["param"]) == (400, param)


async def test_tokens_of_a_text_and_of_a_chat():
    async with serving([saying("3")]) as (_, client, _):
        root = client.base_url.removesuffix("/v1")
        _, text = await post(f"{root}/tokenize", {"prompt": "one two", "return_token_strs": True})
        _, chat = await post(f"{root}/tokenize", {"messages": [USER]})
        _, whole = await post(f"{root}/tokenize", {"messages": [USER], "add_generation_prompt": False})
        _, shown = await post(f"{root}/tokenize", {"messages": [USER], "tools": [ADD]})
        _, told = await post(f"{root}/detokenize", {"tokens": chat["tokens"]})
    assert (text["tokens"], text["count"], text["max_model_len"]) == (ids("one two"), len(ids("one two")), 4096)
    assert len(text["token_strs"]) == text["count"]
    assert (chat["tokens"], chat["token_strs"], told) == (ids(HEAD), None, {"prompt": HEAD})
    assert HEAD.startswith(tokenizer().decode(whole["tokens"]))
    assert shown["count"] >= chat["count"]


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("tokenize", {}, "prompt"),
        ("tokenize", {"prompt": "one", "messages": [USER]}, "prompt"),
        ("tokenize", {"prompt": 5}, "prompt"),
        ("tokenize", {"messages": []}, "messages"),
        ("tokenize", {"messages": [{"content": "x"}]}, "messages"),
        ("tokenize", {"prompt": "one", "model": "other"}, "model"),
        ("detokenize", {}, "tokens"),
        ("detokenize", {"tokens": [10**9]}, "tokens"),
        ("detokenize", {"tokens": "one"}, "tokens"),
    ],
)
async def test_a_wrong_tokenize_request_is_refused_by_name(path: str, body: Any, param: str):
    async with serving([]) as (_, client, _):
        status, answer = await post(f"{client.base_url.removesuffix('/v1')}/{path}", body)
    assert (status, answer["error"]["param"]) == (404 if param == "model" else 400, param)
