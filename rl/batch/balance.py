"""Which rank and which micro-batch a sequence goes to: ranks that take equally long, within the token budget."""

from __future__ import annotations

import heapq
from dataclasses import dataclass

from rl.config.model_facts import count_layer_parameters, head_size
from rl.config.schema import ModelConfig


@dataclass(slots=True, frozen=True)
class CostModel:
    """What an update costs, in multiples of one token's way through the matrices of all layers.

    cost = tokens + attention * (pairs of a token and one it sees) + head * loss tokens

    All three terms are multiply-adds: of a layer's parameters, of queries with keys and probabilities with values, and
    of the head, which runs on loss tokens alone. The backward pass doubles each of them.
    """

    attention: float = 0.0
    head: float = 0.0

    @staticmethod
    def of(facts: ModelConfig | None) -> CostModel:
        """The cost of an architecture; where it is not known, tokens alone count."""
        if facts is None:
            return CostModel()
        layer = count_layer_parameters(facts)
        return CostModel(
            attention=2 * facts.num_attention_heads * head_size(facts) / layer,
            head=facts.vocab_size * facts.hidden_size / (facts.num_hidden_layers * layer),
        )

    def cost(self, lengths: list[int], prefix_length: int, num_loss_tokens: int) -> float:
        """The cost of sequences that share their first tokens, or of one alone.

        Args:
            lengths: Tokens of each sequence, the prefix included.
            prefix_length: Tokens computed once for all of them.
            num_loss_tokens: Of all sequences.
        """
        repeats = len(lengths) - 1
        num_tokens = sum(lengths) - repeats * prefix_length
        num_pairs = sum(_causal_pairs(n) for n in lengths) - repeats * _causal_pairs(prefix_length)
        return num_tokens + self.attention * num_pairs + self.head * num_loss_tokens


def balance(
    lengths: list[int], costs: list[float], *, num_ranks: int, max_tokens: int, num_bins_multiple: int = 1
) -> list[list[list[int]]]:
    """Distribute rows over ranks by their cost, and each rank's over bins by their length.

    Within a rank the longest row goes first, each into the emptiest bin, with the smallest number of bins that
    respects `max_tokens` on every rank.

    Args:
        lengths: Tokens of each row.
        costs: Cost of each row.
        num_ranks: Ranks.
        max_tokens: Tokens of one bin, unless a single row is longer.
        num_bins_multiple: The number of bins of a rank is a multiple of this.

    Returns:
        [rank][bin][i] indices of rows; each rank has the same number of bins, the fullest first, some may be empty.
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
    """Cut rows into parts of nearly equal cost: the largest differencing method.

    At first each row is a partition of its own, with all but one part empty. Again and again the two partitions with
    the largest spread between their fullest and emptiest part are joined, fullest with emptiest.

    Example: costs 8, 7, 6, 5, 4 in two parts: 8 | 7, then 6 | 5, then 4 joins 7: 11 | 8; at last 11 meets 5 and 8
    meets 6: 16 | 14.

    Args:
        costs: Of each row, at least 0.
        num_parts: Parts, at least 1.

    Returns:
        [part][i] indices of rows, the costliest part first; the same on every call.

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
    """Pairs of a token and one that it sees, itself included."""
    return length * (length + 1) // 2
