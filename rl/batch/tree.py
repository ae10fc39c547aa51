"""The tree of a group's rows: rows that begin with the same tokens share them. Needs only numpy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from rl.types import IntArray

Path = tuple[tuple[int, int], ...]
"""The nodes that a row's tokens are in, from the root on: the number of each, and how many tokens end with it."""


@dataclass(slots=True)
class _Node:
    """Tokens that the rows below have in common."""

    token_ids: IntArray
    is_sampled: NDArray[np.bool_]
    """One of the rows below trains on the token."""
    children: list[_Node] = field(default_factory=list)
    row: int | None = None
    """The row that ends here."""

    def cut(self, length: int) -> None:
        """Move what is behind the first `length` tokens, and the children, into a child."""
        rest = _Node(self.token_ids[length:], self.is_sampled[length:], self.children, self.row)
        self.token_ids, self.is_sampled = self.token_ids[:length], self.is_sampled[:length]
        self.children, self.row = [rest], None


def paths_of(token_ids: Sequence[IntArray], loss_masks: Sequence[NDArray[np.uint8]]) -> list[Path]:
    """Join rows into a tree by their first tokens.

    Two rows share a token if they share those before it, and if not both train on it: what was sampled twice is trained
    twice, since old log-probs and advantages differ. Nodes are numbered depth first, so the rows of a node follow one
    another if rows are sorted by the number of their last node.

    Example: rows 1 2 3, 1 2 4 5 and 1 2 4 6 without sampled tokens. Node 0 is empty, node 1 holds 1 2, node 2 holds 3,
    node 3 holds 4, and nodes 4 and 5 hold 5 and 6. The last row's path is (0, 0), (1, 2), (3, 3), (5, 4).

    Args:
        token_ids: [L] int32 of each row.
        loss_masks: [L] uint8 of each row, 1 on tokens that it trains on.

    Returns:
        The path of each row. The last node is the row's own, and may have no tokens.
    """
    root = _Node(np.empty(0, np.int32), np.empty(0, np.bool_))
    is_sampled = [np.asarray(mask) > 0 for mask in loss_masks]
    # Whoever sampled a turn comes before those that repeat it, so that these find its tokens.
    for row in sorted(range(len(token_ids)), key=lambda row: _num_unsampled(is_sampled[row])):
        _insert(root, row, np.asarray(token_ids[row]), is_sampled[row])
    return _number(root, len(token_ids))


def _num_unsampled(is_sampled: NDArray[np.bool_]) -> int:
    """Tokens before the first sampled one."""
    return int(is_sampled.argmax()) if is_sampled.any() else len(is_sampled)


def _insert(root: _Node, row: int, ids: IntArray, mask: NDArray[np.bool_]) -> None:
    """Go along the nodes that the row begins with, and add a node for the rest."""
    node = root
    for node in _longest_way(root, ids, mask):
        length = _num_common(node, ids, mask)
        if length < len(node.token_ids):
            node.cut(length)
        node.is_sampled = node.is_sampled | mask[:length]
        ids, mask = ids[length:], mask[length:]
    if node.row is not None:  # it ends where this row goes on or ends too
        node.children.append(_Node(node.token_ids[:0], node.is_sampled[:0], row=node.row))
        node.row = None
    node.children.append(_Node(ids, mask, row=row))


def _longest_way(root: _Node, ids: IntArray, mask: NDArray[np.bool_]) -> list[_Node]:
    """The nodes that have most tokens in common with a row; of the last, the first tokens at least.

    There are several ways where the same tokens were sampled twice.
    """
    best: list[_Node] = []
    best_length = 0
    waiting: list[tuple[_Node, list[_Node], int]] = [(root, [], 0)]
    while waiting:
        node, way, length = waiting.pop()
        for child in node.children:
            num_common = _num_common(child, ids[length:], mask[length:])
            if length + num_common > best_length:
                best, best_length = [*way, child], length + num_common
            if num_common and num_common == len(child.token_ids):
                waiting.append((child, [*way, child], length + num_common))
    return best


def _num_common(node: _Node, ids: IntArray, mask: NDArray[np.bool_]) -> int:
    length = min(len(node.token_ids), len(ids))
    if not length or node.token_ids[0] != ids[0]:  # most children of a node
        return 0
    differs = (node.token_ids[:length] != ids[:length]) | (node.is_sampled[:length] & mask[:length])
    return int(differs.argmax()) if differs.any() else length


def _number(root: _Node, num_rows: int) -> list[Path]:
    paths: list[Path] = [()] * num_rows
    waiting: list[tuple[_Node, Path]] = [(root, ())]
    number = 0
    while waiting:
        node, before = waiting.pop()
        path = (*before, (number, (before[-1][1] if before else 0) + len(node.token_ids)))
        number += 1
        if node.row is not None:
            paths[node.row] = path
        waiting += [(child, path) for child in reversed(node.children)]
    return paths


def num_shared(one: Path, other: Path) -> int:
    """Tokens that two rows of a tree share."""
    return max((end for (node, end), (same, _) in zip(one, other, strict=False) if node == same), default=0)
