"""Assigns sequences to ranks and micro-batches: equal time per rank, within the token budget."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

from rl.config.model_facts import count_layer_parameters, head_size
from rl.config.schema import ModelConfig


@dataclass(slots=True, frozen=True)
class CostModel:
    """Cost of an update, in units of one token's pass through the matrices of all layers.

    cost = tokens + attention * (pairs of a token and one it sees) + head * loss tokens

    All three terms count multiply-adds: of a layer's parameters, of queries with keys and probabilities with values,
    and of the head, which runs only on loss tokens. The backward pass doubles each.
    """

    attention: float = 0.0
    head: float = 0.0

    @staticmethod
    def of(facts: ModelConfig | None) -> CostModel:
        """The cost model of an architecture; if unknown, only tokens count."""
        if facts is None:
            return CostModel()
        layer = count_layer_parameters(facts)
        return CostModel(
            attention=2 * facts.num_attention_heads * head_size(facts) / layer,
            head=facts.vocab_size * facts.hidden_size / (facts.num_hidden_layers * layer),
        )

    def cost(self, lengths: Sequence[int], shared: Sequence[int], num_loss_tokens: int) -> float:
        """The cost of sequences that share prefixes, or of a single sequence.

        Args:
            lengths: Tokens of each sequence, including its prefix.
            shared: The first tokens of each sequence that are computed for another one.
            num_loss_tokens: Total over all sequences.
        """
        num_tokens = sum(lengths) - sum(shared)
        num_pairs = sum(map(_causal_pairs, lengths)) - sum(map(_causal_pairs, shared))
        return num_tokens + self.attention * num_pairs + self.head * num_loss_tokens


def balance(
    lengths: list[int], costs: list[float], *, num_ranks: int, max_tokens: int, num_bins_multiple: int = 1
) -> list[list[list[int]]]:
    """Distribute rows over ranks by cost, and each rank's rows over bins by length.

    Within a rank, rows go longest first into the emptiest bin. The number of bins is the smallest that respects
    `max_tokens` on every rank.

    Args:
        lengths: Tokens of each row.
        costs: Cost of each row.
        num_ranks: Ranks.
        max_tokens: Maximum tokens of a bin; a longer row gets its own.
        num_bins_multiple: The number of bins of a rank is a multiple of this.

    Returns:
        [rank][bin][i] row indices; each rank has the same number of bins, fullest first; some may be empty.
    """
    ranks = karmarkar_karp(costs, num_ranks)
    least = max(-(-sum(min(lengths[row], max_tokens) for row in rows) // max_tokens) for rows in ranks)
    num_bins = max(-(-least // num_bins_multiple), 1) * num_bins_multiple
    while True:
        filled = [_fill(lengths, rows, num_bins) for rows in ranks]
        if all(total <= max_tokens or len(content) == 1 for bins in filled for total, content in bins):
            return [[content for _, content in bins] for bins in filled]
        num_bins += num_bins_multiple


def karmarkar_karp(costs: list[float], num_parts: int) -> list[list[int]]:
    """Partition rows into parts of nearly equal cost: the largest differencing method.

    Each row starts as its own partition, with all but one part empty. Each step joins the two partitions with the
    largest spread between fullest and emptiest part, fullest with emptiest.

    Example: costs 8, 7, 6, 5, 4 in two parts: 8 | 7, then 6 | 5, then 4 joins 7: 11 | 8; finally 11 joins 5 and 8 joins
    6: 16 | 14.

    Args:
        costs: Cost of each row, at least 0.
        num_parts: At least 1.

    Returns:
        [part][i] row indices, costliest part first; deterministic.

    Source: Karmarkar and Karp, "The differencing method of set partitioning", UCB/CSD-82-113, for several parts.
    """
    empty: tuple[float, list[int]] = (0.0, [])
    heap = [(-cost, row, [(cost, [row])] + [empty] * (num_parts - 1)) for row, cost in enumerate(costs)]
    heapq.heapify(heap)
    while len(heap) > 1:
        _, number, one = heapq.heappop(heap)
        _, _, other = heapq.heappop(heap)
        joined = [(a + b, rows + more) for (a, rows), (b, more) in zip(one, reversed(other), strict=True)]
        joined.sort(key=lambda part: -part[0])
        heapq.heappush(heap, (joined[-1][0] - joined[0][0], number, joined))
    return [sorted(rows) for _, rows in heap[0][2]] if heap else [[] for _ in range(num_parts)]


def _fill(lengths: list[int], rows: list[int], num_bins: int) -> list[tuple[int, list[int]]]:
    """Total and rows of each bin, the fullest first."""
    bins: list[list[int]] = [[] for _ in range(num_bins)]
    emptiest = [(0, index) for index in range(num_bins)]
    for row in sorted(rows, key=lambda row: (-lengths[row], row)):
        total, index = heapq.heappop(emptiest)
        bins[index].append(row)
        heapq.heappush(emptiest, (total + lengths[row], index))
    fullest_first = sorted(emptiest, key=lambda entry: (-entry[0], entry[1]))
    return [(total, bins[index]) for total, index in fullest_first]


def _causal_pairs(length: int) -> int:
    """Pairs of a token and one it attends to, including itself."""
    return length * (length + 1) // 2
