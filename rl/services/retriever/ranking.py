"""Finds the documents with the highest sums of scores, without visiting all that have a word of the query.

Most postings of a query belong to its most frequent words, which add least to a score. So words are processed from the
rarest on, and each document with the word is scored for all words at once. Documents that have only the remaining words
are skipped once these words together could not bring a document into the top k. The result is exact: sums are in the
order of the query's words, with the rounding of bm25s.

Source: MaxScore, Turtle and Flood 1995, applied to whole posting lists instead of single documents.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_ROUNDING = 1 + 1e-5
"""A float32 sum may exceed the sum of its bounds by this factor."""
_LOOK_UP_COST = 12
"""Cost of finding one row by bisection, in units of reading one row sequentially."""
_MANY_WORDS = 64
"""In longer queries the score of a repeated word is multiplied. In shorter ones it is added repeatedly, as in bm25s."""


class Postings:
    """The documents that have a word, and what the word adds to the score of each."""

    __slots__ = ("_most", "data", "rows")

    def __init__(self, rows: NDArray[np.int32], data: NDArray[np.float32]) -> None:
        """Take over a part of an index.

        Args:
            rows: [P] documents, ascending, P at least 1.
            data: [P] scores, above 0.
        """
        self.rows, self.data = rows, data
        self._most = -1.0

    @property
    def most(self) -> float:
        """The highest score."""
        if self._most < 0:
            self._most = float(self.data.max())
        return self._most

    def cost(self, num_rows: int) -> int:
        """Approximate cost of looking up `num_rows` documents, in units of reading one row sequentially."""
        return min(_LOOK_UP_COST * num_rows, 2 * len(self.rows) + num_rows)

    def look_up(self, rows: NDArray[np.int32], scratch: NDArray[np.float32]) -> NDArray[np.float32]:
        """The word's scores in some documents.

        Args:
            rows: [R] documents.
            scratch: [D] zeros, also afterwards.

        Returns:
            [R] scores, 0 for a document without the word.
        """
        if 2 * len(self.rows) < (_LOOK_UP_COST - 1) * len(rows):
            scratch[self.rows] = self.data
            found: NDArray[np.float32] = scratch[rows]
            scratch[self.rows] = 0
            return found
        places = np.searchsorted(self.rows, rows)
        places[places == len(self.rows)] = 0
        return np.where(self.rows[places] == rows, self.data[places], np.float32(0))


def find_best(
    words: Sequence[Postings], topk: int, num_documents: int
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Find the documents with the highest sums.

    Args:
        words: The words of the query in order, repeated ones repeated.
        topk: Number of documents, at least 1.
        num_documents: D.

    Returns:
        [R] rows and [R] scores of documents with a word, R at most `topk`, best first; equal scores in order of rows.
    """
    counts = Counter(words)
    steps = list(counts.items()) if len(words) > _MANY_WORDS else [(word, 1) for word in words]
    by_length = sorted(counts, key=lambda word: len(word.rows))
    bounds = [_ROUNDING * word.most * counts[word] for word in by_length]
    budget = num_documents + sum(len(word.rows) for word in by_length)
    seen = np.zeros(num_documents, dtype=bool)
    scratch = np.zeros(num_documents, dtype=np.float32)
    rows, scores = np.zeros(0, dtype=np.int32), np.zeros(0, dtype=np.float32)
    for place, word in enumerate(by_length):
        if len(scores) == topk and scores[-1] > sum(bounds[place:]):
            break
        new = word.rows[~seen[word.rows]]  # documents without any of the rarer words
        budget -= sum(other.cost(len(new)) for other in by_length[place + 1 :])
        if budget < 0:
            return _score_all(steps, topk, num_documents)
        seen[new] = True
        left = set(by_length[place:])
        new_scores = _add_up([step for step in steps if step[0] in left], new, scratch)
        rows, scores = _choose(np.concatenate((rows, new)), np.concatenate((scores, new_scores)), topk)
    return rows, scores


def _add_up(
    steps: list[tuple[Postings, int]], rows: NDArray[np.int32], scratch: NDArray[np.float32]
) -> NDArray[np.float32]:
    columns = {word: word.look_up(rows, scratch) for word, _ in steps}
    total = np.zeros(len(rows), dtype=np.float32)
    for word, times in steps:
        total += columns[word] if times == 1 else columns[word] * np.float32(times)
    return total


def _score_all(
    steps: list[tuple[Postings, int]], topk: int, num_documents: int
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Score all documents. This is faster when the words add similar scores."""
    total = np.zeros(num_documents, dtype=np.float32)
    for word, times in steps:
        total[word.rows] += word.data if times == 1 else word.data * np.float32(times)
    found = np.flatnonzero(total).astype(np.int32)
    return _choose(found, total[found], topk)


def _choose(
    rows: NDArray[np.int32], scores: NDArray[np.float32], topk: int
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    order = -scores  # best first, since numpy's partition is faster for a few at the front
    if len(rows) > topk:
        is_near = order <= np.partition(order, topk - 1)[topk - 1]
        rows, scores, order = rows[is_near], scores[is_near], order[is_near]
    best = np.lexsort((rows, order))[:topk]
    return rows[best], scores[best]
