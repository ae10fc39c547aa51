"""Agents of the tests, run in processes of their own."""

from __future__ import annotations

import json
import os
import subprocess
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from openai import APITimeoutError, BadRequestError

from rl.serving.client import AgentClient
from rl.types import Prompt

ADD = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Add one.",
        "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]},
    },
}


async def with_a_tool(prompt: Prompt, client: AgentClient, *, answer: str = "two") -> float:
    """A plain loop on the openai package."""
    messages: list[Any] = list(prompt.messages)
    async with client.openai() as openai:
        while True:
            done = await openai.chat.completions.create(model=client.model, messages=messages, tools=[ADD])
            message = done.choices[0].message
            messages.append(message.model_dump(exclude_none=True))
            if not message.tool_calls:
                return float((message.content or "").strip() == prompt.ground_truth)
            messages += [{"role": "tool", "tool_call_id": call.id, "content": answer} for call in message.tool_calls]


def plain(prompt: Prompt, client: AgentClient) -> dict[str, object]:
    """A plain function, with two samples at once, of which one is sampled greedily."""
    with client.openai_sync() as openai:
        first = openai.chat.completions.create(model=client.model, messages=prompt.messages, n=2)
        openai.chat.completions.create(model=client.model, messages=prompt.messages, temperature=0, logprobs=True)
    texts = [choice.message.content for choice in first.choices]
    return {"score": 0.5, "texts": json.dumps(texts), "turn_scores": [0.0, 1.0, 2.0]}


async def raises(prompt: Prompt, client: AgentClient) -> float:
    raise KeyError("no such room")


async def waits(prompt: Prompt, client: AgentClient) -> float:
    async with client.openai() as openai:
        await openai.chat.completions.create(model=client.model, messages=prompt.messages)
    return 1.0


async def endless(prompt: Prompt, client: AgentClient) -> float:
    messages: list[Any] = list(prompt.messages)
    async with client.openai() as openai:
        while True:
            done = await openai.chat.completions.create(model=client.model, messages=messages)
            messages += [done.choices[0].message.model_dump(exclude_none=True), {"role": "user", "content": "one"}]


async def returns_text(prompt: Prompt, client: AgentClient) -> str:
    return "good"


def leaves_a_request(prompt: Prompt, client: AgentClient) -> float:
    """Answers while another request is under way."""
    with client.openai_sync() as openai:
        openai.chat.completions.create(model=client.model, messages=prompt.messages)

    def ask() -> None:
        with client.openai_sync() as another:
            another.chat.completions.create(model=client.model, messages=prompt.messages)

    threading.Thread(target=ask, daemon=True).start()
    while not Path(prompt.extra["asked"]).exists():
        time.sleep(0.01)
    return 1.0


async def too_few_scores(prompt: Prompt, client: AgentClient) -> dict[str, object]:
    async with client.openai() as openai:
        for _ in range(2):
            await openai.chat.completions.create(model=client.model, messages=prompt.messages)
    return {"score": 1.0, "turn_scores": [1.0]}


async def gives_up_once(prompt: Prompt, client: AgentClient) -> dict[str, object]:
    """Its first request takes too long; it asks again."""
    async with client.openai() as openai:
        with suppress(APITimeoutError):
            await openai.chat.completions.create(model=client.model, messages=prompt.messages, timeout=0.5)
        await openai.chat.completions.create(model=client.model, messages=prompt.messages)
    return {"score": 1.0, "turn_scores": [0.25]}


async def blocks_or_not(prompt: Prompt, client: AgentClient) -> float:
    if prompt.id == "blocks":
        time.sleep(600)
    return 1.0


async def dies(prompt: Prompt, client: AgentClient) -> float:
    async with client.openai() as openai:
        with suppress(BadRequestError):
            await openai.chat.completions.create(
                model=client.model, messages=[{"role": "user", "content": "one " * 5000}]
            )
    os._exit(9)


async def starts_a_child(prompt: Prompt, client: AgentClient) -> dict[str, object]:
    return {"score": 1.0, "pid": f"pid {subprocess.Popen(['sleep', '600']).pid}"}


async def raises_much(prompt: Prompt, client: AgentClient) -> float:
    raise ValueError("x" * 3_000_000)
