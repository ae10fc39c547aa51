import math

import numpy as np
import pytest

from rl.algorithms.filters import check_filter_metric, drop_uninformative_groups
from rl.errors import RewardError
from rl.types import Group, Prompt, StopReason, Trajectory


def group(name: str, scores: list[float | None], accuracies: list[float] | None = None) -> Group:
    prompt = Prompt(id=name, messages=[], ground_truth="", data_source="")
    trajectories = [
        Trajectory(prompt, i, sequences=[], turns=[], stop_reason=StopReason.FINISHED, score=score)
        for i, score in enumerate(scores)
    ]
    for trajectory, accuracy in zip(trajectories, accuracies or [], strict=False):
        trajectory.rewards["acc"] = accuracy
    return Group(prompt, trajectories)


def test_drop_uninformative_groups_keeps_those_whose_scores_differ():
    groups = [group("a", [1.0, 0.0]), group("b", [1.0, 1.0]), group("c", [0.0, 0.0, 0.5])]
    kept, num_dropped = drop_uninformative_groups(groups)
    assert [g.prompt.id for g in kept] == ["a", "c"]
    assert num_dropped == 1


def test_drop_uninformative_groups_ignores_failed_rewards():
    groups = [group("a", [None, 0.0, 0.0]), group("b", [None, 0.0, 1.0]), group("c", [None, None]), group("d", [1.0])]
    kept, num_dropped = drop_uninformative_groups(groups)
    assert [g.prompt.id for g in kept] == ["b"]
    assert num_dropped == 3


def test_drop_uninformative_groups_compares_a_named_reward():
    groups = [group("a", [0.9, 0.1], [1.0, 1.0]), group("b", [0.5, 0.5], [1.0, 0.0])]
    kept, _ = drop_uninformative_groups(groups, metric="acc")
    assert [g.prompt.id for g in kept] == ["b"]


def test_drop_uninformative_groups_sees_no_difference_in_what_is_masked_out():
    groups = [group("a", [1.0, 1.0, 0.0]), group("b", [1.0, 0.0, 0.0]), group("c", [1.0, 0.0])]
    for one in groups:
        one.trajectories[-1].stop_reason = StopReason.LENGTH
    assert drop_uninformative_groups(groups) == (groups, 0)
    kept, _ = drop_uninformative_groups(groups, drop_overlong=True)
    assert [g.prompt.id for g in kept] == ["b"]  # of a only 1 and 1 are left, of c one alone


@pytest.mark.parametrize(
    ("scores", "is_kept"),
    [
        ([0.3, 0.1 + 0.2], False),  # 5.6e-17 apart
        ([1 / 3, float(np.float32(1 / 3))], False),  # 9.9e-9 apart
        ([0.0, 0.1 + 0.2 - 0.3], False),  # 5.6e-17, and float32 has that number
        ([16777216.0, 16777217.0], False),  # one number in float32
        ([1.0, 1.00001], True),
        ([1e-6, 2e-6], True),
        ([-1.0, 1.0], True),
    ],
)
def test_drop_uninformative_groups_sees_no_difference_in_rounding(scores: list[float | None], is_kept: bool):
    kept, _ = drop_uninformative_groups([group("a", scores)])
    assert bool(kept) is is_kept


@pytest.mark.parametrize(
    ("accuracies", "is_kept"),
    [
        ([1.0, None, 1.0], False),
        ([None, 1.0, None], False),
        ([None, None, None], False),
        ([1.0, None, 0.0], True),
        ([1.0, math.nan, 1.0], False),
    ],
)
def test_drop_uninformative_groups_does_not_compare_trajectories_without_the_metric(
    accuracies: list[float | None], is_kept: bool
):
    one = group("a", [0.0, 0.5, 1.0])
    for trajectory, accuracy in zip(one.trajectories, accuracies, strict=True):
        if accuracy is not None:
            trajectory.rewards["acc"] = accuracy
    kept, _ = drop_uninformative_groups([one], metric="acc")
    assert bool(kept) is is_kept


def test_drop_uninformative_groups_of_nothing_is_nothing():
    assert drop_uninformative_groups([]) == ([], 0)


def test_check_filter_metric_refuses_what_no_reward_gives():
    groups = [group("a", [1.0, None], [1.0]), group("b", [0.0])]
    check_filter_metric(groups, "acc")
    check_filter_metric(groups, "score")
    check_filter_metric([group("c", [None])], "f1")
    with pytest.raises(
        RewardError, match=r"filter_groups_metric: unknown name 'ac'\. Did you mean 'acc'\?.*acc, score"
    ):
        check_filter_metric(groups, "ac")
