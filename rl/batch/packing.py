"""Builds micro-batches from rows and a plan: shifts, packs without padding and fills columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike, DTypeLike, NDArray
from torch import Tensor

from rl.batch.layout import PackingLayout
from rl.batch.plan import plan_mini_batches, row_weights
from rl.batch.rows import prompt_of, row_header
from rl.batches import Batch, BatchPlan, MicroBatch, MicroBatchPlan, MiniBatch, RowAdvantages, RowPlace, Sample
from rl.types import FloatArray, IntArray

_OWN = 4
"""Column of `MicroBatchPlan.segments`."""


def pack_micro_batch(plan: MicroBatchPlan, samples: Mapping[int, Sample]) -> MicroBatch:
    """Concatenate the rows of a micro-batch. The padding is a separate sequence with weight 0.

    Args:
        plan: Which tokens of which rows.
        samples: By row number in the mini-batch.

    Returns:
        The micro-batch, without loss weights and advantages (`fill_columns`).
    """
    rows, starts, ends, prefixes, is_own = plan.segments.T.astype(np.int64)
    lengths, padding = ends - starts, plan.padding
    if padding:
        lengths, starts, prefixes = (np.append(a, b) for a, b in ((lengths, padding), (starts, 0), (prefixes, -1)))
        rows, is_own = np.append(rows, -1), np.append(is_own, 0)
    return MicroBatch(
        token_ids=_join([samples[row].token_ids[a:b] for row, a, b, *_ in plan.segments], padding, np.int64),
        target_ids=_predicted(plan, {row: samples[row].token_ids for row in rows if row >= 0}, np.int64),
        position_ids=_tensor(np.concatenate([np.arange(a, a + n) for a, n in zip(starts, lengths, strict=True)])),
        cu_seqlens=_tensor(np.concatenate([[0], lengths.cumsum()]).astype(np.int32)),
        prefix_ids=_tensor(prefixes),
        loss_mask=_predicted(plan, {row: samples[row].loss_mask for row in rows if row >= 0}, np.float32),
        rollout_logprobs=_predicted(plan, {row: samples[row].rollout_logprobs for row in rows if row >= 0}, np.float32),
        sample_ids=_tensor(np.where(is_own > 0, rows, -1)),
    )


def fill_columns(
    micro_batch: MicroBatch,
    plan: MicroBatchPlan,
    masks: Mapping[int, NDArray[np.uint8]],
    weights: Mapping[int, float],
    advantages: Mapping[int, ArrayLike],
) -> None:
    """Fill loss weights and advantages.

    Args:
        micro_batch: Packed from `plan`; changed in place.
        plan: Which tokens of which rows.
        masks: `Sample.loss_mask` of each row.
        weights: The weight of each loss token of a row.
        advantages: [L] float32 of each row, token-aligned.
    """
    own = {int(row) for row in plan.segments[plan.segments[:, _OWN] > 0, 0]}
    weighed = {row: np.asarray(masks[row], np.float32) * np.float32(weights[row]) for row in own}
    micro_batch.loss_weights = _predicted(plan, weighed, np.float32)
    micro_batch.advantages = _predicted(plan, {row: np.asarray(advantages[row]) for row in own}, np.float32)


def token_aligned(plan: MicroBatchPlan, column: Tensor, lengths: Mapping[int, int]) -> dict[int, FloatArray]:
    """Undo the packing of a column: position t of a row's own tokens gives the value of its token t + 1.

    Args:
        plan: Which tokens of which rows.
        column: [T], prediction-aligned.
        lengths: Tokens of each row, by row number in the mini-batch.

    Returns:
        [L] float32 for each row whose own tokens are in the micro-batch; 0 before them.
    """
    values, position = column.numpy(), 0
    found: dict[int, FloatArray] = {}
    for row, start, end, _, is_own in plan.segments.tolist():
        if is_own:
            found[row] = np.zeros(lengths[row], np.float32)
            found[row][start + 1 :] = values[position : position + lengths[row] - start - 1]
        position += end - start
    return found


def expand_advantages(advantages: RowAdvantages, loss_mask: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Token-aligned advantages of a row, [L] float32, 0 where `loss_mask` is 0."""
    expanded = np.zeros(len(loss_mask), np.float32)
    expanded[np.asarray(loss_mask) > 0] = advantages.values.repeat(advantages.num_tokens)
    return expanded


def plan_samples(samples: Sequence[Sample], layout: PackingLayout) -> BatchPlan:
    """Plan a batch of local rows: demonstrations, or a script's samples.

    Args:
        samples: Token-aligned rows; those with loss tokens need at least 2 tokens, others are left out.
        layout: The sizes.

    Returns:
        The plan, with loss weights, and with advantages if the samples have them.
    """
    groups = {name: i for i, name in enumerate(dict.fromkeys(s.group_id for s in samples))}
    trajectories = {name: i for i, name in enumerate(dict.fromkeys(s.trajectory_id for s in samples))}
    prompts: dict[int, IntArray] = {}
    rows, group_ids = [], []
    for index, sample in enumerate(samples):
        group = groups[sample.group_id]
        if np.asarray(sample.loss_mask)[1:].any():
            prompts.setdefault(group, prompt_of(sample))
        header = row_header(sample, prompts.get(group, prompt_of(sample)))
        rows.append(RowPlace(header, trajectories[sample.trajectory_id], source=index, index=0))
        group_ids.append(group)
    plan = BatchPlan(
        rows,
        [[sample] for sample in samples],
        plan_mini_batches(rows, group_ids, prompts, layout),
        layout.epochs,
        list(trajectories),
    )
    plan.weights = row_weights(plan, layout)
    plan.advantages = [_given_advantages(sample) for sample in samples]
    return plan


def pack_samples(samples: Sequence[Sample], layout: PackingLayout) -> Batch:
    """Plan and pack a batch for all ranks, for scripts and tests in one process. See `plan_mini_batches`.

    All epochs share the same micro-batch objects, so log-probs need filling only once.

    Args:
        samples: As in `plan_samples`, with advantages.
        layout: The sizes.
    """
    plan = plan_samples(samples, layout)
    mini_batches = []
    for mini in plan.mini_batches:
        own = {i: samples[number] for i, number in enumerate(mini.rows)}
        masks = {i: np.asarray(sample.loss_mask) for i, sample in own.items()}
        weights = {i: plan.weights[number] for i, number in enumerate(mini.rows)}
        advantages = {i: expand_advantages(plan.advantages[n], masks[i]) for i, n in enumerate(mini.rows)}
        packed = [[pack_micro_batch(micro, own) for micro in rank] for rank in mini.micro_batches]
        for rank, micros in zip(packed, mini.micro_batches, strict=True):
            for micro_batch, micro in zip(rank, micros, strict=True):
                fill_columns(micro_batch, micro, masks, weights, advantages)
        names = [sample.trajectory_id for sample in own.values()]
        mini_batches.append(MiniBatch(packed, mini.num_loss_tokens, mini.num_trajectories, names))
    return Batch(mini_batches * layout.epochs)


def _given_advantages(sample: Sample) -> RowAdvantages:
    mask = np.asarray(sample.loss_mask) > 0
    values = np.zeros(len(mask), np.float32) if sample.advantages is None else np.asarray(sample.advantages, np.float32)
    return RowAdvantages(values[mask], np.ones(int(mask.sum()), np.int32))


def _predicted(plan: MicroBatchPlan, values: Mapping[int, ArrayLike], dtype: DTypeLike) -> Tensor:
    """Shift token-aligned values into a column: position t gets the value of token t + 1, a row's last one 0.

    A shared segment gets the values of the row it comes from, or 0 if the row has none.
    """
    parts = []
    for row, start, end, _, _ in plan.segments:
        if row not in values:
            parts.append(np.zeros(end - start))
            continue
        of_row = np.asarray(values[row])
        part = of_row[start + 1 : end + 1]
        parts.append(part if len(part) == end - start else np.append(part, 0))
    return _join(parts, plan.padding, dtype)


def _join(parts: Sequence[ArrayLike], padding: int, dtype: DTypeLike) -> Tensor:
    arrays = [*(np.asarray(part) for part in parts), np.zeros(padding, dtype)]
    return _tensor(np.concatenate(arrays, dtype=dtype, casting="unsafe"))


def _tensor(array: NDArray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array))
