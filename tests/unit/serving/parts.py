"""A scripted engine behind the real endpoint, with a real tokenizer."""

from __future__ import annotations

import functools
import json
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
from transformers import PreTrainedTokenizerFast

from rl.chat.parsers import PARSERS
from rl.chat.renderer import Renderer, load_tokenizer
from rl.config.schema import Config, RLConfig
from rl.rollout.agent_loop import AgentLoop
from rl.rollout.dialog import Dialog
from rl.rollout.episode import Episode
from rl.rollout.rollout_function import Policy
from rl.rollout.tool_environment import ToolEnvironment
from rl.serving.agents import Agents
from rl.serving.client import AgentClient
from rl.serving.dialogs import Dialogs
from rl.serving.endpoint import Endpoint, Plain
from rl.types import Generation, Prompt, Sampling, TokenSequence, Trajectory
from tests.fakes import ScriptedEngine, said
from tests.tiny import make_tiny_tokenizer

PROMPT = Prompt("p", [{"role": "user", "content": "What is 1 + 2?"}], "3", "test")
HEAD = (
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\nWhat is 1 + 2?<|im_end|>\n"
    "<|im_start|>assistant\n"
)
CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'
USER = {"role": "user", "content": "What is 1 + 2?"}
SAMPLING = Sampling(temperature=1.0, max_tokens=100)


def make_config(name: str, **rl: object) -> Config:
    config = Config()
    config.actor_config.load = "models/tiny"
    config.rl_config.multi_turn_enable = True
    config.rl_config.agent_function = f"tests.unit.serving.agents:{name}"
    for key, value in rl.items():
        assert hasattr(config.rl_config, key)
        setattr(config.rl_config, key, value)
    return config


@asynccontextmanager
async def agent_loop(engine: Any, config: Config) -> AsyncIterator[AgentLoop]:
    renderer = make_renderer()
    agents = await Agents.start(config, Dialog(renderer, None, PARSERS["hermes"]))
    assert agents is not None
    try:
        yield AgentLoop(engine, renderer, None, PARSERS["hermes"], config, agents=agents)
    finally:
        await agents.close()


def make_policy(engine: Any, *, max_response: int = 100, prompt: Prompt = PROMPT) -> Policy:
    renderer, parser, rl = make_renderer(), PARSERS["hermes"], RLConfig(multi_turn_enable=True)
    episode = Episode(
        engine, renderer, prompt, 0, SAMPLING, stop=(), max_context=4096, max_response=max_response
    )  # fmt: skip
    return Policy(episode, parser, ToolEnvironment(None, renderer, parser, rl, None, lambda turn: None))


@asynccontextmanager
async def serving(
    script: Sequence[Generation], *, hangs: bool = False, plain: Plain | None = None
) -> AsyncIterator[tuple[Endpoint, AgentClient, Episode]]:
    policy = make_policy(ScriptedEngine(list(script), hangs=hangs))
    dialogs = Dialogs(tokenizer(), RLConfig(multi_turn_enable=True))
    endpoint = Endpoint(dialogs, model="tiny", max_model_len=4096, plain=plain)
    await endpoint.start()
    try:
        yield endpoint, endpoint.open(policy, SAMPLING), policy.episode
    finally:
        await endpoint.close()


async def ask(script: Sequence[Generation], body: Any, path: str = "chat/completions") -> tuple[int, Any]:
    async with serving(script) as (_, client, _):
        return await post(f"{client.base_url}/{path}", body)


async def post(url: str, body: Any, **headers: str) -> tuple[int, Any]:
    data = body if isinstance(body, str) else json.dumps(body)
    headers = {"Content-Type": "application/json", **headers}
    async with aiohttp.ClientSession() as session, session.post(url, data=data, headers=headers) as answer:
        return answer.status, await answer.json()


@functools.cache
def tokenizer() -> PreTrainedTokenizerFast:
    with tempfile.TemporaryDirectory() as folder:
        return load_tokenizer(make_tiny_tokenizer(Path(folder)))


def make_renderer() -> Renderer:
    return Renderer(tokenizer(), "empty", [])


def saying(text: str) -> Generation:
    return said([*ids(text), *ids("<|im_end|>")])


def saying_raw(text: str) -> Generation:
    """A generation that a stop string ended."""
    return said(ids(text))


def ids(text: str) -> list[int]:
    found: list[int] = tokenizer().encode(text, add_special_tokens=False)
    return found


def text_of(sequence: TokenSequence) -> str:
    text: str = tokenizer().decode(sequence.token_ids)
    return text


async def run(name: str, script: list[Any], **rl: object) -> Trajectory:
    async with agent_loop(ScriptedEngine(script), make_config(name, **rl)) as loop:
        return await loop.run(PROMPT, 0, SAMPLING)
