"""One rank's part of a batch: its packed rows, and the columns that passes fill."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from rl.algorithms.kl import kl_of_samples
from rl.batch.packing import expand_advantages, fill_columns, pack_micro_batch, token_aligned
from rl.batches import MicroBatch, MicroBatchPlan, RowAdvantages, Sample, Share, TokenColumns, TrainedRow
from rl.config.schema import KlPenalty
from rl.types import FloatArray


class RankBatch:
    """Packs a share once; every pass over it reads and fills the same micro-batches.

    Args:
        sources: The lists that `share.sources` refers to.
    """

    def __init__(self, share: Share, sources: Sequence[Sequence[Sample]]) -> None:
        self._share = share
        self._masks: list[dict[int, np.ndarray]] = []
        self._names: list[dict[int, tuple[str, int]]] = []
        """Trajectory id and number in the trajectory of each row, by row number in the mini-batch."""
        self._of_update: dict[int, list[TokenColumns]] = {}
        self.mini_batches: list[list[MicroBatch]] = []
        """This rank's micro-batches, for each mini-batch."""
        for numbers, plans in share.mini_batches:
            local = {int(i) for plan in plans for i in plan.segments[:, 0]}
            places = {i: share.rows[numbers[i]] for i in local}
            samples = {i: sources[source][index] for i, (source, index) in places.items()}
            self._masks.append({i: np.array(s.loss_mask) for i, s in samples.items()})  # no view of the object store
            self._names.append({i: _name_of(sources[source], index) for i, (source, index) in places.items()})
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

    def keep_update(self, mini_batch: int, columns: list[TokenColumns]) -> None:
        """Keep what an update computed for the tokens of a mini-batch, for `trained_rows`.

        Args:
            mini_batch: Its number.
            columns: On the CPU, for each micro-batch.
        """
        self._of_update[mini_batch] = columns

    def trained_rows(self, new_logprobs: Sequence[Tensor]) -> list[TrainedRow]:
        """What the updates computed for the tokens of each row; see `keep_update`.

        Args:
            new_logprobs: [T] float32 for each micro-batch, after the updates.
        """
        rows: list[TrainedRow] = []
        values = iter(new_logprobs)
        for number, (_, plans) in enumerate(self._share.mini_batches):
            for index, (plan, micro) in enumerate(zip(plans, self.mini_batches[number], strict=True)):
                of_update = self._of_update[number][index]
                rows += self._unpack(number, plan, micro, of_update, next(values))
        return rows

    def _unpack(
        self, number: int, plan: MicroBatchPlan, micro: MicroBatch, of_update: TokenColumns, new_logprobs: Tensor
    ) -> list[TrainedRow]:
        assert micro.advantages is not None and micro.loss_weights is not None, "loss columns are not filled"
        names, masks = self._names[number], self._masks[number]

        def aligned(column: Tensor) -> dict[int, FloatArray]:
            return token_aligned(plan, torch.where(micro.loss_mask > 0, column, 0.0), masks)

        old, new, ratios = aligned(of_update.old_logprobs), aligned(new_logprobs), aligned(of_update.ratios)
        ref = None if micro.ref_logprobs is None else aligned(micro.ref_logprobs)
        clipped, corrections = aligned(of_update.is_clipped), aligned(of_update.correction_weights)
        entropy = aligned(of_update.entropy)
        advantages, weights = aligned(micro.advantages), aligned(micro.loss_weights)
        return [
            TrainedRow(
                *names[row],
                old_logprobs=old[row],
                ref_logprobs=None if ref is None else ref[row],
                advantages=advantages[row],
                loss_weights=weights[row],
                ratios=ratios[row],
                is_clipped=clipped[row].astype(np.uint8),
                correction_weights=corrections[row],
                entropy=entropy[row],
                new_logprobs=new[row],
            )
            for row in old
        ]

    def kl_sums(self, kind: KlPenalty) -> dict[int, float]:
        """The estimates of KL(policy || reference), summed over each row's sampled tokens, in nats, by row number."""
        sums: dict[int, float] = {}
        for (numbers, _), micros in zip(self._share.mini_batches, self.mini_batches, strict=True):
            owned = {i for micro in micros for i in micro.sample_ids.unique().tolist() if i >= 0}
            totals = kl_of_samples(micros, len(numbers), kind).tolist()
            sums |= {numbers[i]: totals[i] for i in owned}
        return sums


def _name_of(rows: Sequence[Sample], index: int) -> tuple[str, int]:
    """A row's trajectory id and its number in the trajectory, from 0."""
    name = rows[index].trajectory_id
    return name, sum(row.trajectory_id == name for row in rows[:index])
