"""Per-token policy losses, and the table of all policy losses. `rl.algorithms.aggregation` weighs the tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from rl.algorithms.sequence_losses import geometric_mean_loss, sequence_ratio_loss
from rl.algorithms.token_loss import PolicyLoss, TokenLoss, bound_log_ratio


def clipped_policy_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    *,
    clip_low: float,
    clip_high: float,
    clip_c: float | None = None,
    **_unused: object,
) -> TokenLoss:
    """Clip the probability ratio, which bounds how far one batch can move the policy (PPO).

    ratio = exp(logprobs - old_logprobs);
    loss = max(-A ratio, -A clip(ratio, 1 - clip_low, 1 + clip_high)), and at most -A clip_c if A < 0.

    Args:
        logprobs: [T] float32, of the current policy.
        old_logprobs: [T] float32, of the policy at the start of the batch, without gradient.
        advantages: [T] float32.
        clip_low: Lower distance of the clip range, 0 to 1.
        clip_high: Upper distance; a value above `clip_low` is DAPO's clip-higher.
        clip_c: Bound on the ratio of tokens with negative advantage (dual clip), at least 1; None disables it.

    Source: PPO, arXiv:1707.06347, equation 7; DAPO, arXiv:2503.14476, equation 10; dual clip, arXiv:1912.09729.
    """
    log_ratio = logprobs - old_logprobs
    ratio = bound_log_ratio(log_ratio).exp()
    free = -advantages * ratio
    bounded = -advantages * ratio.clamp(1.0 - clip_low, 1.0 + clip_high)
    loss, is_clipped = torch.maximum(free, bounded), bounded > free
    if clip_c is not None:
        limit = -advantages * clip_c
        is_dual = (advantages < 0) & (loss > limit)
        loss, is_clipped = torch.where(is_dual, limit, loss), is_clipped | is_dual
    return TokenLoss(loss=loss, is_clipped=is_clipped.float(), ppo_kl=-log_ratio.detach())


def clipped_weight_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    *,
    clip_low: float,
    clip_high: float,
    **_unused: object,
) -> TokenLoss:
    """Clip each token's importance weight but keep every token's gradient (CISPO).

    ratio = exp(logprobs - old_logprobs);  loss = -clip(ratio, 1 - clip_low, 1 + clip_high) A logprobs. No gradient
    flows through the ratio.

    Args:
        logprobs: [T] float32, of the current policy.
        old_logprobs: [T] float32, of the policy at the start of the batch, without gradient.
        advantages: [T] float32.
        clip_low: Lower distance of the clip range, 0 to 1; 1 means no lower bound, as in the paper.
        clip_high: Upper distance.

    Source: MiniMax-M1, arXiv:2506.13585.
    """
    log_ratio = (logprobs - old_logprobs).detach()
    ratio = bound_log_ratio(log_ratio).exp()
    weight = ratio.clamp(1.0 - clip_low, 1.0 + clip_high)
    return TokenLoss(loss=-weight * advantages * logprobs, is_clipped=(weight != ratio).float(), ppo_kl=-log_ratio)


def reinforce_loss(logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, **_unused: object) -> TokenLoss:
    """The plain policy gradient: loss = -A logprobs, without ratio or clip.

    Args:
        logprobs: [T] float32, of the current policy.
        old_logprobs: [T] float32, for `ppo_kl` only.
        advantages: [T] float32.

    Source: Williams 1992, doi:10.1007/BF00992696.
    """
    return TokenLoss(
        loss=-advantages * logprobs,
        is_clipped=torch.zeros_like(logprobs),
        ppo_kl=(old_logprobs - logprobs).detach(),
    )


def sft_loss(logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, **_unused: object) -> TokenLoss:
    """Supervised fine-tuning: loss = -logprobs, the negative log-likelihood of each token in nats.

    Args:
        logprobs: [T] float32, of the current policy.
        old_logprobs: Not used.
        advantages: Not used.
    """
    del old_logprobs, advantages
    zeros = torch.zeros_like(logprobs)
    return TokenLoss(loss=-logprobs, is_clipped=zeros, ppo_kl=zeros)


LOSSES: dict[str, PolicyLoss] = {
    "clip": clipped_policy_loss,
    "gspo": sequence_ratio_loss,
    "gmpo": geometric_mean_loss,
    "cispo": clipped_weight_loss,
    "reinforce": reinforce_loss,
    "sft": sft_loss,
}
"""Values of `rl_config.policy_loss`, and `sft` for the cold start."""
