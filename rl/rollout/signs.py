"""Signs of degenerate text, computed where the tokens are: repetition, and tool calls that no parser reads."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rl.batches import Sample
from rl.types import Turn

NUM_TOKENS = 8
"""Length of the stretches that `repetition` compares."""
_CALL_MARKS = (
    "<tool_call>",
    "</tool_call>",
    "<function=",
    "<|python_tag|>",
    "[TOOL_CALLS]",
    "<|tool_call",
    "<search>",
    "<request>",
    "<invoke ",
)
"""How calls begin or end in the formats that models are trained on."""


def repetition(rows: Sequence[Sample]) -> float:
    """Share of stretches of 8 sampled tokens that occurred before in the same row; 0 for shorter text.

    Example: 16 equal tokens have 9 stretches, of which 8 are repeated: 8/9.

    Args:
        rows: The rows of one trajectory.
    """
    num, num_distinct = 0, 0
    for row in rows:
        sampled = row.token_ids[row.loss_mask > 0]
        if len(sampled) < NUM_TOKENS:
            continue
        stretches = np.ascontiguousarray(np.lib.stride_tricks.sliding_window_view(sampled, NUM_TOKENS))
        as_bytes = stretches.view(np.dtype((np.void, stretches.dtype.itemsize * NUM_TOKENS)))
        num += len(stretches)
        num_distinct += len(np.unique(as_bytes))
    return (num - num_distinct) / num if num else 0.0


def num_unread_calls(turns: Sequence[Turn]) -> int:
    """Turns with the mark of a tool call, of any format, in which no call was found. Cut turns do not count."""
    return sum(not turn.calls and not turn.is_cut and any(mark in turn.text for mark in _CALL_MARKS) for turn in turns)
