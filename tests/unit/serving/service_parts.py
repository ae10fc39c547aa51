"""The real service with a real tokenizer and HTTP, on an engine that always says the same; the test is the driver."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from rl.chat.parsers import PARSERS
from rl.config.schema import Config
from rl.config.serve import ServeConfig
from rl.rewards.registry import configured_rewards
from rl.rollout.dialog import Dialog
from rl.serving.server import start_server
from rl.serving.service import Service
from rl.serving.training import Event, GroupDone
from rl.types import Generation, Sampling
from tests.fakes import said
from tests.unit.serving.parts import ids, make_renderer


@dataclass
class SayingEngine:
    """Answers every request with the same text, under the version it is told."""

    text: str = "It is 3."
    version: int = 0
    num_requests: int = 0
    cancelled: int = 0
    blocks: asyncio.Event | None = None
    sessions: list[str] = field(default_factory=list)

    async def generate(self, token_ids: list[int], sampling: Sampling, *, session_id: str) -> Generation:
        self.num_requests += 1
        self.sessions.append(session_id)
        if self.blocks is not None:
            try:
                await self.blocks.wait()
            except asyncio.CancelledError:
                self.cancelled += 1
                raise
        return said([*ids(self.text), *ids("<|im_end|>")], version=self.version)


def service_config(**serve: Any) -> Config:
    config = Config()
    config.actor_config.load = "models/tiny"
    config.rl_config.multi_turn_enable = True
    config.rl_config.rollout_function = "service"
    config.rl_config.verifier_function, config.rl_config.verifier_weight = ["environment"], [1.0]
    config.rl_config.n_samples_per_prompt = 2
    config.rl_config.max_total_response_length = 200
    config.generate_config.sampling_config.max_tokens = 100
    config.serve_config = ServeConfig(port=0, **serve)
    return config


@dataclass
class Served:
    """A service that listens, and a client."""

    service: Service
    engine: SayingEngine
    address: str
    session: aiohttp.ClientSession
    folder: Path

    async def post(self, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
        """Post JSON, or raw text; returns status and answer."""
        data = body if isinstance(body, str | bytes) else json.dumps({} if body is None else body)
        headers = {"Content-Type": "application/json", **headers}
        async with self.session.post(self.url(path), data=data, headers=headers) as answer:
            return answer.status, await answer.json()

    async def get(self, path: str, **headers: str) -> tuple[int, Any]:
        async with self.session.get(self.url(path), headers=headers) as answer:
            return answer.status, await answer.json()

    def url(self, path: str) -> str:
        return path if path.startswith("http") else self.address + path

    async def open_group(self, n: int = 2, **body: Any) -> dict[str, Any]:
        status, group = await self.post("/v1/groups", {"prompt": "What is 1 + 2?", "n": n, **body})
        assert status == 200, group
        assert len(group["rollouts"]) == n
        return dict(group)

    async def chat(self, rollout: dict[str, str], **body: Any) -> tuple[int, Any]:
        asked = {"messages": [{"role": "user", "content": "What is 1 + 2?"}], **body}
        return await self.post(f"{rollout['base_url']}/chat/completions", asked)

    async def reward(self, rollout: dict[str, str], reward: Any, **body: Any) -> tuple[int, Any]:
        return await self.post(f"/rollouts/{rollout['id']}/reward", {"reward": reward, **body})

    async def begin(self, number: int = 0, names: set[str] | None = None) -> None:
        """Play the driver until the training waits for groups."""
        await self.service.use(self.service.config, self.folder, number, names or set())
        await self.service.begin_sampling(0)

    async def events(self) -> list[Event]:
        return await self.service.next_events(1.0)

    async def groups(self) -> list[GroupDone]:
        return [event for event in await self.events() if isinstance(event, GroupDone)]


@asynccontextmanager
async def served(folder: Path, config: Config | None = None, *, begins: bool = True) -> AsyncIterator[Served]:
    config = config or service_config()
    engine = SayingEngine()
    rewards = configured_rewards(config.rl_config)
    service = Service(config, engine, Dialog(make_renderer(), None, PARSERS["hermes"]), rewards.score, model="tiny")
    server = await start_server(service, config.serve_config)
    try:
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=20)) as session:
            found = Served(service, engine, server.address, session, folder)
            if begins:
                await service.begin_native()
                await found.begin()
            yield found
    finally:
        await server.close()
        rewards.close()
