"""examples/openai_agent and the built-in agent loop with the same tool: the same tokens, and the same gradients."""

from __future__ import annotations

import asyncio
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from examples.openai_agent.agent import TOOLS, compute, train
from rl.batch.layout import packing_layout
from rl.batch.packing import pack_samples
from rl.config.schema import Config
from rl.rewards.registry import RewardSet, load_rewards
from rl.rollout.agent_loop import AgentLoop
from rl.rollout.dialog import load_dialog
from rl.rollout.group import Loop, run_group
from rl.serving.agents import Agents
from rl.serving.training import GroupDone
from rl.training.actor import Actor
from rl.types import FinishReason, Generation, Group, Prompt, Sampling
from tests.samples import make_samples
from tests.tiny import make_tiny_model
from tests.unit.serving.service_parts import served
from tests.update_case import UpdateTrace, trace_updates, update_config, with_logprobs

PROMPTS = [
    Prompt("a", [{"role": "user", "content": "What is 17 * 3?"}], "51", "test"),
    Prompt("b", [{"role": "user", "content": "What is 40 / 0?"}], "none", "test"),
]
SAMPLING = Sampling(temperature=0.7, max_tokens=300)
CALLS = [
    f'<tool_call>\n{{"name": "calculator", "arguments": {{"expression": "{expression}"}}}}\n</tool_call>'
    for expression in ("17 * 3", "40 / 0", "17 +", "3 ** 2")
]
TURNS = [*CALLS, "51 ", " none", "Let me see.\n" + CALLS[0], r"It is \boxed{51}."]
"""What the engine may say: calls that work and calls that fail, right answers and wrong ones."""


class SeededEngine:
    """Says one of `TURNS`, chosen by the request's tokens and seed; log-probs are those of a model."""

    def __init__(self, folder: Path, encode: Any, end: int) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        self.encode, self.end = encode, end
        self.seeds: set[tuple[str, int | None]] = set()

    async def generate(self, token_ids: list[int], sampling: Sampling, *, session_id: str) -> Generation:
        self.seeds.add((session_id, sampling.seed))
        name = hashlib.blake2b(json.dumps([token_ids, sampling.seed]).encode(), digest_size=4).digest()
        ids = [*self.encode(TURNS[int.from_bytes(name, "big") % len(TURNS)]), self.end]
        with torch.no_grad():
            logits = self.model(torch.tensor([token_ids + ids])).logits[0, len(token_ids) - 1 : -1]
        logprobs = (logits / sampling.temperature).log_softmax(-1).gather(1, torch.tensor(ids)[:, None])[:, 0]
        return Generation(ids, logprobs.tolist(), FinishReason.STOP, 0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("models") / "llama", "llama", num_layers=2)


def make_config(folder: Path, **rl: Any) -> Config:
    config = update_config(folder)
    given = {"multi_turn_enable": True, "max_tool_calls": 3, "n_samples_per_prompt": 4, "max_packing_token_size": 1024}
    for key, value in {**given, **rl}.items():
        assert hasattr(config.rl_config, key)
        setattr(config.rl_config, key, value)
    return config


async def groups_of(loop: Loop, config: Config, rewards: RewardSet) -> list[Group]:
    num_samples = config.rl_config.n_samples_per_prompt
    return list(await asyncio.gather(*(run_group(loop, p, num_samples, SAMPLING, rewards.score) for p in PROMPTS)))


async def built_in(folder: Path) -> tuple[list[Group], SeededEngine, Config]:
    config = make_config(folder, tool_config_path="configs/tools/calculator.yaml")
    dialog = load_dialog(config)
    engine = SeededEngine(folder, lambda text: dialog.renderer.encoder.encode(text, behind=True), _end(dialog.renderer))
    assert dialog.toolbox is not None
    assert dialog.toolbox.schemas == TOOLS
    try:
        loop = AgentLoop(engine, dialog.renderer, dialog.toolbox, dialog.parser, config)
        return await groups_of(loop, config, load_rewards(["base_acc"], [1.0])), engine, config
    finally:
        await dialog.toolbox.close()


async def agent(folder: Path) -> tuple[list[Group], SeededEngine, Config]:
    config = make_config(folder, agent_function="examples/openai_agent/agent.py:solve")
    dialog = load_dialog(config)
    engine = SeededEngine(folder, lambda text: dialog.renderer.encoder.encode(text, behind=True), _end(dialog.renderer))
    agents = await Agents.start(config, dialog)
    assert agents is not None
    try:
        loop = AgentLoop(engine, dialog.renderer, None, dialog.parser, config, agents=agents)
        return await groups_of(loop, config, load_rewards(["environment"], [1.0])), engine, config
    finally:
        await agents.close()


def _end(renderer: Any) -> int:
    return int(renderer.close_turn_ids[-1])


def updates(groups: list[Group], config: Config) -> UpdateTrace:
    samples = make_samples(groups, config, {})
    (mini_batch,) = pack_samples(samples, packing_layout(config, num_data_parallel=1)).mini_batches
    with Actor(config, num_threads=1) as actor:
        return trace_updates(actor, with_logprobs(mini_batch).micro_batches[0])


async def test_the_agent_and_the_built_in_loop_give_the_same_tokens_and_the_same_gradients(folder: Path) -> None:
    expected, its_engine, its_config = await built_in(folder)
    found, engine, config = await agent(folder)
    pairs = [
        (own, other)
        for group, theirs in zip(found, expected, strict=True)
        for own, other in zip(group.trajectories, theirs.trajectories, strict=True)
    ]
    for own, other in pairs:
        (sequence,), (wanted,) = own.sequences, other.sequences
        assert sequence.token_ids.tolist() == wanted.token_ids.tolist()
        assert sequence.loss_mask.tolist() == wanted.loss_mask.tolist()
        assert sequence.logprobs.tolist() == wanted.logprobs.tolist()
        assert own.failure is None
        assert own.score == other.score
    assert engine.seeds == its_engine.seeds
    assert max(len(own.turns) for own, _ in pairs) > 2
    assert {own.score for own, _ in pairs} == {0.0, 1.0}
    ours, theirs = updates(found, config), updates(expected, its_config)
    assert ours.metrics == theirs.metrics
    assert ours.metrics[0]["actor/grad_norm"] > 0
    for name, gradient in theirs.gradients.items():
        assert torch.equal(ours.gradients[name], gradient), name


async def test_the_agent_trains_the_model_of_a_service(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prompts = [Prompt(f"{i}", [{"role": "user", "content": "What is 1 + 2?"}], str(i), "test") for i in range(2, 6)]
    async with served(tmp_path) as service:
        service.engine.text = "3"
        client = asyncio.create_task(train(service.address, prompts, steps=2, num_prompts=2, num_samples=2))
        truths = []
        for step in (1, 2):  # the driver of the service
            groups: list[GroupDone] = []
            while len(groups) < 2:
                groups += await service.groups()
            truths.append(sorted(done.group.prompt.ground_truth for done in groups))
            for done in groups:
                right = float(done.group.prompt.ground_truth == "3")
                assert [trajectory.score for trajectory in done.group.trajectories] == [right, right]
            await service.service.begin_sampling(step)
        await client
    assert truths == [["4", "5"], ["2", "3"]]
    assert capsys.readouterr().out.splitlines()[-2:] == ["step 1: mean reward 0.000", "step 2: mean reward 0.500"]


def test_the_calculator_answers_wrong_calls_too() -> None:
    assert compute('{"expression": "17 * 3"}') == "51"
    assert compute('{"expression": "1 / 0"}').startswith("Error: ZeroDivisionError")
    assert compute('{"expr": "1"}') == "Error: KeyError: 'expression'"
    assert compute("[1").startswith("Error: JSONDecodeError")
