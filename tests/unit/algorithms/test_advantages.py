import math

import pytest
import torch

from rl.algorithms.advantages import (
    ADVANTAGES,
    gae,
    group_norm,
    leave_one_out,
    reinforce_plus_plus,
    reinforce_plus_plus_baseline,
)

# Group 0 scores 1, 0, 0, 1: mean 0.5, squared deviations 4 x 0.25 over n - 1 = 3, std = sqrt(1/3) = 0.5773503.
# Group 1 scores 3, 1: mean 2, std = sqrt(2) = 1.4142136.
SCORES = torch.tensor([1.0, 0.0, 3.0, 0.0, 1.0, 1.0])
GROUPS = torch.tensor([0, 0, 1, 0, 0, 1])
TOKENS = torch.tensor([2, 1, 3, 4, 1, 5])

names = pytest.mark.parametrize("name", ADVANTAGES)
centered_on_groups = pytest.mark.parametrize("name", ["group_norm", "rloo", "reinforce_plus_plus_baseline"])


def advantages_of(name: str, scores: torch.Tensor, groups: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    return ADVANTAGES[name](scores, groups, num_tokens=tokens, divide_by_std=True)


def test_group_norm_divides_by_the_sample_standard_deviation():
    expected = torch.tensor([0.8660239, -0.8660239, 0.7071063, -0.8660239, 0.8660239, -0.7071063])
    torch.testing.assert_close(group_norm(SCORES, GROUPS), expected, atol=1e-6, rtol=0)


def test_group_norm_without_std_is_the_difference_from_the_mean():
    expected = torch.tensor([0.5, -0.5, 1.0, -0.5, 0.5, -1.0])
    torch.testing.assert_close(group_norm(SCORES, GROUPS, divide_by_std=False), expected)


def test_rloo_compares_with_the_mean_of_the_others():
    # Group 0: 1 against (0 + 0 + 1) / 3, 0 against (1 + 0 + 1) / 3. Group 1: 3 against 1, and 1 against 3.
    expected = torch.tensor([2 / 3, -2 / 3, 2.0, -2 / 3, 2 / 3, -2.0])
    torch.testing.assert_close(leave_one_out(SCORES, GROUPS), expected)


def test_reinforce_plus_plus_whitens_over_the_tokens_of_the_batch():
    # Tokens 1 and 3 with scores 1 and 0: mean 1/4, variance (9/16 + 3/16) / 4 = 3/16.
    actual = reinforce_plus_plus(torch.tensor([1.0, 0.0]), torch.tensor([0, 1]), num_tokens=torch.tensor([1, 3]))
    torch.testing.assert_close(actual, torch.tensor([math.sqrt(3), -1 / math.sqrt(3)]), atol=1e-5, rtol=0)


def test_reinforce_plus_plus_baseline_whitens_the_differences_from_the_group():
    # Differences 1/2, -1/2 (1 and 3 tokens); the group with equal scores (100 tokens) is in no mean.
    # Mean (1/2 - 3/2) / 4 = -1/4; squared deviations 9/16 + 3 x 1/16 over 4 = 3/16; std 0.4330127.
    actual = reinforce_plus_plus_baseline(
        torch.tensor([1.0, 0.0, 0.3, 0.3]), torch.tensor([0, 0, 1, 1]), num_tokens=torch.tensor([1, 3, 60, 40])
    )
    torch.testing.assert_close(actual, torch.tensor([math.sqrt(3), -1 / math.sqrt(3), 0, 0]), atol=1e-5, rtol=0)
    assert actual[2:].tolist() == [0.0, 0.0]


@names
def test_advantages_follow_a_permutation_of_the_rows(name: str):
    order = torch.tensor([5, 2, 0, 4, 1, 3])
    permuted = advantages_of(name, SCORES[order], GROUPS[order], TOKENS[order])
    torch.testing.assert_close(permuted, advantages_of(name, SCORES, GROUPS, TOKENS)[order])


@names
def test_advantages_ignore_a_shift_of_all_scores(name: str):
    torch.testing.assert_close(
        advantages_of(name, SCORES + 10, GROUPS, TOKENS), advantages_of(name, SCORES, GROUPS, TOKENS)
    )


@centered_on_groups
def test_advantages_ignore_shifts_of_a_group_and_the_numbers_of_groups(name: str):
    shifted = SCORES + torch.where(GROUPS == 0, 10.0, -4.0)
    renumbered = torch.where(GROUPS == 0, 70, 8)
    torch.testing.assert_close(
        advantages_of(name, shifted, renumbered, TOKENS), advantages_of(name, SCORES, GROUPS, TOKENS)
    )


@names
@pytest.mark.parametrize("scores", [[0.7], [0.1, 0.1, 0.1]])
def test_advantages_of_one_or_of_equal_scores_are_exactly_zero(name: str, scores: list[float]):
    groups = torch.zeros(len(scores), dtype=torch.int64)
    tokens = torch.tensor([3, 5, 7])[: len(scores)]
    assert advantages_of(name, torch.tensor(scores), groups, tokens).tolist() == [0.0] * len(scores)


@centered_on_groups
def test_advantages_of_groups_of_one_are_exactly_zero(name: str):
    actual = advantages_of(name, torch.tensor([1.0, 0.3]), torch.tensor([0, 1]), torch.tensor([4, 2]))
    assert actual.tolist() == [0.0, 0.0]


@names
def test_advantages_of_an_empty_batch_are_empty(name: str):
    empty = torch.zeros(0, dtype=torch.int64)
    assert advantages_of(name, torch.zeros(0), empty, empty).tolist() == []


@names
def test_advantages_reject_different_lengths(name: str):
    with pytest.raises(ValueError, match="got 2 scores, but 3"):
        advantages_of(name, torch.zeros(2), torch.zeros(3), torch.zeros(2))


def test_gae_worked_example():
    # Deltas: 0 + 0.9 * 0.4 - 0.5 = -0.14; 0 + 0.9 * 0.2 - 0.4 = -0.22; 1 - 0.2 = 0.8. gamma lam = 0.45.
    # A_2 = 0.8; A_1 = -0.22 + 0.36 = 0.14; A_0 = -0.14 + 0.063 = -0.077.
    actual = gae(torch.tensor([0.0, 0.0, 1.0]), torch.tensor([0.5, 0.4, 0.2]), gamma=0.9, lam=0.5)
    torch.testing.assert_close(actual, torch.tensor([-0.077, 0.14, 0.8]))


def test_gae_with_lambda_one_is_the_return_minus_the_value_and_with_zero_the_delta():
    rewards, values = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.5, -1.0, 2.0])
    torch.testing.assert_close(gae(rewards, values, gamma=1.0, lam=1.0), torch.tensor([5.5, 6.0, 1.0]))
    torch.testing.assert_close(gae(rewards, values, gamma=1.0, lam=0.0), torch.tensor([-0.5, 5.0, 1.0]))


def test_gae_of_one_step_and_of_unequal_lengths():
    assert gae(torch.tensor([1.0]), torch.tensor([0.25]), gamma=0.9, lam=0.9).tolist() == [0.75]
    with pytest.raises(ValueError, match="got 2 rewards, 1 values"):
        gae(torch.zeros(2), torch.zeros(1), gamma=1.0, lam=1.0)
