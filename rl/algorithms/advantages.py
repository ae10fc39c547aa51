"""Advantage estimators: one score per trajectory in, one advantage per trajectory out.

With turn-level credit (`rl.algorithms.turns`) a row is a turn and its score is the return of that turn.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

STD_EPSILON = 1e-6


class AdvantageEstimator(Protocol):
    """Signature of the functions in `ADVANTAGES`."""

    def __call__(self, scores: Tensor, group_ids: Tensor, *, num_tokens: Tensor, divide_by_std: bool) -> Tensor:
        """Map scores [N] to advantages [N].

        Args:
            scores: [N] float32, finite.
            group_ids: [N] int64, equal within a prompt's group.
            num_tokens: [N] int64, number of sampled tokens, at least 0; the weights for whitening over the batch.
            divide_by_std: `rl_config.norm_adv_by_std`.
        """
        ...


def group_norm(scores: Tensor, group_ids: Tensor, *, divide_by_std: bool = True, **_unused: object) -> Tensor:
    """Center each score on its group's mean.

    A_i = (r_i - mean(r_g)) / (std(r_g) + 1e-6), with the sample standard deviation (n - 1); 0 for a group of one.

    Args:
        scores: [N] float.
        group_ids: [N] int, equal within a prompt's group.
        divide_by_std: False gives Dr. GRPO's advantage, r_i - mean(r_g) (arXiv:2503.20783).

    Returns:
        [N] float32 advantages.

    Raises:
        ValueError: The lengths differ.

    Source: DeepSeekMath, arXiv:2402.03300, outcome supervision.
    """
    mean, sizes = _group_mean(scores, group_ids)
    centered = scores.double() - mean
    if divide_by_std:
        variance = _group_mean(centered.square(), group_ids)[0] * sizes / (sizes - 1).clamp(min=1)
        centered = centered / (variance.sqrt() + STD_EPSILON)
    return torch.where(sizes > 1, centered, 0.0).float()


def leave_one_out(scores: Tensor, group_ids: Tensor, **_unused: object) -> Tensor:
    """Compare each score with the mean of the other scores in its group.

    A_i = r_i - sum over j != i of r_j / (n - 1) = n / (n - 1) (r_i - mean(r_g)); 0 for a group of one.

    Example: scores 1, 0, 0, 0 give 1, -1/3, -1/3, -1/3.

    Args:
        scores: [N] float.
        group_ids: [N] int, equal within a prompt's group.

    Returns:
        [N] float32 advantages.

    Raises:
        ValueError: The lengths differ.

    Source: RLOO, arXiv:2402.14740, section 3.2.
    """
    mean, sizes = _group_mean(scores, group_ids)
    centered = (scores.double() - mean) * sizes / (sizes - 1).clamp(min=1)
    return torch.where(sizes > 1, centered, 0.0).float()


def reinforce_plus_plus(scores: Tensor, group_ids: Tensor, *, num_tokens: Tensor, **_unused: object) -> Tensor:
    """Whiten the scores over the whole batch; groups play no role.

    A_i = (r_i - mean(r)) / (std(r) + 1e-6). Mean and population standard deviation are over the sampled tokens of the
    batch; each token has the score of its trajectory.

    Example: scores 1 and 0 with 1 and 3 tokens: mean 1/4, std sqrt(3)/4, advantages 1.732 and -0.577.

    Args:
        scores: [N] float.
        group_ids: [N] int; only its length is checked.
        num_tokens: [N] int, at least 0.

    Returns:
        [N] float32 advantages; 0 where all scores are equal.

    Raises:
        ValueError: The lengths differ.

    Source: REINFORCE++, arXiv:2501.03262, global advantage normalization.
    """
    _check_lengths(scores, group_ids, num_tokens)
    return _whiten(scores.double(), num_tokens)


def reinforce_plus_plus_baseline(scores: Tensor, group_ids: Tensor, *, num_tokens: Tensor, **_unused: object) -> Tensor:
    """Center each score on its group's mean, then whiten over the whole batch.

    A_i = (d_i - mean(d)) / (std(d) + 1e-6) with d_i = r_i - mean(r_g). Mean and population standard deviation of d are
    over the sampled tokens of the batch. A group of one, or with equal scores, has advantage 0 and is excluded from
    both statistics.

    Args:
        scores: [N] float.
        group_ids: [N] int, equal within a prompt's group.
        num_tokens: [N] int, at least 0.

    Returns:
        [N] float32 advantages.

    Raises:
        ValueError: The lengths differ.

    Source: REINFORCE++, arXiv:2501.03262, the variant with a group baseline.
    """
    _check_lengths(scores, group_ids, num_tokens)
    centered = scores.double() - _group_mean(scores, group_ids)[0]
    differs = _group_mean(centered.abs(), group_ids)[0] > 0
    return torch.where(differs, _whiten(centered, num_tokens * differs), 0.0)


def gae(rewards: Tensor, values: Tensor, *, gamma: float, lam: float) -> Tensor:
    """Generalized advantage estimation over the steps of one trajectory. The value after the last step is 0.

    d_t = r_t + gamma V_{t+1} - V_t;  A_t = d_t + gamma lam A_{t+1}.

    `rl_config.adv_estimator` does not accept it, because there is no critic to provide the values.

    Example: rewards 0, 1, values 0.5, 0.5, gamma 1, lam 0.5: d = 0, 0.5; A = 0.25, 0.5.

    Args:
        rewards: [T] float, reward of each step.
        values: [T] float, the critic's estimate before each step.
        gamma: Discount per step, 0 to 1.
        lam: 0 to 1; 0 relies on the critic, 1 on the rewards.

    Returns:
        [T] float32 advantages. The critic's targets are these plus `values`.

    Raises:
        ValueError: The lengths differ.

    Source: arXiv:1506.02438, equation 16.
    """
    if len(rewards) != len(values):
        raise ValueError(
            f"gae: lengths differ, got {len(rewards)} rewards, {len(values)} values. Pass one of each per step."
        )
    deltas = rewards.double() - values.double()
    deltas[:-1] += gamma * values[1:].double()
    advantages = torch.zeros_like(deltas)
    following = deltas.new_zeros(())
    for t in reversed(range(len(deltas))):
        following = advantages[t] = deltas[t] + gamma * lam * following
    return advantages.float()


ADVANTAGES: dict[str, AdvantageEstimator] = {
    "group_norm": group_norm,
    "rloo": leave_one_out,
    "reinforce_plus_plus": reinforce_plus_plus,
    "reinforce_plus_plus_baseline": reinforce_plus_plus_baseline,
}
"""Values of `rl_config.adv_estimator`."""

NEED_CRITIC = ("gae",)
"""Estimators that `rl_config.adv_estimator` rejects, because there is no critic."""


def _group_mean(values: Tensor, group_ids: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and size of each row's group, [N] float64 and [N] int64."""
    _check_lengths(values, group_ids)
    _, rows = group_ids.unique(return_inverse=True)
    sizes = torch.bincount(rows)
    # float64: equal scores such as 0.1 must center to exactly 0, not to a rounding error divided by epsilon.
    sums = torch.zeros(len(sizes), dtype=torch.float64).index_add_(0, rows, values.double())
    return (sums / sizes)[rows], sizes[rows]


def _whiten(values: Tensor, weights: Tensor) -> Tensor:
    total = weights.double().sum().clamp(min=1.0)
    centered = values - (weights * values).sum() / total
    std = ((weights * centered.square()).sum() / total).sqrt()
    return (centered / (std + STD_EPSILON)).float()


def _check_lengths(scores: Tensor, *others: Tensor) -> None:
    if any(len(other) != len(scores) for other in others):
        lengths = ", ".join(str(len(other)) for other in others)
        raise ValueError(f"advantages: lengths differ, got {len(scores)} scores, but {lengths}. Pass one per row.")
