"""Assigns rows to mini-batches, ranks and micro-batches, from headers alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise, takewhile

import numpy as np
import torch

from rl.algorithms.aggregation import token_loss_weights
from rl.batch.balance import CostModel, balance
from rl.batch.layout import PackingLayout
from rl.batch.rows import shared_length
from rl.batch.tree import num_shared
from rl.batches import BatchPlan, MicroBatchPlan, MiniBatchPlan, RowHeader, RowPlace, Share
from rl.types import IntArray

_LEAST_ROOT = 16
"""Minimum common prefix of all samples to store once: an extra sequence costs attention calls."""

_Segment = tuple[int, int, int, int, int]
"""A row of `MicroBatchPlan.segments`."""


@dataclass(slots=True, frozen=True)
class _Bundle:
    """Neighbours in a group's tree that go into one micro-batch, or a single row."""

    rows: list[int]
    """Row numbers in the mini-batch, in the order of the tree."""
    shared: list[int]
    """The first tokens of each row that are stored for the row before it; for the first row, the root: the prefix of
    all rows of the mini-batch."""
    num_tokens: int
    """Tokens to store, without the root."""


def plan_mini_batches(
    rows: Sequence[RowPlace], groups: Sequence[int], prompts: Mapping[int, IntArray], layout: PackingLayout
) -> list[MiniBatchPlan]:
    """Split rows into mini-batches of whole groups, and these into micro-batches.

    Groups keep the order in which they first appear. Rows without loss tokens are dropped, and so are groups of only
    such rows. The rest is split into as few mini-batches as `mini_batch_prompts` allows, whose numbers of groups differ
    by at most one: 17 groups in mini-batches of 16 become 9 and 8, because a step on one remaining group would move the
    weights as far as a step on 16. Rows are distributed over ranks by cost and over micro-batches by length
    (`rl.batch.balance`), deterministically. With `share_prefix`, groups are distributed instead, and split if
    `max_tokens` or the balance of ranks requires it: what both parts begin with is then repeated, and each token is
    trained where its row ends. Within a part every shared prefix is stored once. The common prefix of all rows, such as
    a system prompt with tool schemas, is then the first segment of every micro-batch.

    Example: rows of 5, 4, 3 and 2 tokens, 2 ranks, at most 7 tokens: rank 0 gets [5, 2], rank 1 gets [4, 3].

    Args:
        rows: The batch's.
        groups: The group of each row.
        prompts: By group, the tokens that `RowHeader.shared_length` refers to.
        layout: The sizes.

    Returns:
        Plans of one epoch; every rank has the same number of micro-batches, some empty.
    """
    members: dict[int, list[int]] = {}
    for number, row in enumerate(rows):
        if row.header.num_loss_tokens:
            members.setdefault(groups[number], []).append(number)
    in_order = list(members.items())
    num = math.ceil(len(in_order) / layout.mini_batch_prompts)
    bounds = [-(-len(in_order) * part // num) for part in range(num + 1)] if num else []
    return [_plan_mini_batch(rows, in_order[start:end], prompts, layout) for start, end in pairwise(bounds)]


def row_weights(plan: BatchPlan, layout: PackingLayout) -> list[float]:
    """The weight of each loss token of every row, with the denominator of the row's mini-batch."""
    weights = [0.0] * len(plan.rows)
    for mini_batch in plan.mini_batches:
        rows = [plan.rows[number] for number in mini_batch.rows]
        numbers = {trajectory: i for i, trajectory in enumerate(dict.fromkeys(row.trajectory for row in rows))}
        of_rows = token_loss_weights(
            torch.tensor([float(row.header.num_loss_tokens) for row in rows], dtype=torch.float64),
            torch.tensor([numbers[row.trajectory] for row in rows], dtype=torch.int64),
            layout.loss_aggregation,
            scale=layout.loss_scale,
        )
        for number, weight in zip(mini_batch.rows, of_rows.tolist(), strict=True):
            weights[number] = weight
    return weights


def share_of(plan: BatchPlan, dp_rank: int) -> Share:
    """One data-parallel rank's part of a batch: its micro-batches and the location of their rows."""
    mini_batches = [(mini.rows, mini.micro_batches[dp_rank]) for mini in plan.mini_batches]
    needed = sorted(
        {rows[i] for rows, micro_batches in mini_batches for micro in micro_batches for i in micro.segments[:, 0]}
    )
    sources = sorted({plan.rows[number].source for number in needed})
    places = {source: place for place, source in enumerate(sources)}
    rows = {number: (places[plan.rows[number].source], plan.rows[number].index) for number in needed}
    return Share([plan.sources[source] for source in sources], rows, mini_batches)


def _plan_mini_batch(
    rows: Sequence[RowPlace],
    members: Sequence[tuple[int, list[int]]],
    prompts: Mapping[int, IntArray],
    layout: PackingLayout,
) -> MiniBatchPlan:
    numbers = [number for _, own in members for number in own]
    headers = [rows[number].header for number in numbers]
    local = {number: i for i, number in enumerate(numbers)}
    groups = [[local[number] for number in own] for _, own in members]
    multiple = layout.pad_to_multiple
    max_tokens = max(layout.max_tokens // multiple, 1) * multiple
    root = _root_length(headers, [prompts[group] for group, _ in members]) if layout.share_prefix else 0
    root = root if root >= _LEAST_ROOT else 0
    budget = max(max_tokens - root, 1)
    if not layout.share_prefix:
        groups = [[row] for own in groups for row in own]
    bundles = _bundle(headers, groups, budget, root)
    if layout.share_prefix and layout.num_data_parallel > 1:
        # Bundles of at most half a rank's share: whole groups may be too few or too unequal to balance.
        share = sum(bundle.num_tokens for bundle in bundles) // (2 * layout.num_data_parallel)
        bundles = _bundle(headers, groups, min(budget, share), root)
    ranks = balance(
        [bundle.num_tokens for bundle in bundles],
        [_cost(bundle, headers, layout.cost) for bundle in bundles],
        num_ranks=layout.num_data_parallel,
        max_tokens=budget,
        num_bins_multiple=layout.num_micro_batches_multiple,
    )
    return MiniBatchPlan(
        rows=numbers,
        micro_batches=[
            [_plan_micro_batch([bundles[i] for i in content], headers, root, multiple) for content in bins]
            for bins in ranks
        ],
        num_loss_tokens=sum(header.num_loss_tokens for header in headers),
        num_trajectories=len({rows[number].trajectory for number in numbers}),
    )


def _root_length(headers: Sequence[RowHeader], prompts: Sequence[IntArray]) -> int:
    """Unsampled tokens that all rows begin with, minus one (see `_num_stored`)."""
    first = prompts[0]
    common = min(shared_length(first, prompt) for prompt in prompts)
    return max(min(common, *(header.shared_length for header in headers)) - 1, 0)


def _num_stored(before: RowHeader, header: RowHeader, root: int) -> int:
    """Tokens of a row that are stored for the row before it in the tree: those that they share, minus one.

    Each row keeps the last of them, because the token that it predicts there is another one.
    """
    return max(num_shared(before.path, header.path) - 1, root)


def _cost(bundle: _Bundle, headers: Sequence[RowHeader], cost: CostModel) -> float:
    members = [headers[row] for row in bundle.rows]
    num_loss_tokens = sum(header.num_loss_tokens for header in members)
    return cost.cost([header.length for header in members], bundle.shared, num_loss_tokens)


def _bundle(headers: Sequence[RowHeader], groups: Sequence[Sequence[int]], max_tokens: int, root: int) -> list[_Bundle]:
    """Split the tree of each group into bundles of at most `max_tokens`. Rows that share only the root stay apart."""
    bundles: list[_Bundle] = []
    for rows in groups:
        last: _Bundle | None = None
        for row in sorted(rows, key=lambda row: headers[row].path[-1]):
            stored = _num_stored(headers[last.rows[-1]], headers[row], root) if last else root
            own = headers[row].length - stored
            if last is not None and stored > root and last.num_tokens + own <= max_tokens:
                last = _Bundle([*last.rows, row], [*last.shared, stored], last.num_tokens + own)
                bundles[-1] = last
            else:
                last = _Bundle([row], [root], headers[row].length - root)
                bundles.append(last)
    return bundles


def _plan_micro_batch(
    bundles: Sequence[_Bundle], headers: Sequence[RowHeader], root: int, pad_to_multiple: int
) -> MicroBatchPlan:
    """The root, then for each bundle its tree, depth first."""
    segments: list[_Segment] = []
    if bundles and root:
        segments.append((bundles[0].rows[0], 0, root, -1, 0))
    for bundle in bundles:
        _add_tree(segments, bundle, headers, (root, 0 if root else -1))
    num_tokens = sum(end - start for _, start, end, _, _ in segments)
    # At least one token: an empty micro-batch must still run on its rank.
    padding = max(-(-num_tokens // pad_to_multiple), 1) * pad_to_multiple - num_tokens
    return MicroBatchPlan(np.array(segments, np.int32).reshape(-1, 5), padding)


def _add_tree(segments: list[_Segment], bundle: _Bundle, headers: Sequence[RowHeader], root: tuple[int, int]) -> None:
    """Add a segment for each node of a bundle's tree.

    Example: rows of 6 tokens that store 0, 3 and 5 tokens for the row before. The first adds [0, 3) and its end [3, 6),
    the second behind the first segment [3, 5) and [5, 6), and the third [5, 6) behind that.

    Args:
        segments: Extended.
        bundle: The rows.
        headers: The mini-batch's rows.
        root: Where the root ends, and its segment or -1.
    """
    ends = [root]
    """Where the row's segments end that a later row may go on from, and their numbers."""
    for i, (row, stored) in enumerate(zip(bundle.rows, bundle.shared, strict=True)):
        while ends[-1][0] > stored:
            ends.pop()
        later = accumulate(bundle.shared[i + 1 :], min)
        for end in sorted(set(takewhile(lambda end: end > ends[-1][0], later))):
            segments.append((row, ends[-1][0], end, ends[-1][1], 0))
            ends.append((end, len(segments) - 1))
        segments.append((row, ends[-1][0], headers[row].length, ends[-1][1], 1))
