"""Repetition and unread calls, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from rl.batches import Sample
from rl.rollout.signs import num_unread_calls, repetition
from rl.types import ToolCall, Turn


def row(tokens: list[int], mask: list[int] | None = None) -> Sample:
    given = np.array(mask if mask is not None else [1] * len(tokens), np.uint8)
    return Sample("a/0", "a", np.array(tokens, np.int32), given, None, np.zeros(len(tokens), np.float32))


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([row([5] * 16)], 8 / 9),  # 9 stretches, one distinct
        ([row(list(range(16)))], 0.0),
        ([row([*range(8), *range(8)])], 1 / 9),  # the first 8 again
        ([row([5] * 7)], 0.0),  # shorter than a stretch
        ([row([5] * 16, [0] * 16)], 0.0),  # nothing was sampled
        ([row([1, 5, 1, 5] * 4, [0, 1, 0, 1] * 4)], 0.0),  # 8 sampled tokens are one stretch
        ([row([5] * 8), row([5] * 16)], 8 / 10),  # each row by itself
        ([], 0.0),
    ],
)
def test_repetition_is_the_share_of_stretches_that_occurred_before(rows: list[Sample], expected: float):
    assert repetition(rows) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("turn", "expected"),
    [
        (Turn("<tool_call>\n{}\n</tool_call>", 5), 1),
        (Turn("<tool_call>\n{}\n</tool_call>", 5, calls=[ToolCall("f", {})]), 0),
        (Turn("<tool_call>\n{", 5, is_cut=True), 0),
        (Turn("<|python_tag|>f()", 5), 1),
        (Turn("The answer is 3.", 5), 0),
    ],
)
def test_a_turn_that_looks_like_a_call_without_one_is_unread(turn: Turn, expected: int):
    assert num_unread_calls([turn]) == expected
