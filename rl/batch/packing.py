"""From samples to what the optimizer steps consume: shifted, weighted, packed without padding, balanced over ranks."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from itertools import pairwise

import torch
from torch import Tensor

from rl.algorithms.aggregation import loss_aggregation, token_loss_weights
from rl.batch.balance import CostModel, balance
from rl.config.device import runs_on_cuda
from rl.config.model_facts import find_model_facts
from rl.config.schema import Config, LossAggregation
from rl.types import Batch, MicroBatch, MiniBatch, Sample

_LEAST_ROOT = 16
"""Tokens that all samples must begin with to be held apart: a sequence more costs attention calls."""


@dataclass(slots=True, frozen=True)
class PackingLayout:
    """How a step's samples are cut into mini-batches, ranks and micro-batches."""

    num_data_parallel: int
    """Ranks that get different micro-batches, at least 1."""
    max_tokens: int
    """Tokens of one micro-batch; a longer sample stands alone."""
    mini_batch_prompts: int
    """Groups of one optimizer step at most, at least 1."""
    epochs: int = 1
    """Passes over the mini-batches, at least 1."""
    loss_aggregation: LossAggregation = LossAggregation.TOKEN_MEAN
    """See `rl.algorithms.aggregation.token_loss_weights`."""
    loss_scale: float = 1.0
    """Its constant, where it has one."""
    pad_to_multiple: int = 1
    """A micro-batch's length is a multiple of this: the tensor-parallel size, with sequence parallelism."""
    share_prefix: bool = False
    """Hold what the samples of a group, and the groups, have in common once in each micro-batch."""
    num_micro_batches_multiple: int = 1
    """A rank's number of micro-batches is a multiple of this: the pipeline size, with virtual pipeline stages."""
    cost: CostModel = field(default_factory=CostModel)
    """What a sequence costs, for the balance of ranks."""


def packing_layout(config: Config, *, num_data_parallel: int) -> PackingLayout:
    """Read the sizes off the configuration.

    Args:
        config: The run's configuration.
        num_data_parallel: Ranks that train on different samples.

    Returns:
        The layout of every step of the run.
    """
    rl, training, actor = config.rl_config, config.megatron_training, config.actor_config
    facts, _ = find_model_facts(config)
    aggregation, scale = loss_aggregation(config)
    return PackingLayout(
        num_data_parallel=num_data_parallel,
        max_tokens=rl.max_packing_token_size,
        mini_batch_prompts=rl.mini_batch_size or training.global_batch_size,
        epochs=rl.epochs,
        loss_aggregation=aggregation,
        loss_scale=scale,
        pad_to_multiple=actor.tensor_model_parallel_size if training.sequence_parallel else 1,
        share_prefix=not runs_on_cuda(config) if rl.share_prompt_prefix is None else rl.share_prompt_prefix,
        num_micro_batches_multiple=(
            1 if actor.num_layers_per_virtual_pipeline_stage is None else actor.pipeline_model_parallel_size
        ),
        cost=CostModel.of(facts),
    )


def demonstration_layout(config: Config, *, num_data_parallel: int) -> PackingLayout:
    """As `packing_layout`, for the cold start: one optimizer step a step, on the mean over its tokens.

    How rewards are learned from (`mini_batch_size`, `epochs`, `loss_agg_mode`) says nothing of demonstrations.
    """
    return replace(
        packing_layout(config, num_data_parallel=num_data_parallel),
        mini_batch_prompts=config.megatron_training.global_batch_size,
        epochs=1,
        loss_aggregation=LossAggregation.TOKEN_MEAN,
    )


@dataclass(slots=True, frozen=True)
class _Bundle:
    """Samples that go into one micro-batch together because they share their first tokens, or one sample alone."""

    rows: list[int]
    """Indices of the samples."""
    prefix_length: int
    """Tokens held once for all of them, the root included."""
    num_tokens: int
    """Those and each sample's own, without the root: what every sample of the mini-batch begins with."""


def pack_samples(samples: list[Sample], layout: PackingLayout) -> Batch:
    """Cut samples into mini-batches of whole groups, and these into micro-batches.

    Groups keep the order in which they first appear. Samples without loss tokens are left out, and so is a group that
    has no others. The others are cut into as few mini-batches as `mini_batch_prompts` allows, whose numbers of groups
    differ by one at most: 17 groups in mini-batches of 16 are 9 and 8, since an optimizer step on the one left over
    would move the weights as far as that on 16. Samples are distributed over ranks by their cost and over micro-batches
    by their length (`rl.batch.balance`); the result is the same on every call. With `share_prefix` it is not samples
    that are distributed but groups, cut where `max_tokens` or the balance of ranks demands it; and what all samples
    begin with, a system prompt with tool schemas for example, is the first sequence of every micro-batch.

    The epochs hold the same micro-batch objects, so log-probs filled in once are there in each.

    Example: samples of 5, 4, 3 and 2 tokens, 2 ranks, at most 7 tokens: rank 0 gets [5, 2], rank 1 gets [4, 3].

    Args:
        samples: Token-aligned rows, of at least 2 tokens where they have loss tokens.
        layout: The sizes.

    Returns:
        Prediction-aligned micro-batches; every rank has the same number, filled up with zero-weight ones.
    """
    groups: dict[str, list[Sample]] = {}
    for sample in samples:
        if bool(sample.loss_mask[1:].any()):
            groups.setdefault(sample.group_id, []).append(sample)
    in_order = list(groups.values())
    num = math.ceil(len(in_order) / layout.mini_batch_prompts)
    mini_batches = [
        _pack_mini_batch([sample for group in part for sample in group], layout) for part in _even_parts(in_order, num)
    ]
    return Batch(mini_batches=mini_batches * layout.epochs)


def _even_parts(groups: list[list[Sample]], num: int) -> list[list[list[Sample]]]:
    """Cut groups into `num` parts, in order, whose lengths differ by one at most."""
    bounds = [-(-len(groups) * part // num) for part in range(num + 1)] if num else []
    return [groups[start:end] for start, end in pairwise(bounds)]


def _pack_mini_batch(samples: list[Sample], layout: PackingLayout) -> MiniBatch:
    weights, num_trajectories = _weigh(samples, layout)
    multiple = layout.pad_to_multiple
    max_tokens = max(layout.max_tokens // multiple, 1) * multiple
    root = _shared_length(samples) if layout.share_prefix else 0
    root = root if root >= _LEAST_ROOT else 0
    budget = max(max_tokens - root, 1)
    bundles = _bundle(samples, budget, root, share_prefix=layout.share_prefix)
    if layout.share_prefix and layout.num_data_parallel > 1:
        # Groups of half a rank's share at most: whole ones may be too few, or too unequal, to balance.
        share = sum(bundle.num_tokens for bundle in bundles) // (2 * layout.num_data_parallel)
        bundles = _bundle(samples, min(budget, share), root, share_prefix=True)
    ranks = balance(
        [bundle.num_tokens for bundle in bundles],
        [_cost(bundle, samples, layout.cost, root) for bundle in bundles],
        num_ranks=layout.num_data_parallel,
        max_tokens=budget,
        num_bins_multiple=layout.num_micro_batches_multiple,
    )
    return MiniBatch(
        micro_batches=[
            [_pack_micro_batch([bundles[i] for i in content], samples, weights, root, multiple) for content in bins]
            for bins in ranks
        ],
        num_loss_tokens=sum(int(s.loss_mask[1:].sum()) for s in samples),
        num_trajectories=num_trajectories,
        trajectory_ids=[s.trajectory_id for s in samples],
    )


def _cost(bundle: _Bundle, samples: list[Sample], cost: CostModel, root: int) -> float:
    members = [samples[row] for row in bundle.rows]
    num_loss_tokens = sum(int(sample.loss_mask[1:].sum()) for sample in members)
    whole = cost.cost([len(sample.token_ids) for sample in members], bundle.prefix_length, num_loss_tokens)
    return whole - cost.cost([root], 0, 0)


def _bundle(samples: list[Sample], max_tokens: int, root: int, *, share_prefix: bool) -> list[_Bundle]:
    """Cut each group into bundles of at most `max_tokens`, in order; without sharing each sample is one."""
    groups: dict[str, list[int]] = {}
    for row, sample in enumerate(samples):
        groups.setdefault(sample.group_id if share_prefix else str(row), []).append(row)
    bundles: list[_Bundle] = []
    for rows in groups.values():
        shared = _shared_length([samples[row] for row in rows]) if len(rows) > 1 else root
        start = len(bundles)
        for row in rows:
            own = len(samples[row].token_ids) - shared
            last = bundles[-1] if len(bundles) > start and shared else None
            if last is not None and last.num_tokens + own <= max_tokens:
                bundles[-1] = _Bundle([*last.rows, row], shared, last.num_tokens + own)
            else:
                bundles.append(_Bundle([row], shared, shared - root + own))
    return bundles


def _shared_length(samples: list[Sample]) -> int:
    """Tokens that all samples begin with and none has sampled, less one.

    The last of them stays with each sample: what it predicts, the first sampled token, differs.
    """
    length = min(len(s.token_ids) for s in samples)
    rows = torch.stack([s.token_ids[:length] for s in samples])
    sampled = torch.stack([s.loss_mask[:length] for s in samples])
    differs = (rows != rows[0]).any(0) | (sampled > 0).any(0)
    common = int(differs.int().argmax()) if bool(differs.any()) else length
    return max(common - 1, 0)


def _weigh(samples: list[Sample], layout: PackingLayout) -> tuple[list[Tensor], int]:
    """Token-aligned loss weights of each sample, and the number of trajectories that have loss tokens."""
    numbers = {trajectory: i for i, trajectory in enumerate(dict.fromkeys(s.trajectory_id for s in samples))}
    lengths = [len(s.token_ids) for s in samples]
    ids = torch.tensor([numbers[s.trajectory_id] for s in samples]).repeat_interleave(torch.tensor(lengths))
    mask = torch.cat([s.loss_mask for s in samples])
    weights = token_loss_weights(mask, ids, layout.loss_aggregation, scale=layout.loss_scale)
    return list(weights.split(lengths)), len(numbers)


@dataclass(slots=True, frozen=True)
class _Segment:
    """One sequence of a micro-batch: a sample's tokens [start, end), as seen by the prediction made at each."""

    sample: Sample
    weights: Tensor
    start: int
    end: int
    prefix: int = -1
    """The segment that comes before it, or -1."""
    row: int = -1
    """Index of the sample; -1 for what several share."""

    def predicted(self, values: Tensor) -> Tensor:
        """Token-aligned to prediction-aligned: position t gets the value of token t + 1, the sample's last one 0."""
        shifted = torch.cat([values[1:], values.new_zeros(1)])
        return shifted[self.start : self.end]


def _segments(bundles: list[_Bundle], samples: list[Sample], weights: list[Tensor], root: int) -> list[_Segment]:
    """The root, then of each bundle what its samples share beyond it, and each sample's own tokens."""

    def shared(sample: Sample, start: int, end: int, prefix: int) -> _Segment:
        return _Segment(sample, torch.zeros_like(sample.loss_mask), start, end, prefix)

    segments: list[_Segment] = []
    if bundles and root:
        segments.append(shared(samples[bundles[0].rows[0]], 0, root, -1))
    for bundle in bundles:
        prefix = 0 if root else -1
        if bundle.prefix_length > root:
            segments.append(shared(samples[bundle.rows[0]], root, bundle.prefix_length, prefix))
            prefix = len(segments) - 1
        for row in bundle.rows:
            end = len(samples[row].token_ids)
            segments.append(_Segment(samples[row], weights[row], bundle.prefix_length, end, prefix, row))
    return segments


def _pack_micro_batch(
    bundles: list[_Bundle], samples: list[Sample], weights: list[Tensor], root: int, pad_to_multiple: int
) -> MicroBatch:
    """Concatenate the segments, and append the padding as a zero-weight sequence of its own."""
    segments = _segments(bundles, samples, weights, root)
    lengths = [s.end - s.start for s in segments]
    starts = [s.start for s in segments]
    prefixes = [s.prefix for s in segments]
    rows = [s.row for s in segments]
    # At least one token: an empty micro-batch must still run on its rank.
    padding = max(-(-sum(lengths) // pad_to_multiple), 1) * pad_to_multiple - sum(lengths)
    if padding:
        lengths, starts, prefixes, rows = [*lengths, padding], [*starts, 0], [*prefixes, -1], [*rows, -1]
    return MicroBatch(
        token_ids=_join([s.sample.token_ids[s.start : s.end] for s in segments], padding, torch.int64),
        target_ids=_join([s.predicted(s.sample.token_ids) for s in segments], padding, torch.int64),
        position_ids=torch.cat([torch.arange(a, a + n) for a, n in zip(starts, lengths, strict=True)]),
        cu_seqlens=torch.tensor([0, *lengths]).cumsum(0).to(torch.int32),
        prefix_ids=torch.tensor(prefixes),
        loss_mask=_join([s.predicted(s.sample.loss_mask) for s in segments], padding, torch.float32),
        loss_weights=_join([s.predicted(s.weights) for s in segments], padding, torch.float32),
        advantages=_join([s.predicted(s.sample.advantages) for s in segments], padding, torch.float32),
        rollout_logprobs=_join([s.predicted(s.sample.rollout_logprobs) for s in segments], padding, torch.float32),
        sample_ids=torch.tensor(rows),
    )


def _join(parts: list[Tensor], padding: int, dtype: torch.dtype) -> Tensor:
    return torch.cat([*parts, torch.zeros(padding, dtype=dtype)]).to(dtype)
