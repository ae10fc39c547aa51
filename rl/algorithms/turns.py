"""Turn-level credit: rewards of single turns, in addition to the score of the trajectory."""

from __future__ import annotations

import torch
from torch import Tensor

from rl.algorithms.advantages import AdvantageEstimator


def turn_returns(rewards: Tensor, discount: float) -> Tensor:
    """Compute the discounted return of each turn: its own reward and those of later turns.

    R_k = sum over l >= k of discount^(l - k) r_l.

    Example: rewards 0, 0, 1 with discount 0.5: 0.25, 0.5, 1.

    Args:
        rewards: [K] float, reward of each turn; 0 for turns without one.
        discount: Per turn, 0 to 1; with 0 a reward counts only for its own turn.

    Returns:
        [K] float32.
    """
    returns = rewards.double().clone()
    for k in reversed(range(len(returns) - 1)):
        returns[k] += discount * returns[k + 1]
    return returns.float()


def turn_advantages(
    returns: list[Tensor],
    group_ids: Tensor,
    num_tokens: list[Tensor],
    estimate: AdvantageEstimator,
    *,
    divide_by_std: bool,
) -> list[Tensor]:
    """Compare the return of each turn with the same turn of the group's other trajectories.

    The estimator gets turns as rows. The k-th turns of one prompt's trajectories form a group. So with a group
    estimator, the k-th turn has advantage 0 if no other trajectory of the prompt has a k-th turn.

    Args:
        returns: [K_i] for each of N trajectories, from `turn_returns`.
        group_ids: [N] int64, equal within a prompt's group.
        num_tokens: [K_i] int64 for each trajectory, number of sampled tokens of each turn.
        estimate: A value of `rl.algorithms.advantages.ADVANTAGES`.
        divide_by_std: Passed to the estimator.

    Returns:
        [K_i] float32 for each trajectory, all 0 if no turn of the batch has a reward.

    Source: turn-level and outcome advantages, MT-GRPO, arXiv:2505.11821, section 4.
    """
    counts = torch.tensor([len(r) for r in returns])
    turn_numbers = torch.cat([torch.arange(len(r)) for r in returns])
    turn_groups = group_ids.repeat_interleave(counts) * int(counts.max()) + turn_numbers
    advantages = estimate(
        torch.cat(returns), turn_groups, num_tokens=torch.cat(num_tokens), divide_by_std=divide_by_std
    )
    return list(advantages.split(counts.tolist()))
