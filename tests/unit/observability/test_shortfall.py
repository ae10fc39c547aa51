from __future__ import annotations

import logging

import pytest

from rl.observability.shortfall import Shortfalls, shortfall_figures
from rl.types import GroupHeader, StopReason, ToolStatus
from tests.samples import group_of
from tests.unit.observability.examples import make_trajectory

HALF_FAILED = {
    "rollout/num_trajectories": 4.0,
    "rollout/num_groups": 2.0,
    "rollout/reward_errors": 2.0,
    "training/masked_trajectories": 2.0,
    "training/dropped_groups": 2.0,
    "training/empty_batch": 1.0,
}


def half_failed() -> list[GroupHeader]:
    """Two groups, each with one score and one reward that raised."""
    return [
        group_of(
            make_trajectory(score=1.0, prompt_id=f"train-{i}"),
            make_trajectory(score=None, index=1, prompt_id=f"train-{i}"),
        )
        for i in (1, 2)
    ]


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
        "step 1: no update. In no group do the 2 of 4 trajectories that count differ in their score, or in what "
        "rl_config.filter_groups_metric names, so there is nothing to learn from.",
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
    metrics = {
        "rollout/num_trajectories": 3.0,
        "training/masked_trajectories": 3.0,
        "stop_reason/tool_unavailable": 1 / 3,
        "stop_reason/deadline": 1 / 3,
    }
    shortfalls.observe(7, metrics, [group_of(gone, late, whole)])
    assert shortfalls.summary() == [
        "3 of 3 trajectories (100 %) did not count: 1 whose tool was unavailable, 1 past their deadline, "
        "1 masked by overlong_filter_enable.",
        "First whose tool was unavailable: step 7, train-1/0: calc: 4",
        "First past their deadline: step 7, train-1/1: deadline after 0.5 s and 2 turns",
        "First masked by overlong_filter_enable: step 7, the token budget cut them off",
    ]


def test_a_failed_environment_is_a_kind_with_its_cause() -> None:
    failed = make_trajectory(score=None, stop_reason=StopReason.ENVIRONMENT_FAILED)
    failed.reward_error, failed.failure = None, "world.py:World: step: KeyError: 1"
    shortfalls = Shortfalls()
    metrics = {
        "rollout/num_trajectories": 1.0,
        "training/masked_trajectories": 1.0,
        "stop_reason/environment_failed": 1.0,
    }
    shortfalls.observe(7, metrics, [group_of(failed)])
    assert shortfalls.summary()[1:] == [
        "First whose environment failed: step 7, train-1/0: world.py:World: step: KeyError: 1"
    ]


def test_a_resumed_run_sums_up_its_earlier_steps_too(caplog: pytest.LogCaptureFixture) -> None:
    shortfalls = Shortfalls()
    shortfalls.recall(
        [
            {"step": 0, "val-aux/reward_errors": 3.0},
            HALF_FAILED | {"step": 1, "timing_s/step": 2.0},
            {"step": 2, "timing_s/step": 2.0, "rollout/num_trajectories": 4.0, "training/masked_trajectories": 0.0},
        ]
    )
    assert caplog.records == []
    assert shortfalls.summary() == [
        "1 of 2 steps made no update.",
        "2 of 8 trajectories (25 %) did not count: 2 without a reward.",
    ]
    shortfalls.observe(3, HALF_FAILED, half_failed())
    assert shortfalls.summary() == [
        "2 of 3 steps made no update.",
        "4 of 12 trajectories (33 %) did not count: 4 without a reward.",
        "First without a reward: step 3, train-1/1: boom",
    ]


def test_a_step_without_update_is_not_laid_to_scores_that_the_token_budget_masked(
    caplog: pytest.LogCaptureFixture,
) -> None:
    cut_off = [make_trajectory(score=float(i), index=i, stop_reason=StopReason.LENGTH) for i in (0, 1)]
    metrics = {"rollout/num_trajectories": 2.0, "training/masked_trajectories": 2.0, "training/empty_batch": 1.0}
    Shortfalls().observe(1, metrics, [group_of(*cut_off)])
    assert caplog.records[-1].getMessage() == (
        "step 1: no update. No trajectory counts: 2 masked by overlong_filter_enable."
    )


def test_a_run_in_which_all_counts_sums_up_nothing() -> None:
    shortfalls = Shortfalls()
    shortfalls.observe(
        1, {"training/masked_trajectories": 0.0, "training/empty_batch": 0.0}, [group_of(make_trajectory())]
    )
    assert shortfalls.summary() == []
