import pytest
import torch

from rl.algorithms.advantages import ADVANTAGES, group_norm, leave_one_out
from rl.algorithms.turns import turn_advantages, turn_returns


def test_turn_returns_worked_example():
    rewards = torch.tensor([1.0, 0.0, 4.0])
    assert turn_returns(rewards, 0.5).tolist() == [2.0, 2.0, 4.0]
    assert turn_returns(rewards, 0.0).tolist() == [1.0, 0.0, 4.0]
    assert turn_returns(rewards, 1.0).tolist() == [5.0, 4.0, 4.0]
    assert rewards.tolist() == [1.0, 0.0, 4.0]


def test_turn_returns_of_one_turn_and_of_none():
    assert turn_returns(torch.tensor([0.5]), 0.9).tolist() == [0.5]
    assert turn_returns(torch.zeros(0), 0.9).tolist() == []


def test_turn_returns_ignore_turns_without_reward_at_the_end_and_add_up():
    one, other = torch.tensor([1.0, 0.0, 4.0]), torch.tensor([0.0, -2.0, 0.5])
    longer = turn_returns(torch.cat([one, torch.zeros(2)]), 0.5)
    assert longer.tolist() == [*turn_returns(one, 0.5).tolist(), 0.0, 0.0]
    assert torch.equal(turn_returns(one + other, 0.5), turn_returns(one, 0.5) + turn_returns(other, 0.5))


def test_turn_advantages_compare_the_same_turn_within_a_group():
    # First turns of group 0: 1, 0, 0, each against the mean of the other two. Second turns: 1 and 0. Group 1 is alone.
    returns = [torch.tensor([1.0, 1.0]), torch.tensor([0.0, 0.0]), torch.tensor([0.0]), torch.tensor([7.0])]
    tokens = [torch.ones_like(r).long() for r in returns]
    actual = turn_advantages(returns, torch.tensor([0, 0, 0, 1]), tokens, leave_one_out, divide_by_std=False)
    assert [a.tolist() for a in actual] == [[1.0, 1.0], [-0.5, -1.0], [-0.5], [0.0]]


def test_turn_advantages_of_single_turns_are_the_estimators_own():
    scores, groups = torch.tensor([1.0, 0.0, 0.0, 3.0, 1.0]), torch.tensor([0, 0, 0, 1, 1])
    ones = [torch.ones(1, dtype=torch.int64)] * 5
    actual = turn_advantages(list(scores.split(1)), groups, ones, group_norm, divide_by_std=True)
    torch.testing.assert_close(torch.cat(actual), group_norm(scores, groups))


@pytest.mark.parametrize("name", ADVANTAGES)
def test_turn_advantages_follow_a_permutation_of_the_trajectories(name: str):
    returns = [torch.tensor(r) for r in ([1.0, 3.0], [0.0, 2.0], [5.0], [4.0, 0.0, 1.0])]
    tokens, groups = [torch.arange(1, len(r) + 1) for r in returns], torch.tensor([0, 0, 1, 1])
    settings = {"estimate": ADVANTAGES[name], "divide_by_std": True}
    expected = turn_advantages(returns, groups, tokens, **settings)
    order = [2, 0, 3, 1]
    actual = turn_advantages([returns[i] for i in order], groups[order], [tokens[i] for i in order], **settings)
    for advantages, i in zip(actual, order, strict=True):
        torch.testing.assert_close(advantages, expected[i])


@pytest.mark.parametrize("name", ADVANTAGES)
def test_turn_advantages_without_rewards_are_exactly_zero(name: str):
    returns = [torch.zeros(2), torch.zeros(1), torch.zeros(3)]
    tokens = [torch.tensor([3, 5]), torch.tensor([0]), torch.tensor([1, 1, 9])]
    actual = turn_advantages(returns, torch.tensor([0, 0, 1]), tokens, ADVANTAGES[name], divide_by_std=True)
    assert torch.cat(actual).tolist() == [0.0] * 6
