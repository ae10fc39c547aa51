"""A client of the service on the `openai` package: opens groups, plays their rollouts, sends rewards."""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp
from openai import AsyncOpenAI


async def play(address: str, names: list[str], num_rollouts: int) -> dict[str, Any]:
    """Lead groups to their end.

    Args:
        address: Of the service.
        names: Of the groups.
        num_rollouts: Of each group.

    Returns:
        The service's state then.
    """
    async with aiohttp.ClientSession(address, timeout=aiohttp.ClientTimeout(total=300)) as session:
        groups = [
            await _post(session, "/v1/groups", {"prompt": f"What is {name}?", "id": name, "n": num_rollouts})
            for name in names
        ]
        await asyncio.gather(*(_lead(session, rollout) for group in groups for rollout in group["rollouts"]))
        async with session.get("/v1/status") as answer:
            return dict(await answer.json())


async def wait_for_step(address: str, step: int) -> dict[str, Any]:
    """Wait until so many steps are done; returns the service's state."""
    async with (
        aiohttp.ClientSession(address, timeout=aiohttp.ClientTimeout(total=300)) as session,
        session.get(f"/v1/status?step={step}&timeout=200") as answer,
    ):
        return dict(await answer.json())


def long_request() -> dict[str, Any]:
    """A request whose four answers take hundreds of tokens, whatever the model would say."""
    schema = {"type": "array", "items": {"enum": [1, 2]}, "minItems": 400, "maxItems": 400}
    return {
        "messages": [{"role": "user", "content": "Say digits."}],
        "n": 4,
        "max_tokens": 600,
        "response_format": {"type": "json_schema", "json_schema": {"name": "digits", "schema": schema}},
    }


async def leave_in_mid_answer(address: str, *, is_streamed: bool) -> None:
    """Disconnect while the answer to `long_request` is sampled."""
    body = {**long_request(), "stream": is_streamed}
    async with aiohttp.ClientSession(address, timeout=aiohttp.ClientTimeout(total=120)) as session:
        begun = asyncio.Event()
        leaving = asyncio.create_task(_read(session, body, begun))
        await _wait_for_running(session, 4)
        if is_streamed:
            await begun.wait()
        assert not leaving.done()
        leaving.cancel()
        await asyncio.gather(leaving, return_exceptions=True)
        await _wait_for_running(session, 0)


async def ask_briefly(address: str) -> None:
    """Ask for four tokens."""
    async with aiohttp.ClientSession(address, timeout=aiohttp.ClientTimeout(total=60)) as session:
        short = {"messages": [{"role": "user", "content": "Hi."}], "max_tokens": 4}
        await _post(session, "/v1/chat/completions", short)


async def _read(session: aiohttp.ClientSession, body: dict[str, Any], begun: asyncio.Event) -> None:
    async with session.post("/v1/chat/completions", json=body) as answer:
        begun.set()
        await answer.read()


async def _wait_for_running(session: aiohttp.ClientSession, number: int) -> None:
    """Wait until so many requests are with the engines."""
    async with asyncio.timeout(60):
        while True:
            async with session.get("/v1/status") as answer:
                if (await answer.json())["requests_running"] == number:
                    return
            await asyncio.sleep(0.02)


async def _lead(session: aiohttp.ClientSession, rollout: dict[str, str]) -> None:
    async with AsyncOpenAI(base_url=rollout["base_url"], api_key=rollout["api_key"], max_retries=0) as client:
        answer = await client.chat.completions.create(
            model=rollout["model"], messages=[{"role": "user", "content": "Say digits."}], max_tokens=24
        )
    text = answer.choices[0].message.content or ""
    await _post(session, f"/rollouts/{rollout['id']}/reward", {"reward": sum(c.isdigit() for c in text) / 10})


async def _post(session: aiohttp.ClientSession, path: str, body: dict[str, Any]) -> dict[str, Any]:
    async with session.post(path, json=body) as answer:
        found = await answer.json()
        assert answer.status == 200, found
        return dict(found)
