"""Advantages: from one score per trajectory to one number per trajectory."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

STD_EPSILON = 1e-6


class AdvantageEstimator(Protocol):
    """What the functions in `ADVANTAGES` have in common."""

    def __call__(
        self, scores: Tensor, group_ids: Tensor, *, is_scored: Tensor | None = None, divide_by_std: bool = True
    ) -> Tensor:
        """Map scores [N] to advantages [N]."""
        ...


def group_norm(
    scores: Tensor, group_ids: Tensor, *, is_scored: Tensor | None = None, divide_by_std: bool = True
) -> Tensor:
    """Center each score on its group's mean.

    A_i = (r_i - mean(r_g)) / (std(r_g) + 1e-6), with the sample standard deviation (n - 1), over the scored
    trajectories of the group; 0 where fewer than two are scored, and where `is_scored` is false.

    Args:
        scores: [N] float, one for each trajectory; ignored where `is_scored` is false, and may be NaN there.
        group_ids: [N] int, equal within a prompt's group.
        is_scored: [N] bool, false where the reward failed; None when all are scored.
        divide_by_std: False gives Dr. GRPO's advantage, the difference alone (arXiv:2503.20783).

    Returns:
        [N] float32 advantages.

    Raises:
        ValueError: The lengths differ.

    Source: DeepSeekMath, arXiv:2402.03300, outcome supervision.
    """
    if is_scored is None:
        is_scored = torch.ones_like(scores, dtype=torch.bool)
    if not len(scores) == len(group_ids) == len(is_scored):
        raise ValueError(
            f"group_norm: lengths differ, got {len(scores)} scores, {len(group_ids)} group ids, "
            f"{len(is_scored)} flags. Pass one of each per trajectory."
        )
    advantages = torch.zeros(len(scores), dtype=torch.float32)
    for group_id in group_ids.unique():
        members = (group_ids == group_id) & is_scored
        if members.sum() < 2:
            continue
        # float64: equal scores such as 0.1 must center to exactly 0, not to a rounding error divided by epsilon.
        group = scores[members].double()
        centered = group - group.mean()
        if divide_by_std:
            centered = centered / (group.std(correction=1) + STD_EPSILON)
        advantages[members] = centered.float()
    return advantages


ADVANTAGES: dict[str, AdvantageEstimator] = {"group_norm": group_norm}
"""Values of `rl_config.adv_estimator`."""
