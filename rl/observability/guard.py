"""Steps with NaN or Inf: their trajectories are kept, and too many of them in a row end the run."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rl.errors import TrainingError
from rl.observability.run_directory import RunDirectory
from rl.observability.trajectories import to_record
from rl.types import Group, Trajectory

logger = logging.getLogger(__name__)


class SkipGuard:
    """Watches over the steps of a run.

    Args:
        directory: Of the run.
        max_in_a_row: As `rl_config.max_skipped_steps`.
    """

    def __init__(self, directory: RunDirectory, max_in_a_row: int) -> None:
        self._directory, self._max_in_a_row = directory, max_in_a_row
        self._num_in_a_row = 0

    def check(self, step: int, offending: Sequence[str], groups: Sequence[Group]) -> None:
        """Keep the trajectories of a step in which an optimizer step was skipped.

        Args:
            step: Its number, from 1.
            offending: As `UpdateReport.offending`; empty where no optimizer step was skipped.
            groups: Of the step; none in the cold start.

        Raises:
            TrainingError: It is the last that is tolerated in a row.
        """
        if not offending:
            self._num_in_a_row = 0
            return
        self._num_in_a_row += 1
        path = self._write(step, offending, groups)
        logger.warning("step %d has NaN or Inf: an optimizer step was skipped; see %s", step, path)
        if self._num_in_a_row >= self._max_in_a_row:
            raise TrainingError(
                f"step {step}: the update must be finite, got NaN or Inf in {self._num_in_a_row} steps in a row. The "
                f"trajectories are in {path}: look for a log-prob, advantage or reward out of range in it. Or lower "
                "actor_config.lr, and resume from an earlier checkpoint."
            )

    def _write(self, step: int, offending: Sequence[str], groups: Sequence[Group]) -> Path:
        self._directory.skipped.mkdir(exist_ok=True)
        path = self._directory.skipped / f"step_{step:06d}.jsonl"
        trajectories = {t.id: t for group in groups for t in group.trajectories}
        with path.open("w", encoding="utf-8") as stream:
            for name in dict.fromkeys(offending):
                record = _to_record(trajectories[name]) if name in trajectories else {"id": name}
                stream.write(json.dumps(record, ensure_ascii=False, default=str) + "\n")
        return path


def _to_record(trajectory: Trajectory) -> dict[str, Any]:
    """What is kept of any trajectory, and the numbers that went into the loss."""
    sequences = [
        {"token_ids": s.token_ids, "loss_mask": s.loss_mask, "rollout_logprobs": s.logprobs}
        for s in trajectory.sequences
    ]
    return to_record(trajectory) | {"sequences": sequences}
