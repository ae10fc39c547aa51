"""Saves the trajectories of steps with NaN, Inf or no reward, and ends the run after too many in a row."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence, Set
from pathlib import Path
from typing import Any

from rl.batches import GroupHeader, TrajectoryHeader
from rl.errors import TrainingError
from rl.interfaces import Rollouts
from rl.observability.run_directory import RunDirectory
from rl.observability.trajectories import to_record
from rl.types import StopReason

logger = logging.getLogger(__name__)


class SkipGuard:
    """Checks each step of a run for NaN, Inf and missing rewards.

    Args:
        directory: The run's directory.
        max_in_a_row: `rl_config.max_skipped_steps`.
    """

    def __init__(self, directory: RunDirectory, max_in_a_row: int) -> None:
        self._directory, self._max_in_a_row = directory, max_in_a_row
        self._num_in_a_row = 0

    def check(
        self, step: int, offending: Sequence[str], groups: Sequence[GroupHeader], rollouts: Rollouts | None
    ) -> None:
        """Save the trajectories of a step that skipped an optimizer step or in which no trajectory got a score.

        Args:
            step: The step's number, from 1.
            offending: `UpdateReport.offending`; empty if no optimizer step was skipped.
            groups: The step's groups; empty in the cold start.
            rollouts: The source of the groups.

        Raises:
            TrainingError: This is the `max_in_a_row`-th such step in a row.
        """
        unscored = _without_any_score(groups)
        if not offending and not unscored:
            self._num_in_a_row = 0
            return
        self._num_in_a_row += 1
        path = self._write(step, offending or [t.id for t in unscored], groups, rollouts)
        what = "the update must be finite, got NaN or Inf" if offending else "a reward must be a number, got none"
        logger.warning("step %d: %s, so an optimizer step was left out; see %s", step, what, path)
        if self._num_in_a_row < self._max_in_a_row:
            return
        advice = (
            "look for a log-prob, advantage or reward out of range in it. Or lower actor_config.lr, and resume from an "
            "earlier checkpoint."
            if offending
            else _cause_of(unscored[0])
        )
        raise TrainingError(
            f"step {step}: {what} in {self._num_in_a_row} steps in a row. The trajectories are in {path}: {advice}"
        )

    def _write(
        self, step: int, offending: Sequence[str], groups: Sequence[GroupHeader], rollouts: Rollouts | None
    ) -> Path:
        self._directory.skipped.mkdir(exist_ok=True)
        path = self._directory.skipped / f"step_{step:06d}.jsonl"
        names = list(dict.fromkeys(offending))
        records = _records(set(names), groups, rollouts) if rollouts is not None else {}
        with path.open("w", encoding="utf-8") as stream:
            for name in names:
                record = records.get(name, {"id": name})
                stream.write(json.dumps(record, ensure_ascii=False, default=str) + "\n")
        return path


def _without_any_score(groups: Sequence[GroupHeader]) -> list[TrajectoryHeader]:
    """Trajectories whose reward or environment failed, if no trajectory of the step has a score."""
    trajectories = [t for group in groups for t in group.trajectories]
    if any(t.score is not None for t in trajectories):
        return []
    return [t for t in trajectories if t.reward_error is not None or t.stop_reason is StopReason.ENVIRONMENT_FAILED]


def _cause_of(unscored: TrajectoryHeader) -> str:
    key = (
        "verifier_function" if unscored.reward_error is not None else "environment, rollout_function or agent_function"
    )
    return f"the first says '{unscored.reward_error or unscored.failure}'. Correct rl_config.{key}."


def _records(names: Set[str], groups: Sequence[GroupHeader], rollouts: Rollouts) -> dict[str, dict[str, Any]]:
    """By trajectory id, its usual record and the token-level inputs of the loss."""
    found: dict[str, dict[str, Any]] = {}
    for group in groups:
        uses = {t.id: t.use for t in group.trajectories if t.id in names}
        if not uses:
            continue
        for trajectory in rollouts.fetch_record(group):
            if trajectory.id in names:
                found[trajectory.id] = to_record(trajectory, uses[trajectory.id]) | {"sequences": []}
        for row in rollouts.fetch_rows(group):
            if row.trajectory_id in names:
                found[row.trajectory_id]["sequences"].append(
                    {
                        "token_ids": row.token_ids.tolist(),
                        "loss_mask": row.loss_mask.tolist(),
                        "rollout_logprobs": row.rollout_logprobs.tolist(),
                    }
                )
    return found
