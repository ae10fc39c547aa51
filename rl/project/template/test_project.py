"""Tests without a model. Write them before you train: a wrong reward teaches the wrong thing."""

from __future__ import annotations

import json
import random

import pytest
from letters import count_letter
from make_data import demonstrate, make_row
from reward import right

from rl.types import Prompt, StopReason, Trajectory, Turn


def test_tool_counts_and_tells_what_is_wrong() -> None:
    assert count_letter("Banana", "a") == 3
    with pytest.raises(ValueError, match="must be one letter"):
        count_letter("banana", "an")


@pytest.mark.parametrize(
    ("text", "score"),
    [("\\boxed{3}", 1.0), ("\\boxed{3} or \\boxed{4}", 0.0), ("It is 3.", 0.0), ("", 0.0)],
)
def test_reward_reads_the_last_box(text: str, score: float) -> None:
    prompt = Prompt("train-0", [{"role": "user", "content": "How often?"}], "3", "letters")
    trajectory = Trajectory(prompt, 0, [], [Turn(text, num_tokens=1)], StopReason.FINISHED)
    assert right(trajectory)["score"] == score


def test_demonstrations_give_the_right_answer() -> None:
    row = make_row(random.Random(0))
    assert row["ground_truth"] == str(row["word"].count(row["letter"]))
    question, call, result, answer = json.loads(demonstrate(row, calls=True)["messages"])
    assert question == row["messages"][0]
    assert call["tool_calls"][0]["function"]["arguments"] == {"word": row["word"], "letter": row["letter"]}
    assert result["content"] == row["ground_truth"]
    assert answer["content"] == f"\\boxed{{{row['ground_truth']}}}"
