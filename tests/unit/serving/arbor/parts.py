"""Arbor's routes and the chat endpoint on a real server, in front of a model that answers from a function."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web

from rl.chat.parsers import PARSERS
from rl.config.schema import Config
from rl.rollout.episode import Episode
from rl.rollout.rollout_function import Policy, Reply
from rl.rollout.tool_environment import ToolEnvironment
from rl.services.http_guard import make_application
from rl.serving.arbor.protocol import Arbor
from rl.serving.chat_request import ChatRequest
from rl.serving.dialogs import Dialogs
from rl.serving.endpoint import Endpoint
from rl.serving.job import JobState, JobStatus
from rl.types import Generation, Prompt, Sampling, Trajectory, WeightUpdate
from tests.fakes import said
from tests.unit.serving.parts import ids, make_renderer, tokenizer

MODEL = "tiny"


@dataclass
class RecordingTrainer:
    """A `Trainer` that keeps what it gets; an update takes until `gate` is set."""

    model: str = MODEL
    status: JobStatus = field(default_factory=JobStatus)
    changes: dict[str, Any] = field(default_factory=dict)
    open_batch: list[list[Trajectory]] = field(default_factory=list)
    batches: list[list[list[Trajectory]]] = field(default_factory=list)
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    error: Exception | None = None

    def __post_init__(self) -> None:
        self.gate.set()

    async def begin(self, name: str, changes: Mapping[str, Any]) -> None:
        self.changes = dict(changes)
        self.status = JobStatus(JobState.SAMPLING, name=name)

    async def submit(self, group: list[Trajectory]) -> None:
        self.open_batch.append(group)

    async def close_batch(self) -> None:
        if not self.open_batch:
            return
        self.status = replace(self.status, state=JobState.UPDATING)
        await self.gate.wait()
        if self.error is not None:
            self.status = replace(self.status, state=JobState.FAILED, failure=f"{self.error}")
            raise self.error
        self.batches.append(self.open_batch)
        self.open_batch = []
        self.status = replace(self.status, state=JobState.SAMPLING, step=self.status.step + 1)

    async def save(self, name: str) -> Path:
        path = Path("/runs") / name
        self.status = replace(
            self.status, checkpoints={**self.status.checkpoints, name: str(path)}, last_checkpoint=name
        )
        return path

    async def end(self) -> None:
        self.status = replace(self.status, state=JobState.ENDED)

    @property
    def texts(self) -> list[list[list[str]]]:
        """What the model said in each group of each batch, as it was sampled."""
        return [[[one.turns[0].text for one in group] for group in batch] for batch in self.batches]


@dataclass
class Speaker:
    """An engine that answers each prompt with a text, of the trainer's version."""

    answer: Callable[[str], str]
    trainer: RecordingTrainer
    prompts: list[str] = field(default_factory=list)

    async def generate(self, token_ids: list[int], sampling: Sampling, *, session_id: str) -> Generation:
        prompt: str = tokenizer().decode(token_ids)
        self.prompts.append(prompt)
        return said([*ids(self.answer(prompt)), *ids("<|im_end|>")], version=self.trainer.status.step)

    async def update_weights(self, update: WeightUpdate) -> None:
        raise AssertionError("it has no weights")

    async def sleep(self) -> None: ...

    async def shutdown(self) -> None: ...


@dataclass
class Plain:
    """Serves completions outside of rollouts, and hands them to the protocol."""

    engine: Speaker
    arbor: Arbor
    config: Config
    numbers: itertools.count = field(default_factory=itertools.count)

    def new_policy(self, request: ChatRequest, number: int) -> tuple[Policy, Sampling]:
        renderer, parser = make_renderer(), PARSERS["hermes"]
        temperature = self.engine.trainer.changes.get("generate_config.sampling_config.temperature", 1.0)
        sampling = Sampling(temperature=temperature, max_tokens=4000)
        prompt = Prompt(f"plain-{next(self.numbers)}", [], "", "service")
        episode = Episode(self.engine, renderer, prompt, 0, sampling, stop=(), max_context=8000, max_response=8000)
        tools = ToolEnvironment(None, renderer, parser, self.config.rl_config, None, lambda turn: None)
        return Policy(episode, parser, tools), sampling

    def on_completion(self, request: ChatRequest, replies: Sequence[Reply], policies: Sequence[Policy]) -> None:
        self.arbor.on_completion(request, replies, policies)


def make_config() -> Config:
    config = Config()
    config.rl_config.multi_turn_enable = True
    config.rl_config.verifier_function = ["environment"]
    config.generate_config.max_model_len = 8000
    return config


@dataclass
class Served:
    """A server, its trainer, and a client's calls."""

    address: str
    trainer: RecordingTrainer
    arbor: Arbor
    engine: Speaker
    http: aiohttp.ClientSession

    async def post(self, route: str, body: Any = None) -> tuple[int, Any]:
        options = {} if body is None else {"json": body}
        async with self.http.post(f"{self.address}/v1/{route}", **options) as response:
            return response.status, await response.json()

    async def grpo(self, route: str, body: Any = None) -> dict[str, Any]:
        """The answer of a route of the training."""
        status, reply = await self.post(f"fine_tuning/grpo/{route}", body)
        assert status == 200, reply
        return reply

    async def refused(self, route: str, body: Any = None) -> tuple[int, str]:
        """Status and message of a route that refuses."""
        status, reply = await self.post(f"fine_tuning/grpo/{route}", body)
        assert status >= 400, reply
        return status, reply["error"]["message"]

    async def say(self, content: str, **options: Any) -> str:
        """The model's answer to a user's message."""
        messages = [{"role": "user", "content": content}]
        status, reply = await self.post("chat/completions", {"model": MODEL, "messages": messages, **options})
        assert status == 200, reply
        return reply["choices"][0]["message"]["content"]


@asynccontextmanager
async def serving(answer: Callable[[str], str], config: Config | None = None) -> AsyncIterator[Served]:
    config = config or make_config()
    trainer = RecordingTrainer()
    engine, arbor = Speaker(answer, trainer), Arbor(trainer, config)
    plain = Plain(engine, arbor, config)
    endpoint = Endpoint(
        Dialogs(tokenizer(), config.rl_config),
        model=MODEL,
        max_model_len=config.generate_config.max_model_len,
        plain=plain,
    )
    application = make_application([])
    endpoint.add_routes(application)
    arbor.add_to(application)
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=1.0, handler_cancellation=True)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        async with aiohttp.ClientSession() as http:
            yield Served(f"http://127.0.0.1:{runner.addresses[0][1]}", trainer, arbor, engine, http)
    finally:
        await runner.cleanup()


def sample(prompt: str, text: str, reward: float = 0.0) -> dict[str, Any]:
    """A sample as clients send it."""
    return {
        "messages": [{"role": "user", "content": prompt}],
        "completion": {"role": "assistant", "content": text},
        "reward": reward,
    }
