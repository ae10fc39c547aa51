from __future__ import annotations

import logging

import pytest

from rl.observability.shortfall import Shortfalls, shortfall_figures
from rl.types import Group, StopReason, ToolStatus
from tests.unit.observability.examples import make_group, make_trajectory

HALF_FAILED = {
    "rollout/num_trajectories": 4.0,
    "rollout/num_groups": 2.0,
    "training/masked_trajectories": 2.0,
    "training/dropped_groups": 2.0,
    "training/empty_batch": 1.0,
}


def half_failed() -> list[Group]:
    """Two groups, each with one score and one reward that raised."""
    return [
        Group(make_group(prompt_id=f"train-{i}").prompt, [
            make_trajectory(score=1.0, prompt_id=f"train-{i}"),
            make_trajectory(score=None, index=1, prompt_id=f"train-{i}"),
        ])
        for i in (1, 2)
    ]  # fmt: skip


def test_line_of_a_step_says_what_did_not_count() -> None:
    assert shortfall_figures(HALF_FAILED) == ["masked 2/4", "dropped 2/2 groups", "no update"]
    unavailable = {
        "rollout/num_trajectories": 64.0,
        "training/masked_trajectories": 5.0,
        "stop_reason/tool_unavailable": 3 / 64,
        "actor/skipped_steps": 2.0,
    }
    assert shortfall_figures(unavailable) == ["masked 5/64", "unavailable 3", "skipped 2 updates"]


def test_line_of_a_whole_step_says_nothing_more() -> None:
    whole = dict.fromkeys(HALF_FAILED, 0.0) | {"rollout/num_trajectories": 4.0, "stop_reason/tool_unavailable": 0.0}
    assert shortfall_figures(whole) == []
    assert shortfall_figures({"actor/loss": 0.5}) == []  # of a cold start


def test_first_cause_is_told_once_and_the_sum_at_the_end(caplog: pytest.LogCaptureFixture) -> None:
    shortfalls = Shortfalls()
    with caplog.at_level(logging.WARNING):
        for step in (1, 2, 3):
            shortfalls.observe(step, HALF_FAILED, half_failed())
    assert [record.getMessage() for record in caplog.records] == [
        "step 1: 2 trajectories without a reward. The first, train-1/1: boom",
        "step 1: no update. In every group the scores are equal (2 of 4 trajectories have none), so all advantages "
        "are 0.",
    ]
    assert shortfalls.summary() == [
        "3 of 3 steps made no update.",
        "6 of 12 trajectories (50 %) did not count: 6 without a reward.",
        "First without a reward: step 1, train-1/1: boom",
    ]


def test_kinds_are_told_apart() -> None:
    gone = make_trajectory(score=None, stop_reason=StopReason.TOOL_UNAVAILABLE, status=ToolStatus.UNAVAILABLE)
    late = make_trajectory(score=None, stop_reason=StopReason.DEADLINE, index=1)
    whole = make_trajectory(index=2)
    gone.reward_error = late.reward_error = None  # such trajectories are not scored
    shortfalls = Shortfalls()
    shortfalls.observe(7, {"training/masked_trajectories": 3.0}, [Group(gone.prompt, [gone, late, whole])])
    assert shortfalls.summary() == [
        "3 of 3 trajectories (100 %) did not count: 1 whose tool was unavailable, 1 past their deadline, "
        "1 masked by overlong_filter_enable.",
        "First whose tool was unavailable: step 7, train-1/0: calc: 4",
        "First past their deadline: step 7, train-1/1: deadline after 0.5 s and 2 turns",
        "First masked by overlong_filter_enable: step 7, the token budget cut them off",
    ]


def test_a_run_in_which_all_counts_sums_up_nothing() -> None:
    shortfalls = Shortfalls()
    shortfalls.observe(1, {"training/masked_trajectories": 0.0, "training/empty_batch": 0.0}, [make_group()])
    assert shortfalls.summary() == []
