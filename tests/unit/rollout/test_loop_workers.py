"""Rollout workers on an event loop of this process: what still runs when the driver stops listening is ended."""

from __future__ import annotations

import asyncio
from contextlib import closing

import pytest

from rl.errors import RolloutError
from rl.rewards.registry import load_rewards
from rl.rollout.loop_workers import LoopWorkers
from rl.rollout.workers import PromptBatch
from rl.types import Prompt, Sampling, StopReason, Trajectory, Turn

SAMPLING = Sampling(temperature=1.0, max_tokens=8)


class Loop:
    """Ends trajectories of the prompt `first` at once, and never the others."""

    def __init__(self) -> None:
        self.num_cancelled = 0

    async def run(self, prompt: Prompt, sample_index: int, sampling: Sampling) -> Trajectory:
        try:
            if prompt.id == "fails":
                raise RolloutError("no engine")
            if prompt.id != "first":
                await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.num_cancelled += 1
            raise
        return Trajectory(prompt, sample_index, [], [Turn("3", 1)], StopReason.FINISHED)


def batch_of(*ids: str) -> PromptBatch:
    batch = PromptBatch(2, SAMPLING)
    batch.add([Prompt(name, [{"role": "user", "content": "1 + 2?"}], "3", "sums") for name in ids])
    return batch


def test_groups_end_with_the_driver_s_interest() -> None:
    loop = Loop()
    with asyncio.Runner() as runner:
        workers = LoopWorkers(loop, load_rewards(["base_acc"], [1.0]), runner.get_loop(), lambda samples: 4 // samples)
        with closing(workers.run(batch_of("first", "second", "third"))) as groups:
            order, group = next(groups)
            assert (order, [t.score for t in group.trajectories]) == (0, [1.0, 1.0])
            assert (workers.num_running, workers.num_alive) == (1, 1)  # the third prompt waits for room
        assert (workers.num_running, loop.num_cancelled) == (0, 2)
        assert not asyncio.all_tasks(runner.get_loop())


def test_a_failure_ends_the_other_groups_and_keeps_its_type() -> None:
    loop = Loop()
    with asyncio.Runner() as runner:
        workers = LoopWorkers(loop, load_rewards(["base_acc"], [1.0]), runner.get_loop(), lambda samples: 2)
        with pytest.raises(ExceptionGroup) as caught:
            list(workers.run(batch_of("second", "fails")))
        assert caught.group_contains(RolloutError, match="no engine")
        assert (workers.num_running, loop.num_cancelled) == (0, 2)
