"""The shipped thresholds raise exactly the expected warnings from recorded runs; a good run raises none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from rl.batches import GroupHeader, TrajectoryHeader
from rl.config.early_warning import EarlyWarning
from rl.observability.run_directory import RunDirectory
from rl.run.early_warnings import EarlyWarnings
from rl.types import Prompt, StopReason, ToolResult, ToolStatus

RECORDED = Path(__file__).parent / "recorded"


def header(name: str, seen: list[Any]) -> TrajectoryHeader:
    score, length, num_unread, repetition, statuses = seen
    return TrajectoryHeader(
        id=name, stop_reason=StopReason.FINISHED, score=score, rewards={}, reward_error=None, failure=None,
        turn_tokens=[], turn_rewards=[], results=[ToolResult("tool", "", ToolStatus(status)) for status in statuses],
        num_tool_calls=len(statuses), prompt_length=0, response_length=length, num_sampled=length, tool_s=0.0,
        wall_s=0.0, policy_versions=[0], rows=[], repetition=repetition, num_unread_calls=num_unread,
    )  # fmt: skip


def groups_of(step: dict[str, Any]) -> list[GroupHeader]:
    return [
        GroupHeader(
            Prompt(name, [], "", ""),
            [header(f"{name}/{index}", seen) for index, seen in enumerate(members)],
            np.empty(0, np.int32),
            [],
            [],
        )
        for name, members in step["groups"].items()
    ]


def raised(name: str, folder: Path) -> dict[str, int]:
    """The step in which each warning of a recorded run is told first, with the shipped values."""
    steps = json.loads((RECORDED / f"{name}.json").read_text())["steps"]
    directory = RunDirectory(folder)
    warnings = EarlyWarnings(directory, EarlyWarning())
    for number, step in enumerate(steps, start=1):
        warnings.observe(number, step["metrics"], groups_of(step))
    found: dict[str, int] = {}
    for line in directory.read_warnings():
        found.setdefault(line["name"], line["step"])
    return found


def test_a_good_run_raises_nothing(tmp_path: Path) -> None:
    assert raised("quickstart", tmp_path) == {}


def test_a_learning_rate_a_hundred_times_too_high_is_raised(tmp_path: Path) -> None:
    """Entropy and length leave in step 2; from step 5 on all samples are one repeated token."""
    found = raised("learning_rate", tmp_path)
    assert found == {"entropy_rise": 4, "clipped_responses": 4, "uniform_groups": 7, "repetition": 7}


def test_a_parser_that_does_not_fit_and_a_reward_of_length_are_raised(tmp_path: Path) -> None:
    assert raised("parser_and_length", tmp_path) == {"unread_calls": 3, "length_reward": 3}


def test_a_reward_of_length_is_raised_ten_steps_before_responses_are_clipped(tmp_path: Path) -> None:
    assert raised("length_reward", tmp_path) == {"length_reward": 3, "tool_errors": 5, "clipped_responses": 13}
