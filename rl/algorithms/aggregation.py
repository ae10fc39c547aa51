"""From a loss for each token to one loss: weights that already hold the denominator of the whole mini-batch."""

from __future__ import annotations

import torch
from torch import Tensor


def token_loss_weights(loss_mask: Tensor, trajectory_ids: Tensor, *, token_level: bool) -> Tensor:
    """Weigh tokens so that the loss is sum(weights * token_loss), over any micro-batches and ranks.

    With M = the loss tokens of the mini-batch, K = the trajectories that have any, m_k = those of trajectory k:

    * token-level: w_t = 1 / M. Every token counts the same, so a long trajectory counts more.
    * sequence-level: w_t = 1 / (K m_k). Every trajectory counts the same, one cut into several samples once.

    A masked-out trajectory has no loss tokens, and is in no denominator. The weights sum to 1, or to 0 without a token.

    Example: trajectory 0 has 1 loss token, trajectory 1 has 3; token-level 1/4 each; sequence-level 1/2, 1/6 1/6 1/6.

    Args:
        loss_mask: [T] float32, all tokens of the mini-batch, 1 on loss tokens.
        trajectory_ids: [T] int64, 0 or more, equal within a trajectory.
        token_level: As `rl_config.token_level_loss`.

    Returns:
        [T] float32, 0 where `loss_mask` is 0.

    Source: token-level, DAPO, arXiv:2503.14476, section 3.3; sequence-level, GRPO, arXiv:2402.03300.
    """
    if not bool(loss_mask.any()):
        return torch.zeros_like(loss_mask)
    mask = loss_mask.double()
    if token_level:
        return (mask / mask.sum()).float()
    tokens = torch.zeros(int(trajectory_ids.max()) + 1, dtype=torch.float64).scatter_add_(0, trajectory_ids, mask)
    num_trajectories = int((tokens > 0).sum())
    return (mask / (tokens[trajectory_ids].clamp(min=1.0) * num_trajectories)).float()
