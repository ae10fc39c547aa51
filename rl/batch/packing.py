"""Builds micro-batches from rows and a plan: shifts, packs without padding and fills columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike, DTypeLike, NDArray
from torch import Tensor

from rl.batch.layout import PackingLayout
from rl.batch.plan import plan_mini_batches, row_weights
from rl.batch.rows import row_headers
from rl.batches import Batch, BatchPlan, MicroBatch, MicroBatchPlan, MiniBatch, RowAdvantages, RowPlace, Sample
from rl.types import FloatArray, IntArray


def pack_micro_batch(plan: MicroBatchPlan, samples: Mapping[int, Sample]) -> MicroBatch:
    """Concatenate the rows of a micro-batch. The padding is a separate sequence with weight 0.

    Args:
        plan: Which tokens of which rows.
        samples: By row number in the mini-batch.

    Returns:
        The micro-batch, without loss weights and advantages (`fill_columns`).
    """
    rows, starts, ends, prefixes, _ = plan.segments.T.astype(np.int64)
    lengths, padding = ends - starts, plan.padding
    if padding:
        lengths, starts, prefixes = (np.append(a, b) for a, b in ((lengths, padding), (starts, 0), (prefixes, -1)))
    own = {int(row): samples[row] for row in rows}
    masks = {row: np.asarray(sample.loss_mask) > 0 for row, sample in own.items()}
    return MicroBatch(
        token_ids=_join([samples[row].token_ids[a:b] for row, a, b, *_ in plan.segments], padding, np.int64),
        target_ids=_join(
            [_shifted(samples[row].token_ids, a, b) for row, a, b, *_ in plan.segments], padding, np.int64
        ),
        position_ids=_tensor(np.concatenate([np.arange(a, a + n) for a, n in zip(starts, lengths, strict=True)])),
        cu_seqlens=_tensor(np.concatenate([[0], lengths.cumsum()]).astype(np.int32)),
        prefix_ids=_tensor(prefixes),
        loss_mask=_predicted(plan, masks, np.float32),
        rollout_logprobs=_predicted(plan, {row: sample.rollout_logprobs for row, sample in own.items()}, np.float32),
        sample_ids=_predicted(plan, {row: mask * (row + 1) for row, mask in masks.items()}, np.int64) - 1,
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
    own = {int(row) for row in plan.segments[:, 0]}
    weighed = {row: np.asarray(masks[row], np.float32) * np.float32(weights[row]) for row in own}
    micro_batch.loss_weights = _predicted(plan, weighed, np.float32)
    micro_batch.advantages = _predicted(plan, {row: np.asarray(advantages[row]) for row in own}, np.float32)


def token_aligned(
    plan: MicroBatchPlan, column: Tensor, masks: Mapping[int, NDArray[np.uint8]]
) -> dict[int, FloatArray]:
    """Undo the packing of a column: the value at a prediction goes to the token that a row trains on.

    Args:
        plan: Which tokens of which rows.
        column: [T], prediction-aligned.
        masks: `Sample.loss_mask` of each row, by row number in the mini-batch.

    Returns:
        [L] float32 for each row that ends in the micro-batch; 0 where the row's mask is 0.
    """
    values = column.numpy()
    found: dict[int, FloatArray] = {}
    for (_, start, end, _, _), position, rows in zip(plan.segments.tolist(), *_places(plan), strict=True):
        for row in rows:
            aligned = found.setdefault(row, np.zeros(len(masks[row]), np.float32))
            predicted = aligned[start + 1 : end + 1]
            predicted[:] = values[position : position + len(predicted)] * masks[row][start + 1 : end + 1]
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
    trajectories = {name: i for i, name in enumerate(dict.fromkeys(s.trajectory_id for s in samples))}
    members: dict[str, list[int]] = {}
    for index, sample in enumerate(samples):
        members.setdefault(sample.group_id, []).append(index)
    prompts: dict[int, IntArray] = {}
    rows: dict[int, RowPlace] = {}
    group_ids: dict[int, int] = {}
    for group, own in enumerate(members.values()):
        headers, prompts[group] = row_headers([samples[index] for index in own])
        for index, header in zip(own, headers, strict=True):
            rows[index] = RowPlace(header, trajectories[samples[index].trajectory_id], source=index, index=0)
            group_ids[index] = group
    in_order = [rows[index] for index in range(len(samples))]
    plan = BatchPlan(
        in_order,
        [[sample] for sample in samples],
        plan_mini_batches(in_order, [group_ids[index] for index in range(len(samples))], prompts, layout),
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

    A shared segment gets the sum over its rows: each of its tokens is trained by one of them at most, and the values of
    the others are 0 there.
    """
    _, rows_of = _places(plan)
    parts = [
        np.sum([_shifted(values[row], start, end) for row in rows], axis=0)
        for (_, start, end, _, _), rows in zip(plan.segments.tolist(), rows_of, strict=True)
    ]
    return _join(parts, plan.padding, dtype)


def _places(plan: MicroBatchPlan) -> tuple[list[int], list[list[int]]]:
    """The position of each segment's first token, and the rows that it is a part of."""
    segments: list[list[int]] = plan.segments.tolist()
    rows: list[list[int]] = [[] for _ in segments]
    for number, (row, _, _, _, is_end) in enumerate(segments):
        while is_end and number >= 0:
            rows[number].append(row)
            number = segments[number][3]
    lengths = plan.segments[:, 2] - plan.segments[:, 1]
    return (lengths.cumsum() - lengths).tolist(), rows


def _shifted(values: ArrayLike, start: int, end: int) -> NDArray:
    """The values of tokens start + 1 to end; 0 behind the last."""
    part = np.asarray(values)[start + 1 : end + 1]
    return part if len(part) == end - start else np.append(part, np.zeros(1, part.dtype))


def _join(parts: Sequence[ArrayLike], padding: int, dtype: DTypeLike) -> Tensor:
    arrays = [*(np.asarray(part) for part in parts), np.zeros(padding, dtype)]
    return _tensor(np.concatenate(arrays, dtype=dtype, casting="unsafe"))


def _tensor(array: NDArray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array))
