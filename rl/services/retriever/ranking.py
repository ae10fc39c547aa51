"""The documents with the highest sums of scores, without a visit to all that hold a word of the query.

Most of a query's postings belong to its commonest words, which add least to a score. The words are taken from the
rarest on, and each document that holds one is scored for all words at once. As soon as the words that are left could
not, all together, bring a document among the best, the documents that hold only those are left out. The result is
exact, with the sums in the order of the query's words, rounded as bm25s rounds them.

Source: MaxScore, Turtle and Flood 1995, by whole lists of postings rather than document by document.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_ROUNDING = 1 + 1e-5
"""Sums of float32 may be larger by so much than the sum of their bounds."""
_LOOK_UP_COST = 12
"""Finding one row by bisection, in rows that are read one after the other."""
_MANY_WORDS = 64
"""In a query of more, the score of one that occurs several times is multiplied; else it is added each time, as by
bm25s."""


class Postings:
    """The documents that hold a word, and what it adds to the score of each."""

    __slots__ = ("_most", "data", "rows")

    def __init__(self, rows: NDArray[np.int32], data: NDArray[np.float32]) -> None:
        """Take over a part of an index.

        Args:
            rows: [P] ascending, P at least 1.
            data: [P] above 0.
        """
        self.rows, self.data = rows, data
        self._most = -1.0

    @property
    def most(self) -> float:
        """What it adds at most."""
        if self._most < 0:
            self._most = float(self.data.max())
        return self._most

    def cost(self, num_rows: int) -> int:
        """Of looking up so many documents, about: rows that are read one after the other."""
        return min(_LOOK_UP_COST * num_rows, 2 * len(self.rows) + num_rows)

    def look_up(self, rows: NDArray[np.int32], scratch: NDArray[np.float32]) -> NDArray[np.float32]:
        """What the word adds to some documents.

        Args:
            rows: [R] of documents.
            scratch: [D] zeros, left so.

        Returns:
            [R] 0 where the word is not.
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
        words: Of the query, in its order; one that stands there twice is there twice.
        topk: How many, at least 1.
        num_documents: D.

    Returns:
        [R] rows and [R] scores, R at most `topk`, best first, among equals the earlier; none that holds no word.
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
        new = word.rows[~seen[word.rows]]  # these hold none of the rarer words
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
    """Where the words are alike in what they add, each document must be looked at."""
    total = np.zeros(num_documents, dtype=np.float32)
    for word, times in steps:
        total[word.rows] += word.data if times == 1 else word.data * np.float32(times)
    found = np.flatnonzero(total).astype(np.int32)
    return _choose(found, total[found], topk)


def _choose(
    rows: NDArray[np.int32], scores: NDArray[np.float32], topk: int
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    order = -scores  # the best in front: numpy finds the few at the front sooner than those at the end
    if len(rows) > topk:
        is_near = order <= np.partition(order, topk - 1)[topk - 1]
        rows, scores, order = rows[is_near], scores[is_near], order[is_near]
    best = np.lexsort((rows, order))[:topk]
    return rows[best], scores[best]
