"""Turn-level credit: rewards that were given at a turn, beside the score of the whole trajectory."""

from __future__ import annotations

import torch
from torch import Tensor

from rl.algorithms.advantages import AdvantageEstimator


def turn_returns(rewards: Tensor, discount: float) -> Tensor:
    """Sum what each turn and the turns after it were rewarded with.

    R_k = sum over l >= k of discount^(l - k) r_l.

    Example: rewards 0, 0, 1 with discount 0.5: 0.25, 0.5, 1.

    Args:
        rewards: [K] float, of each turn; 0 where none was given.
        discount: From turn to turn, 0 (a reward reaches its own turn alone) to 1.

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
    """Compare the return of each turn with that of the same turn of the group's other trajectories.

    The estimator sees turns where it otherwise sees trajectories; the turns with the same place, from the first, of one
    prompt's trajectories are a group. Where the estimator compares within groups, a trajectory that is alone in having
    a k-th turn has advantage 0 there.

    Args:
        returns: For each of N trajectories [K_i], as `turn_returns` gives them.
        group_ids: [N] int64, equal within a prompt's group.
        num_tokens: For each trajectory [K_i] int64, the sampled tokens of its turns.
        estimate: Of `rl.algorithms.advantages.ADVANTAGES`.
        divide_by_std: As the estimator takes it.

    Returns:
        For each trajectory [K_i] float32, 0 everywhere where no turn of the batch was rewarded.

    Source: turn-level advantages beside the outcome's, MT-GRPO, arXiv:2505.11821, section 4.
    """
    counts = torch.tensor([len(r) for r in returns])
    places = torch.cat([torch.arange(len(r)) for r in returns])
    turn_groups = group_ids.repeat_interleave(counts) * int(counts.max()) + places
    advantages = estimate(
        torch.cat(returns), turn_groups, num_tokens=torch.cat(num_tokens), divide_by_std=divide_by_std
    )
    return list(advantages.split(counts.tolist()))
