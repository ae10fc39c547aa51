"""One rank's part of a batch: its packed rows, and the columns that passes fill."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from torch import Tensor

from rl.algorithms.kl import kl_of_samples
from rl.batch.packing import expand_advantages, fill_columns, pack_micro_batch
from rl.batches import MicroBatch, RowAdvantages, Sample, Share
from rl.config.schema import KlPenalty


class RankBatch:
    """Packs a share once; every pass over it reads and fills the same micro-batches.

    Args:
        sources: The lists that `share.sources` refers to.
    """

    def __init__(self, share: Share, sources: Sequence[Sequence[Sample]]) -> None:
        self._share = share
        self._masks: list[dict[int, np.ndarray]] = []
        self.mini_batches: list[list[MicroBatch]] = []
        """This rank's micro-batches, for each mini-batch."""
        for numbers, plans in share.mini_batches:
            local = {int(i) for plan in plans for i in plan.segments[:, 0]}
            places = {i: share.rows[numbers[i]] for i in local}
            samples = {i: sources[source][index] for i, (source, index) in places.items()}
            self._masks.append({i: np.array(s.loss_mask) for i, s in samples.items()})  # no view of the object store
            self.mini_batches.append([pack_micro_batch(plan, samples) for plan in plans])

    @property
    def micro_batches(self) -> list[MicroBatch]:
        """The micro-batches of all mini-batches, in order."""
        return [micro for mini_batch in self.mini_batches for micro in mini_batch]

    def fill(self, column: str, values: Sequence[Tensor]) -> None:
        """Fill `old_logprobs` or `ref_logprobs` of every micro-batch.

        Args:
            column: Its name in `MicroBatch`.
            values: [T] float32 for each micro-batch.
        """
        for micro, value in zip(self.micro_batches, values, strict=True):
            setattr(micro, column, value)

    def fill_loss(self, weights: Mapping[int, float], advantages: Mapping[int, RowAdvantages]) -> None:
        """Fill loss weights and advantages.

        Args:
            weights: The weight of each loss token, by row number in the batch.
            advantages: By row number in the batch.
        """
        for (numbers, plans), micros, masks in zip(
            self._share.mini_batches, self.mini_batches, self._masks, strict=True
        ):
            own_weights = {i: weights[numbers[i]] for i in masks}
            own_advantages = {i: expand_advantages(advantages[numbers[i]], mask) for i, mask in masks.items()}
            for plan, micro in zip(plans, micros, strict=True):
                fill_columns(micro, plan, masks, own_weights, own_advantages)

    def kl_sums(self, kind: KlPenalty) -> dict[int, float]:
        """The estimates of KL(policy || reference), summed over each row's sampled tokens, in nats, by row number."""
        sums: dict[int, float] = {}
        for (numbers, _), micros in zip(self._share.mini_batches, self.mini_batches, strict=True):
            owned = {int(i) for micro in micros if micro.sample_ids is not None for i in micro.sample_ids if i >= 0}
            totals = kl_of_samples(micros, len(numbers), kind).tolist()
            sums |= {numbers[i]: totals[i] for i in owned}
        return sums
