"""Scoring by the reward workers, in turn."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from ray.exceptions import OutOfMemoryError, RayActorError

from rl.errors import RewardError
from rl.observability.busy_clock import BusyClock
from rl.types import Scores, Trajectory


class RewardWorkers:
    """The reward workers as one, for a process whose trajectories they score.

    Args:
        workers: Their handles.
    """

    def __init__(self, workers: Sequence[Any]) -> None:
        self._turns = itertools.cycle(enumerate(workers))
        self.busy = BusyClock()
        """Runs while a trajectory is being scored."""

    async def score(self, trajectory: Trajectory) -> Scores:
        """Score a trajectory; see `rl.interfaces.Score`.

        Raises:
            RewardError: The worker's process died.
        """
        number, worker = next(self._turns)
        try:
            with self.busy:
                scores: Scores = await worker.score.remote(trajectory.without_tokens())
        except (RayActorError, OutOfMemoryError) as error:
            raise RewardError(
                f"reward worker {number}: its process died while scoring {trajectory.id}. See reward-{number}.log of "
                "the run directory."
            ) from error
        return scores
