"""Computes the headers of training rows. Needs only numpy: rollout and reward workers import it."""

from __future__ import annotations

import numpy as np

from rl.batches import RowHeader, Sample
from rl.types import IntArray


def prompt_of(sample: Sample) -> IntArray:
    """The tokens of a row before the first sampled one, [P] int32."""
    mask = np.asarray(sample.loss_mask)
    length = int(mask.argmax()) if mask.any() else len(mask)
    return np.asarray(sample.token_ids[:length], np.int32)


def row_header(sample: Sample, prompt_ids: IntArray) -> RowHeader:
    """What the plan needs to know about a row.

    Args:
        sample: The row.
        prompt_ids: [P] int32, the group's.
    """
    mask = np.asarray(sample.loss_mask)
    return RowHeader(
        length=len(mask),
        num_loss_tokens=int(mask[1:].sum()),
        shared_length=shared_length(prompt_of(sample), prompt_ids),
    )


def shared_length(one: IntArray, other: IntArray) -> int:
    """Number of leading tokens that two sequences have in common."""
    length = min(len(one), len(other))
    differs = one[:length] != other[:length]
    return int(differs.argmax()) if differs.any() else length
