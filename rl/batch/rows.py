"""Computes the headers of training rows. Needs only numpy: rollout and reward workers import it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rl.batch.tree import paths_of
from rl.batches import RowHeader, Sample
from rl.types import IntArray


def prompt_of(sample: Sample) -> IntArray:
    """The tokens of a row before the first sampled one, [P] int32."""
    mask = np.asarray(sample.loss_mask)
    length = int(mask.argmax()) if mask.any() else len(mask)
    return np.asarray(sample.token_ids[:length], np.int32)


def row_headers(rows: Sequence[Sample]) -> tuple[list[RowHeader], IntArray]:
    """What the plan needs to know about the rows of a group.

    Args:
        rows: All of the group.

    Returns:
        A header for each row, and the group's `prompt_ids`: [P] int32, the tokens of the first row before its first
        sampled one.
    """
    prompt_ids = prompt_of(rows[0]) if rows else np.empty(0, np.int32)
    masks = [np.asarray(row.loss_mask) for row in rows]
    paths = paths_of([np.asarray(row.token_ids) for row in rows], masks)
    headers = [
        RowHeader(
            length=len(mask),
            num_loss_tokens=int(mask[1:].sum()),
            shared_length=shared_length(prompt_of(row), prompt_ids),
            path=path,
        )
        for row, mask, path in zip(rows, masks, paths, strict=True)
    ]
    return headers, prompt_ids


def shared_length(one: IntArray, other: IntArray) -> int:
    """Number of leading tokens that two sequences have in common."""
    length = min(len(one), len(other))
    differs = one[:length] != other[:length]
    return int(differs.argmax()) if differs.any() else length
