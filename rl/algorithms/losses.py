"""Policy losses: one number for each token, to be minimized. How tokens are summed is `aggregation`'s subject."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

MAX_LOG_RATIO = 20.0


@dataclass(slots=True)
class TokenLoss:
    """A loss and what is logged of it. Nothing is averaged and nothing is masked."""

    loss: Tensor
    """[T] float32, differentiable with respect to the current log-probs."""
    is_clipped: Tensor
    """[T] float32, 1 where the clip removed the gradient."""
    ppo_kl: Tensor
    """[T] float32, old minus current log-prob: the k1 estimate of KL(old || current)."""


class PolicyLoss(Protocol):
    """What the functions in `LOSSES` have in common."""

    def __call__(
        self,
        logprobs: Tensor,
        old_logprobs: Tensor,
        advantages: Tensor,
        *,
        clip_low: float,
        clip_high: float,
        clip_c: float | None,
        loss_mask: Tensor,
        sequence_ids: Tensor,
    ) -> TokenLoss:
        """Map log-probs and advantages, each [T], to a loss [T].

        Args:
            logprobs: [T] float32, of the current policy, with gradient.
            old_logprobs: [T] float32, of the policy at the start of the batch, without gradient.
            advantages: [T] float32.
            clip_low: Lower distance of the clip range.
            clip_high: Upper distance of the clip range.
            clip_c: Bound of the dual clip, or None.
            loss_mask: [T] float32, 1 on loss tokens.
            sequence_ids: [T] int64, as `rl.algorithms.aggregation.sequence_ids` makes them: equal within a sampled
                sequence, which never spans micro-batches; -1 where `loss_mask` is 0.
        """
        ...


def clipped_policy_loss(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, *, clip_low: float, clip_high: float, **_unused: object
) -> TokenLoss:
    """Bound how far one batch can move the policy.

    ratio = exp(logprobs - old_logprobs), the exponent bounded to ±20 so that it cannot overflow;
    loss = max(-A ratio, -A clip(ratio, 1 - clip_low, 1 + clip_high)).

    Args:
        logprobs: [T] float32, of the current policy.
        old_logprobs: [T] float32, of the policy at the start of the batch, without gradient.
        advantages: [T] float32.
        clip_low: Lower distance of the clip range, 0 to 1.
        clip_high: Upper distance; above `clip_low` it is DAPO's clip-higher.
        _unused: What other losses need.

    Returns:
        The loss, where it was clipped, and the change of the log-probs.

    Source: PPO, arXiv:1707.06347, equation 7; DAPO, arXiv:2503.14476, equation 10.
    """
    log_ratio = logprobs - old_logprobs
    ratio = log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
    free = -advantages * ratio
    bounded = -advantages * ratio.clamp(1.0 - clip_low, 1.0 + clip_high)
    return TokenLoss(
        loss=torch.maximum(free, bounded),
        is_clipped=(bounded > free).float(),
        ppo_kl=-log_ratio.detach(),
    )


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


LOSSES: dict[str, PolicyLoss] = {"clip": clipped_policy_loss, "reinforce": reinforce_loss, "sft": sft_loss}
"""Values of `rl_config.policy_loss`; `sft` is the cold start's."""
