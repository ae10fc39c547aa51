"""Requests with long texts: what cannot fit is refused at once."""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp
import pytest

from rl.rollout.rollout_function import Policy
from tests.unit.serving.parts import ask, post, saying, serving

LONG = "a " * 300_000  # more than 128 characters for each of 4096 tokens


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("chat/completions", {"messages": [{"role": "user", "content": LONG}], "n": 2}, "messages"),
        ("chat/completions", {"messages": [{"role": "user", "content": [{"type": "text", "text": LONG}]}]}, "messages"),
        ("completions", {"prompt": ["short", LONG]}, "prompt"),
    ],
)
async def test_a_text_that_cannot_fit_is_not_encoded(
    path: str, body: dict[str, Any], param: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delattr(Policy, "chat")
    monkeypatch.delattr(Policy, "complete")
    status, answer = await ask([saying("3")], body, path)
    assert (status, answer["error"]["code"], answer["error"]["param"]) == (400, "context_length_exceeded", param)
    assert "4096" in answer["error"]["message"]


async def test_others_are_answered_while_the_tokens_of_a_long_text_are_counted():
    async with serving([saying("3")]) as (_, client, episode):
        words = " ".join(f"word{number}" for number in range(50_000))
        body = {"messages": [{"role": "user", "content": words}]}
        long = asyncio.create_task(post(f"{client.base_url}/chat/completions", body))
        await asyncio.sleep(0.1)
        async with aiohttp.ClientSession() as session, session.get(f"{client.base_url}/models") as answer:
            assert answer.status == 200
        assert not long.done()
        status, told = await long
    assert (status, told["error"]["code"], episode.turns) == (400, "context_length_exceeded", [])


async def test_a_body_of_more_than_8_mib_is_refused():
    async with serving([saying("3")]) as (_, client, _):
        body = {"messages": [{"role": "user", "content": "a" * (9 << 20)}]}
        assert (await post(f"{client.base_url}/chat/completions", body))[0] == 413
