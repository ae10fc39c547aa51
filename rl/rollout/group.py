"""Runs the trajectories of a prompt concurrently and scores each as soon as it ends."""

from __future__ import annotations

import asyncio
import time
from typing import Protocol

from rl.interfaces import Score
from rl.types import INFRASTRUCTURE_FAILURES, Group, Prompt, Sampling, Trajectory


class Loop(Protocol):
    """Runs trajectories (`rl.rollout.agent_loop.AgentLoop`, `rl.remote.loop.EndpointLoop`)."""

    async def run(self, prompt: Prompt, sample_index: int, sampling: Sampling) -> Trajectory:
        """Run one trajectory to its end."""
        ...


async def run_group(loop: Loop, prompt: Prompt, num_samples: int, sampling: Sampling, score: Score) -> Group:
    """Run a prompt's trajectories concurrently.

    Args:
        loop: Runs one trajectory.
        prompt: The dataset row.
        num_samples: Trajectories, at least 1.
        sampling: Sampling parameters, the same for every request.
        score: Called for each trajectory when it ends, unless it ended in `INFRASTRUCTURE_FAILURES`.

    Returns:
        The group, trajectories in order of `sample_index`.
    """
    async with asyncio.TaskGroup() as tasks:
        running = [tasks.create_task(_run_scored(loop, prompt, i, sampling, score)) for i in range(num_samples)]
    return Group(prompt, [task.result() for task in running])


async def _run_scored(loop: Loop, prompt: Prompt, index: int, sampling: Sampling, score: Score) -> Trajectory:
    trajectory = await loop.run(prompt, index, sampling)
    if trajectory.stop_reason not in INFRASTRUCTURE_FAILURES:
        start = time.monotonic()
        trajectory.take_scores(await score(trajectory))
        trajectory.reward_s = time.monotonic() - start
    return trajectory
