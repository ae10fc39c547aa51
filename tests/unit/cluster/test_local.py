from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from rl.chat.parsers import PARSERS
from rl.chat.renderer import Renderer
from rl.cluster.local import LocalWorkers
from rl.cluster.rollouts import RolloutGroup
from rl.config.schema import Config
from rl.config.validate import find_problems
from rl.errors import RolloutError
from rl.observability.busy_clock import BusyClock
from rl.observability.trajectories import read_records
from rl.rewards.registry import load_rewards
from rl.rollout.agent_loop import AgentLoop
from rl.types import Generation, Prompt, Sampling, WeightUpdate
from tests.fakes import ScriptedEngine, said, word_tokenizer

PROMPTS = [Prompt(f"p{i}", [{"role": "user", "content": "what"}], "one", "test") for i in range(3)]


class Engine(ScriptedEngine):
    """Says the same always, or dies; counts how many requests it has at once."""

    def __init__(self, *, is_dead: bool = False) -> None:
        super().__init__([])
        self.is_dead, self.num_running, self.most_running = is_dead, 0, 0
        self.busy = BusyClock()

    async def generate(self, token_ids: list[int], sampling: Sampling, *, session_id: str) -> Generation:
        if self.is_dead:
            raise RolloutError("engine 0: died. See its log.")
        self.num_running += 1
        self.most_running = max(self.most_running, self.num_running)
        with self.busy:
            await asyncio.sleep(0.001)
        self.num_running -= 1
        return said([21, 2])

    async def update_weights(self, update: WeightUpdate) -> None:
        self.version = update.version


def make_rollouts(engine: Engine, events: asyncio.AbstractEventLoop) -> RolloutGroup:
    config = Config()
    config.rl_config.n_samples_per_prompt, config.generate_config.max_num_seqs = 2, 1
    loop = AgentLoop(engine, Renderer(word_tokenizer(), "empty", []), None, PARSERS["hermes"], config)
    workers = LocalWorkers(engine, loop, load_rewards(["base_acc"], [1.0]), config, events)
    return RolloutGroup(workers, PROMPTS, config)


def test_local_workers_give_scored_groups_in_order_with_rows_and_records_at_hand(tmp_path: Path) -> None:
    engine = Engine()
    with asyncio.Runner() as runner:
        rollouts = make_rollouts(engine, runner.get_loop())
        rollouts.update_weights(WeightUpdate(3, ()))
        metrics: dict[str, float] = {}
        groups = rollouts.take(3, metrics)
        rollouts.write_trajectories(tmp_path / "step.jsonl", groups)
    assert engine.version == 3
    assert 0.0 < metrics["rollout/engine_idle_share"] < 1.0
    assert metrics["timing_s/reward"] > 0.0
    assert sorted(group.prompt.id for group in groups) == ["p0", "p1", "p2"]
    assert all(t.score is not None for group in groups for t in group.trajectories)
    rows = rollouts.fetch_rows(groups[0])
    assert [row.token_ids.tolist()[-2:] for row in rows] == [[21, 2], [21, 2]]
    assert [t.sequences for t in rollouts.fetch_record(groups[0])] == [[], []]
    assert len(read_records(tmp_path / "step.jsonl")) == 6
    assert engine.most_running <= 2  # one group of two: twice max_num_seqs


def test_local_workers_end_the_run_with_their_engine() -> None:
    with asyncio.Runner() as runner, pytest.raises(RolloutError, match="the engine died"):
        make_rollouts(Engine(is_dead=True), runner.get_loop()).take(1, {})


def test_a_run_in_one_process_has_one_of_each() -> None:
    config = Config()
    config.rl_config.in_process = True
    assert not [p for p in find_problems(config) if "in_process" in p.text]
    config.rl_config.actor_resource.num_devices = config.rl_config.rollout_resource.num_devices = 2
    config.rl_config.ray_address, config.rl_config.use_integrated_worker = "auto", False
    config.rl_config.num_reward_workers = 2
    found = [p.text.partition(":")[0] for p in find_problems(config) if "in_process" in p.text]
    assert found == [
        "rl_config.actor_resource.num_devices",
        "rl_config.rollout_resource.num_devices",
        "rl_config.ray_address",
        "rl_config.use_integrated_worker",
        "rl_config.num_reward_workers",
    ]
