"""Whole runs of the training loop in one process: a real actor of a tiny model, and an engine that says anything."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from rl import train as page
from rl.chat.parsers import PARSERS
from rl.chat.renderer import Renderer, load_tokenizer
from rl.cluster.actors import ActorGroup
from rl.cluster.local import LocalWorkers
from rl.cluster.ranks import LocalRanks
from rl.cluster.rollouts import RolloutGroup
from rl.config.schema import Config
from rl.interfaces import Rollouts
from rl.observability.busy_clock import BusyClock
from rl.observability.run_directory import RunDirectory
from rl.rollout.agent_loop import AgentLoop
from rl.run.run import Run
from rl.training.actor import Actor
from rl.types import Generation, Prompt, Sampling, Scores, Trajectory, WeightUpdate
from tests.fakes import said
from tests.tiny import make_tiny_model
from tests.update_case import update_config

PROMPTS = [Prompt(f"p-{i}", [{"role": "user", "content": f"What is {i} + 2?"}], str(i + 2), "sums") for i in range(8)]


def make_config(folder: Path) -> Config:
    """Two prompts a step, four trajectories each, three steps, all recorded; the model is made in the folder."""
    config = update_config(make_tiny_model(folder / "model", num_layers=1))
    training, rl = config.megatron_training, config.rl_config
    training.output_dir, training.run_name = str(folder / "runs"), "recorded"
    training.global_batch_size, training.train_iters, training.save_interval = 2, 3, 1
    training.record_tokens_every = 1
    training.trackers = []
    rl.n_samples_per_prompt, rl.init_kl_coef = 4, 0.0
    rl.max_packing_token_size = 128
    config.actor_config.lr = 1e-3
    return config


class Engine:
    """Says up to eight tokens that follow from the prompt and the weights' version, with log-probs near -6."""

    def __init__(self) -> None:
        self.busy, self.version = BusyClock(), 0
        self.said: list[tuple[list[int], list[float]]] = []
        """What it sampled: token ids and log-probs."""

    async def generate(self, token_ids: list[int], sampling: Sampling, *, session_id: str) -> Generation:
        random = np.random.default_rng(zlib.crc32(f"{session_id} {self.version}".encode()))
        sampled = [int(i) for i in random.integers(3, 300, size=random.integers(2, 8))]
        generation = said([*sampled, 2], version=self.version)
        logprobs = [float(x) for x in random.normal(-6.0, 0.2, len(sampled) + 1)]
        self.said.append((generation.token_ids, logprobs))
        return Generation(generation.token_ids, logprobs, generation.finish_reason, self.version)

    async def update_weights(self, update: WeightUpdate) -> None:
        self.version = update.version


class Rewards:
    """Scores 0, 0.5 or 1 by the text's length; every trajectory of some prompts 0, and one fails."""

    async def score(self, trajectory: Trajectory) -> Scores:
        if trajectory.prompt.id.startswith("p-3"):
            return Scores(0.0, {"length": 0.0})
        if trajectory.id == "p-2/0":
            return Scores(reward_error="length: boom")
        value = len(trajectory.response_text) % 3 / 2
        return Scores(value, {"length": value})

    def close(self) -> None: ...


@contextmanager
def sampling(config: Config, engine: Engine) -> Iterator[RolloutGroup]:
    """Rollouts with this engine."""
    renderer = Renderer(load_tokenizer(config.actor_config.load), "empty", [])
    loop = AgentLoop(engine, renderer, None, PARSERS["hermes"], config)
    with asyncio.Runner() as runner:
        workers: Any = LocalWorkers(engine, loop, Rewards(), config, runner.get_loop())  # type: ignore[arg-type]
        yield RolloutGroup(workers, PROMPTS, config)


def train(config: Config, rollouts: Rollouts) -> RunDirectory:
    """Run the loop with a real actor, and a reference where a KL term needs one."""
    make = partial(Actor, config)
    with Run.open(config, "recorded") as run, make() as actor, ExitStack() as stack:
        references = None
        if config.rl_config.init_kl_coef > 0:
            references = LocalRanks([stack.enter_context(make(loss="reference", parallel=actor.parallel))])
        shards = run.directory.path / "shards"
        shards.mkdir()
        group = ActorGroup(LocalRanks([actor]), references, config, shards, nodes=["here"])
        page.train(config, run, group, rollouts, [])
    return run.directory
