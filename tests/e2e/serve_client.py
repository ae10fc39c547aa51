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
