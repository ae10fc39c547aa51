import pytest
import torch

from rl.algorithms.advantages import ADVANTAGES, group_norm

# Group 0 scores 1, 0, 0, 1: mean 0.5, squared deviations 4 x 0.25 over n - 1 = 3, std = sqrt(1/3) = 0.5773503.
# Group 1 scores 3, 1: mean 2, std = sqrt(2) = 1.4142136.
SCORES = torch.tensor([1.0, 0.0, 3.0, 0.0, 1.0, 1.0])
GROUPS = torch.tensor([0, 0, 1, 0, 0, 1])


def test_group_norm_divides_by_the_sample_standard_deviation():
    expected = torch.tensor([0.8660239, -0.8660239, 0.7071063, -0.8660239, 0.8660239, -0.7071063])
    torch.testing.assert_close(group_norm(SCORES, GROUPS), expected, atol=1e-6, rtol=0)


def test_group_norm_without_std_is_the_difference_from_the_mean():
    expected = torch.tensor([0.5, -0.5, 1.0, -0.5, 0.5, -1.0])
    torch.testing.assert_close(group_norm(SCORES, GROUPS, divide_by_std=False), expected)


def test_group_norm_ignores_shifts_of_a_group_and_the_order_of_rows():
    shifted = SCORES + torch.where(GROUPS == 0, 10.0, -4.0)
    torch.testing.assert_close(group_norm(shifted, GROUPS), group_norm(SCORES, GROUPS))
    order = torch.tensor([5, 2, 0, 4, 1, 3])
    torch.testing.assert_close(group_norm(SCORES[order], GROUPS[order]), group_norm(SCORES, GROUPS)[order])


def test_group_norm_leaves_failed_rewards_out_of_mean_and_std():
    scores = torch.tensor([1.0, float("nan"), 0.0, 0.0, 1.0])
    is_scored = torch.tensor([True, False, True, True, True])
    expected = torch.tensor([0.8660239, 0.0, -0.8660239, -0.8660239, 0.8660239])
    actual = group_norm(scores, torch.zeros(5, dtype=torch.int64), is_scored=is_scored)
    torch.testing.assert_close(actual, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("scores", [[0.7], [0.1, 0.1, 0.1]])
def test_group_norm_of_one_or_of_equal_scores_is_exactly_zero(scores: list[float]):
    advantages = group_norm(torch.tensor(scores), torch.zeros(len(scores), dtype=torch.int64))
    assert advantages.tolist() == [0.0] * len(scores)


def test_group_norm_with_one_scored_member_is_zero():
    is_scored = torch.tensor([True, False])
    assert group_norm(torch.tensor([1.0, 0.0]), torch.zeros(2), is_scored=is_scored).tolist() == [0.0, 0.0]


def test_group_norm_rejects_different_lengths():
    with pytest.raises(ValueError, match="got 2 scores, 3 group ids"):
        group_norm(torch.zeros(2), torch.zeros(3))


def test_advantages_hold_the_default_name():
    assert ADVANTAGES["group_norm"] is group_norm
