"""What the service remembers for its page and its metrics: the reward of each step, and the last errors."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass

_MOST_STEPS = 10_000
_MOST_ERRORS = 50
_LONGEST_MESSAGE = 500


@dataclass(slots=True, frozen=True)
class StepReward:
    """The mean reward of what a step trains on."""

    step: int
    """Number of the step, from 1."""
    mean_reward: float
    time: float
    """Seconds since 1970, when the step had its groups."""


@dataclass(slots=True)
class Problem:
    """An error that a client was told of, or a group that failed."""

    time: float
    """Seconds since 1970, of the last time."""
    where: str
    """Method and route, or the group."""
    status: int
    """HTTP status; 500 for a group."""
    message: str
    count: int = 1
    """Times in a row."""


class History:
    """Steps, errors and counts since the service started. The oldest steps and errors are forgotten."""

    def __init__(self) -> None:
        self.rewards: deque[StepReward] = deque(maxlen=_MOST_STEPS)
        self.problems: deque[Problem] = deque(maxlen=_MOST_ERRORS)
        """The newest is last."""
        self.num_groups = 0
        """Groups that are scored and journaled."""
        self.lost_groups: Counter[str] = Counter()
        """Groups that are not trained on, by reason."""

    def batch_taken(self, completed: int, mean_reward: float | None, lost_groups: Mapping[str, int]) -> None:
        """A step has its groups.

        Args:
            completed: Steps that are completed.
            mean_reward: Mean over the step's scored rollouts; None if there are none.
            lost_groups: Groups that the step leaves out, by reason.
        """
        if mean_reward is not None:
            if self.rewards and self.rewards[-1].step > completed:  # another training, or one that was begun again
                self.rewards.clear()
            self.rewards.append(StepReward(completed + 1, mean_reward, time.time()))
        self.lost_groups.update(lost_groups)

    def group_kept(self) -> None:
        """A group is scored and journaled."""
        self.num_groups += 1

    def group_failed(self, name: str, error: Exception) -> None:
        """A group ended with an error of the service."""
        self.lost_groups["failed"] += 1
        self.error_answered(f"group {name}", 500, f"{type(error).__name__}: {error}")

    def error_answered(self, where: str, status: int, message: str) -> None:
        """A client was told of an error. The same error in a row is kept once, with its count.

        Args:
            where: Method and route.
            status: HTTP status.
            message: What the client was told.
        """
        message = message[:_LONGEST_MESSAGE]
        last = self.problems[-1] if self.problems else None
        if last is not None and (last.where, last.status, last.message) == (where, status, message):
            last.time, last.count = time.time(), last.count + 1
        else:
            self.problems.append(Problem(time.time(), where, status, message))
