"""Figures of early warnings, by hand."""

from __future__ import annotations

from dataclasses import fields

import pytest

from rl.batches import GroupHeader, TrajectoryHeader
from rl.config.early_warning import EarlyWarning
from rl.observability.detectors import DETECTORS, StepView
from rl.observability.evaluations import Accuracy
from rl.types import ToolResult, ToolStatus
from tests.unit.observability.examples import make_trajectory


def header(
    score: float | None = 0.0, length: int = 10, statuses: tuple[str, ...] = (), unread: int = 0
) -> TrajectoryHeader:
    trajectory = make_header()
    trajectory.score, trajectory.response_length, trajectory.num_unread_calls = score, length, unread
    trajectory.results = [ToolResult("tool", "", ToolStatus(status)) for status in statuses]
    return trajectory


def make_header() -> TrajectoryHeader:
    from rl.rollout.headers import header_of_group
    from rl.types import Group

    trajectory = make_trajectory()
    return header_of_group(Group(trajectory.prompt, [trajectory])).trajectories[0]


def group(*trajectories: TrajectoryHeader) -> GroupHeader:
    return GroupHeader(make_trajectory().prompt, list(trajectories), None, [], [])


def measure(name: str, metrics: dict[str, float | None], earlier: object = (), *groups: GroupHeader) -> float | None:
    return DETECTORS[name].measure(StepView(metrics, list(earlier), groups))  # type: ignore[call-overload]


def test_every_detector_has_a_key_and_every_key_a_detector():
    assert {f.name for f in fields(EarlyWarning)} == {"patience", "stop", *DETECTORS}


@pytest.mark.parametrize(
    ("name", "metric"),
    [
        ("entropy_low", "actor/entropy"),
        ("logprob_difference", "training/rollout_probs_diff_mean"),
        ("policy_shift", "actor/ppo_kl"),
        ("clipped_responses", "response_length/clip_ratio"),
        ("repetition", "response_repetition/mean"),
    ],
)
def test_a_figure_that_is_a_metric(name: str, metric: str):
    assert measure(name, {metric: 0.25}) == 0.25
    assert measure(name, {}) is None
    assert measure(name, {metric: None}) is None


def test_entropy_rise_is_over_the_first_step_which_no_update_has_touched():
    before = [{"actor/entropy": value} for value in (0.2, 1.7, 1.6)]
    assert measure("entropy_rise", {"actor/entropy": 1.0}, before) == pytest.approx(5.0)
    assert measure("entropy_rise", {"actor/entropy": 0.4}, before) == 0.0  # still low
    assert measure("entropy_rise", {"actor/entropy": 1.0}) is None


def test_a_gradient_norm_is_over_the_median_of_the_steps_before():
    before = [{"actor/grad_norm": value} for value in (1.0, 2.0, 3.0, 4.0, None, 100.0)]
    assert measure("grad_norm_jump", {"actor/grad_norm": 30.0}, before) == pytest.approx(10.0)
    assert measure("grad_norm_jump", {"actor/grad_norm": 30.0}, before[:5]) is None
    old = [{"actor/grad_norm": 1000.0}] * 50 + [{"actor/grad_norm": 2.0}] * 20
    assert measure("grad_norm_jump", {"actor/grad_norm": 30.0}, old) == pytest.approx(15.0)


@pytest.mark.parametrize(("now", "expected"), [(300.0, 3.0), (100.0, 1.0), (25.0, 4.0)])
def test_length_drift_counts_both_ways(now: float, expected: float):
    before = [{"response_length/mean": 100.0}] * 5
    assert measure("length_drift", {"response_length/mean": now}, before) == pytest.approx(expected)


def test_tool_errors_count_what_the_model_did_wrong():
    wrong = header(statuses=("error", "parse_error", "unknown_tool", "invalid_arguments", "timeout"))
    right = header(statuses=("ok", "over_limit", "unavailable"))
    assert measure("tool_errors", {}, (), group(wrong, right)) == pytest.approx(5 / 8)
    assert measure("tool_errors", {}, (), group(wrong)) is None  # fewer than 8 calls


def test_unread_calls_are_per_trajectory():
    assert measure("unread_calls", {}, (), group(header(unread=2), header(unread=1)), group(header())) == 1.0
    assert measure("unread_calls", {}) is None


def test_uniform_groups_are_a_share():
    assert measure("uniform_groups", {"rollout/num_groups": 8.0, "training/dropped_groups": 6.0}) == 0.75
    assert measure("uniform_groups", {"rollout/num_groups": 0.0, "training/dropped_groups": 0.0}) is None


def test_length_reward_is_the_mean_correlation_within_groups():
    paid = group(header(1.0, 10), header(2.0, 20), header(3.0, 30))
    punished = group(header(3.0, 10), header(2.0, 20), header(1.0, 30))
    uniform, unscored = group(header(1.0, 10), header(1.0, 20), header(1.0, 30)), group(header(None), header(1.0))
    assert measure("length_reward", {}, (), paid, paid, paid, uniform, unscored) == pytest.approx(1.0)
    assert measure("length_reward", {}, (), paid, punished, paid, punished) == pytest.approx(0.0)
    assert measure("length_reward", {}, (), paid, paid, uniform) is None  # two groups say little


def test_an_evaluation_falls_when_its_interval_is_below_the_best_one():
    def fall(*intervals: tuple[float, float]) -> float | None:
        evaluations = [Accuracy((low + high) / 2, low, high, 100) for low, high in intervals]
        view = StepView({}, [], [], evaluations, has_new_evaluation=True)
        assert DETECTORS["evaluation_fall"].measure(StepView({}, [], [], evaluations)) is None  # a step without one
        return DETECTORS["evaluation_fall"].measure(view)

    assert fall((0.5, 0.7)) is None
    assert fall((0.5, 0.7), (0.6, 0.8), (0.3, 0.5)) == pytest.approx(0.1)  # best: 0.6 to 0.8
    assert fall((0.5, 0.7), (0.4, 0.6)) == pytest.approx(-0.1)  # they overlap
