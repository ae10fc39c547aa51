"""Policy losses that look at each token alone, and the table of all. How tokens are summed is `aggregation`'s."""

from __future__ import annotations

import torch
from torch import Tensor

from rl.algorithms.sequence_losses import geometric_mean_loss, sequence_ratio_loss
from rl.algorithms.token_loss import MAX_LOG_RATIO, PolicyLoss, TokenLoss


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
    """Bound how far one batch can move the policy.

    ratio = exp(logprobs - old_logprobs);
    loss = max(-A ratio, -A clip(ratio, 1 - clip_low, 1 + clip_high)), and where A < 0 at most -A clip_c.

    Args:
        logprobs: [T] float32, of the current policy.
        old_logprobs: [T] float32, of the policy at the start of the batch, without gradient.
        advantages: [T] float32.
        clip_low: Lower distance of the clip range, 0 to 1.
        clip_high: Upper distance; above `clip_low` it is DAPO's clip-higher.
        clip_c: Bound of the ratio of tokens with a negative advantage (dual clip), at least 1; None: without.
        _unused: What other losses need.

    Returns:
        The loss, where it was clipped, and the change of the log-probs.

    Source: PPO, arXiv:1707.06347, equation 7; DAPO, arXiv:2503.14476, equation 10; dual clip, arXiv:1912.09729.
    """
    log_ratio = logprobs - old_logprobs
    ratio = log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
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
    """Bound each token's importance weight, and let every token keep its gradient (CISPO).

    ratio = exp(logprobs - old_logprobs);  loss = -clip(ratio, 1 - clip_low, 1 + clip_high) A logprobs, with the
    clipped ratio as a constant.

    Args:
        logprobs: [T] float32, of the current policy.
        old_logprobs: [T] float32, of the policy at the start of the batch, without gradient.
        advantages: [T] float32.
        clip_low: Lower distance of the clip range, 0 to 1; 1 bounds from above alone, as the paper does.
        clip_high: Upper distance.
        _unused: What other losses need.

    Returns:
        The loss, where a weight was bounded, and the change of the log-probs.

    Source: MiniMax-M1, arXiv:2506.13585.
    """
    log_ratio = (logprobs - old_logprobs).detach()
    ratio = log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
    weight = ratio.clamp(1.0 - clip_low, 1.0 + clip_high)
    return TokenLoss(loss=-weight * advantages * logprobs, is_clipped=(weight != ratio).float(), ppo_kl=-log_ratio)


def reinforce_loss(logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, **_unused: object) -> TokenLoss:
    """Take the plain policy gradient: loss = -A logprobs, without ratio or clip.

    Args:
        logprobs: [T] float32, of the current policy.
        old_logprobs: [T] float32, for the metric only.
        advantages: [T] float32.
        _unused: What other losses need.

    Returns:
        The loss; nothing is clipped.

    Source: Williams 1992, doi:10.1007/BF00992696.
    """
    return TokenLoss(
        loss=-advantages * logprobs,
        is_clipped=torch.zeros_like(logprobs),
        ppo_kl=(old_logprobs - logprobs).detach(),
    )


def sft_loss(logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, **_unused: object) -> TokenLoss:
    """Imitate demonstrations: loss = -logprobs, the negative log-likelihood of each token in nats.

    Args:
        logprobs: [T] float32, of the current policy.
        old_logprobs: Not used.
        advantages: Not used.
        _unused: What other losses need.

    Returns:
        The loss; nothing is clipped, nothing has an old policy.
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
"""Values of `rl_config.policy_loss`; `sft` is the cold start's."""
