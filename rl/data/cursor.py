"""The shuffled, resumable order in which a run consumes its prompts, and how far it is in them."""

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
    """The order in which prompts are consumed: a fresh permutation each epoch, a function of (seed, epoch) alone.

    Example: of 3 prompts, `take(2)` and `take(2)` give four indices; the fourth is the first of the second epoch.

    Args:
        num_prompts: Of the data file, at least 1.
        seed: Of the order.
        batch_size: Prompts of a step, where the number of steps is asked for.
        total_epochs: Passes after which there is nothing left to take; None: no end.
        fingerprint: Of the prompts, as `PromptCursor.over` makes it; empty: not compared on a resume.
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
            raise DataError(f"PromptCursor: needs at least one prompt, got {num_prompts}. Check the data file.")
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
        """The cursor of a run.

        Args:
            rows: What identifies each training row, in a form whose `repr` does not change from run to run.
            training: Uses `seed`, `global_batch_size` and `total_epochs`.
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
        """Completed passes over the prompts."""
        return self._epoch

    @property
    def num_taken(self) -> int:
        """Prompts consumed so far, over all epochs."""
        return self._epoch * self._num_prompts + self._position

    @property
    def num_left(self) -> float:
        """Prompts until the end of the last epoch; infinite without `total_epochs`."""
        return math.inf if self._total is None else max(self._total - self.num_taken, 0)

    def expected_steps(self, completed: int, num_over: int = 0) -> int | None:
        """Steps until all epochs are consumed, if batches go on needing as many prompts as those so far.

        Example: 10 prompts, batches of 2 groups. One step has consumed 4 prompts for 2 groups that differ, and has 1
        more left over: 4 prompts for 1.5 batches, so all 10 make 3.75, which is 4 steps.

        Args:
            completed: Steps that what was taken was used for.
            num_over: Groups that were taken and not used yet.

        Returns:
            Exactly the number of steps when nothing is left to take; None without `total_epochs`.
        """
        if self._total is None:
            return None
        if not self.num_taken:
            return math.ceil(self._total / self._batch_size)
        num_used = completed * self._batch_size + num_over
        return -(-num_used * self._total // (self._batch_size * self.num_taken))

    def take(self, num: int) -> list[int]:
        """Advance by `num` prompts, into the next epoch where this one ends.

        Returns:
            `num` indices below `num_prompts`; fewer at the end of the last epoch.
        """
        return [index for index, _ in self.take_with_epochs(num)]

    def take_with_epochs(self, num: int) -> list[tuple[int, int]]:
        """Advance as `take` does.

        Returns:
            `num` pairs of an index and the epoch it was met in, from 0; no pair comes twice in a run. Fewer at the end
            of the last epoch.
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
        """What a checkpoint keeps."""
        return {
            "num_prompts": self._num_prompts,
            "seed": self._seed,
            "epoch": self._epoch,
            "position": self._position,
            "fingerprint": self._fingerprint,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken.

        Raises:
            CheckpointError: It was taken of other prompts or with another seed; the order would differ.
        """
        if state["seed"] != self._seed:
            raise CheckpointError(
                f"megatron_training.seed: must be that of the run to resume, {state['seed']}, got {self._seed}. "
                f"Set {state['seed']}, or start anew without megatron_training.resume."
            )
        prints = {state.get("fingerprint"), self._fingerprint} - {None, ""}  # earlier checkpoints have none
        if state["num_prompts"] != self._num_prompts or len(prints) > 1:
            got = "others" if state["num_prompts"] == self._num_prompts else str(self._num_prompts)
            raise CheckpointError(
                f"megatron_training.data_path: must give the {state['num_prompts']} rows of the run to resume, got "
                f"{got}. Resume with its data file, rl_config.max_prompt_length and prompt_type, or start anew without "
                "megatron_training.resume."
            )
        self._epoch, self._position = state["epoch"], state["position"]
        self._order = self._permutation()

    def _permutation(self) -> list[int]:
        generator = np.random.default_rng((self._seed, self._epoch))
        return [int(index) for index in generator.permutation(self._num_prompts)]


def prompt_cursor(prompts: Sequence[Prompt], config: Config) -> PromptCursor:
    """The cursor of a run over its training prompts."""
    return PromptCursor.over(((p.id, p.messages, p.ground_truth) for p in prompts), config.megatron_training)
