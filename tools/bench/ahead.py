"""Trajectories per second with rollouts that run ahead of the training, against rollouts in step with it.

Engine, actor, publishes and an environment whose answers take 0.5 to 5 s are real. Both kinds of rollouts use the same
workers, in turn. Numbers of steps are overrides: `steps=6 rounds=2`.
"""

from __future__ import annotations

import asyncio
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from rl.batch.groups import estimate_advantages, plan_batch
from rl.batch.layout import packing_layout
from rl.batches import RunPlace
from rl.cluster.ahead_rollouts import AheadRollouts
from rl.cluster.launch import launch
from rl.cluster.rollouts import RolloutGroup
from rl.config.load import load_config
from rl.config.schema import Config
from rl.interfaces import Actor
from rl.observability.step_metrics import StepMetrics
from rl.train import publish_weights
from rl.types import Prompt
from tools.bench.figures import Figure, median_ratio, write_json

_SPEED_GOAL, _IDLE_GOAL = 1.6, 0.1
_NUM_TURNS, _SHORTEST_S, _LONGEST_S = 3, 0.5, 5.0
_SETTINGS = (
    "rl_config.environment=tools.bench.ahead:SlowWorld",
    "rl_config.verifier_function=[tools.bench.step:alternating]",
    "rl_config.max_staleness=1",
    "generate_config.sampling_config.max_tokens=16",
    "megatron_training.train_iters=1000000",
)


class SlowWorld:
    """Answers some turns, each after a wait as of a slow tool."""

    def reset(self, *, messages: list[dict[str, Any]], **row: Any) -> str:
        """Begin with the question."""
        self.num_left = _NUM_TURNS
        return str(messages[-1]["content"])

    async def step(self, action: str) -> tuple[str, float, bool]:
        """Wait, and ask on."""
        await asyncio.sleep(random.uniform(_SHORTEST_S, _LONGEST_S))
        self.num_left -= 1
        return "Go on.", 0.0, self.num_left == 0


@dataclass(slots=True)
class _Loop:
    """The training loop, with one kind of rollouts or the other."""

    config: Config
    actor: Actor
    version: int = 0

    def run(self, rollouts: RolloutGroup | AheadRollouts, num_steps: int) -> list[StepMetrics]:
        """Train some steps; returns the metrics of each, with `timing_s/step`."""
        layout = packing_layout(self.config, num_data_parallel=self.actor.num_data_parallel)
        found = []
        for _ in range(num_steps):
            start, metrics = time.monotonic(), StepMetrics()
            groups = rollouts.take(self.config.megatron_training.global_batch_size, metrics)
            batch = plan_batch(groups, self.config, layout, metrics)
            estimate_advantages(batch, groups, self.config, layout, metrics)
            self.actor.fill_old_logprobs(batch)
            self.actor.update(batch, RunPlace(self.version, 1_000_000, False))
            self.version += 1
            publish_weights(self.actor, rollouts, self.version)
            metrics["timing_s/step"] = time.monotonic() - start
            found.append(metrics)
        return found


def measure(config: Config, num_steps: int, num_rounds: int) -> list[Figure]:
    """Train in turn with both kinds of rollouts, and compare within each round.

    Args:
        config: Its environment waits.
        num_steps: Steps of a kind in a round that count; as many as `max_staleness`, and one more, come before them.
        num_rounds: At least 1.
    """
    training, rl = config.megatron_training, config.rl_config
    num = training.global_batch_size * rl.n_samples_per_prompt
    prompts = [Prompt(f"q-{i}", [{"role": "user", "content": f"Tell me of {i}."}], "", "test") for i in range(4096)]
    seen: dict[str, list[StepMetrics]] = {"ahead": [], "in step": []}
    with tempfile.TemporaryDirectory(prefix="turnwise-bench-") as folder, _launched(config, folder, prompts) as parts:
        loop, ahead, in_step = parts

        def speed(name: str, rollouts: RolloutGroup | AheadRollouts) -> float:
            rollouts.update_weights(loop.actor.publish(loop.version))
            loop.run(rollouts, 1 + rl.max_staleness)
            steps = loop.run(rollouts, num_steps)
            seen[name] += steps
            return num * num_steps / sum(step["timing_s/step"] for step in steps)

        def of_ahead(number: int) -> float:
            found = speed("ahead", ahead)
            ahead.end_whole()
            return found

        ratio, ours, theirs = median_ratio(of_ahead, lambda number: speed("in step", in_step), num_rounds)
    idle = {name: fmean(step["rollout/engine_idle_share"] for step in steps) for name, steps in seen.items()}
    lag = fmean(step["rollout/staleness/mean"] for step in seen["ahead"])
    detail = (
        f"{ours:.2f} against {theirs:.2f} trajectories/s; {_NUM_TURNS} turns, answers after {_SHORTEST_S:g} to "
        f"{_LONGEST_S:g} s; mean staleness {lag:.2f}"
    )
    return [
        Figure("ahead / in step", ratio, "", _SPEED_GOAL, detail=detail),
        Figure("engine idle", idle["ahead"], "", _IDLE_GOAL, at_least=False, detail="share of the time, ahead"),
    ]


@contextmanager
def _launched(
    config: Config, folder: str, prompts: list[Prompt]
) -> Iterator[tuple[_Loop, AheadRollouts, RolloutGroup]]:
    with launch(config, log_directory=Path(folder) / "logs", prompts=prompts) as cluster:
        assert cluster.actor is not None and isinstance(cluster.rollouts, AheadRollouts), "both were asked for"
        yield _Loop(config, cluster.actor), cluster.rollouts, RolloutGroup(cluster.rollouts.workers, prompts, config)


if __name__ == "__main__":
    name, output, *given = sys.argv[1:]
    sizes = dict(one.split("=") for one in given if one.startswith(("steps=", "rounds=")))
    overrides = [one for one in given if not one.startswith(("steps=", "rounds="))]
    settings = load_config(name, [*_SETTINGS, *overrides])
    write_json(measure(settings, int(sizes.get("steps", 5)), int(sizes.get("rounds", 2))), Path(output))
