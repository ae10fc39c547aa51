"""The shuffled, resumable order of the prompts in a run, and the position in it."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from rl.config.schema import Config, MegatronTraining
from rl.errors import CheckpointError, DataError
from rl.types import Prompt


class PromptCursor:
    """The order of the prompts: a new permutation each epoch, which depends only on (seed, epoch).

    Example: with 3 prompts, `take(2)` twice gives four indices; the fourth is the first of the second epoch.

    Args:
        num_prompts: Number of prompts in the data file, at least 1.
        seed: Seed of the permutations.
        batch_size: Prompts per step, for `expected_steps`.
        total_epochs: Number of passes over the prompts; None means no limit.
        fingerprint: Identifies the prompts, from `PromptCursor.over`; if empty, it is not compared on resume.
    """

    def __init__(
        self,
        num_prompts: int,
        seed: int,
        *,
        batch_size: int = 1,
        total_epochs: int | None = None,
        fingerprint: str = "",
    ) -> None:
        if num_prompts < 1:
            raise DataError(f"PromptCursor: must have at least one prompt, got {num_prompts}. Check the data file.")
        self._num_prompts = num_prompts
        self._seed = seed
        self._batch_size = batch_size
        self._total = None if total_epochs is None else total_epochs * num_prompts
        self._fingerprint = fingerprint
        self._epoch = 0
        self._position = 0
        self._order = self._permutation()

    @classmethod
    def over(cls, rows: Iterable[object], training: MegatronTraining) -> PromptCursor:
        """Create the cursor of a run.

        Args:
            rows: Identity of each training row, as values with a `repr` that is stable between runs.
            training: Reads `seed`, `global_batch_size` and `total_epochs`.
        """
        digest, num_rows = hashlib.sha256(), 0
        for row in rows:
            digest.update(repr(row).encode("utf-8", "surrogatepass"))
            num_rows += 1
        return cls(
            num_rows,
            training.seed,
            batch_size=training.global_batch_size,
            total_epochs=training.total_epochs,
            fingerprint=digest.hexdigest(),
        )

    @property
    def epoch(self) -> int:
        """Number of completed passes over the prompts."""
        return self._epoch

    @property
    def num_taken(self) -> int:
        """Number of prompts taken so far, over all epochs."""
        return self._epoch * self._num_prompts + self._position

    @property
    def num_left(self) -> float:
        """Number of prompts until the end of the last epoch; infinite without `total_epochs`."""
        return math.inf if self._total is None else max(self._total - self.num_taken, 0)

    def expected_steps(self, completed: int, num_over: int = 0) -> int | None:
        """Estimate the number of steps in all epochs, if later batches need as many prompts as those so far.

        Example: 10 prompts, batches of 2 groups. One step took 4 prompts to get 2 informative groups and has 1 group
        left over: 4 prompts for 1.5 batches. So 10 prompts make 3.75 batches, which is 4 steps.

        Args:
            completed: Completed steps.
            num_over: Groups that were taken but not used yet.

        Returns:
            The number of steps, exact when no prompts are left; None without `total_epochs`.
        """
        if self._total is None:
            return None
        if not self.num_taken:
            return math.ceil(self._total / self._batch_size)
        num_used = completed * self._batch_size + num_over
        return -(-num_used * self._total // (self._batch_size * self.num_taken))

    def next_step(self, completed: int) -> int:
        """Number of the next step: none is left out."""
        return completed

    def take(self, num: int) -> list[int]:
        """Advance by `num` prompts, across the end of an epoch if necessary.

        Returns:
            `num` indices below `num_prompts`; fewer at the end of the last epoch.
        """
        return [index for index, _ in self.take_with_epochs(num)]

    def take_with_epochs(self, num: int) -> list[tuple[int, int]]:
        """Advance by `num` prompts, as `take` does.

        Returns:
            `num` pairs of an index and its epoch, from 0; fewer at the end of the last epoch. No pair repeats in a run.
        """
        num = int(min(num, self.num_left))
        taken: list[tuple[int, int]] = []
        while len(taken) < num:
            end = min(self._position + num - len(taken), self._num_prompts)
            taken.extend((index, self._epoch) for index in self._order[self._position : end])
            self._position = end
            if end == self._num_prompts:
                self._epoch, self._position = self._epoch + 1, 0
                self._order = self._permutation()
        return taken

    def state_dict(self) -> dict[str, Any]:
        """State for a checkpoint."""
        return {
            "num_prompts": self._num_prompts,
            "seed": self._seed,
            "epoch": self._epoch,
            "position": self._position,
            "fingerprint": self._fingerprint,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the position from a `state_dict`.

        Raises:
            CheckpointError: The state has another seed or other prompts, so the order would differ.
        """
        if state["seed"] != self._seed:
            raise CheckpointError(
                f"megatron_training.seed: must be that of the run to resume, {state['seed']}, got {self._seed}. "
                f"Set {state['seed']}, or start a new run without megatron_training.resume."
            )
        fingerprints = {state.get("fingerprint"), self._fingerprint} - {None, ""}  # older checkpoints have none
        if state["num_prompts"] != self._num_prompts or len(fingerprints) > 1:
            got = "other rows" if state["num_prompts"] == self._num_prompts else str(self._num_prompts)
            raise CheckpointError(
                f"megatron_training.data_path: must have the {state['num_prompts']} rows of the run to resume, got "
                f"{got}. Resume with its data file, rl_config.max_prompt_length and prompt_type, or start a new run "
                "without megatron_training.resume."
            )
        self._epoch, self._position = state["epoch"], state["position"]
        self._order = self._permutation()

    def _permutation(self) -> list[int]:
        generator = np.random.default_rng((self._seed, self._epoch))
        return [int(index) for index in generator.permutation(self._num_prompts)]


def prompt_cursor(prompts: Sequence[Prompt], config: Config) -> PromptCursor:
    """Create the cursor of a run over its training prompts."""
    return PromptCursor.over(((p.id, p.messages, p.ground_truth) for p in prompts), config.megatron_training)
