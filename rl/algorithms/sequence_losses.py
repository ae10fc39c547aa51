"""Policy losses with one ratio per sampled sequence: GSPO and GMPO.

Each loss token holds the loss of its sequence, so the weights of `rl.algorithms.aggregation` apply as to any other
loss. With `seq-mean-token-mean` each sequence counts once, as in the papers.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rl.algorithms.aggregation import sequence_mean
from rl.algorithms.token_loss import TokenLoss, bound_log_ratio


def sequence_ratio_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    *,
    clip_low: float,
    clip_high: float,
    sequence_ids: Tensor,
    **_unused: object,
) -> TokenLoss:
    """Clip the length-normalized ratio of each sequence (GSPO).

    Over the m loss tokens of a sequence, s = exp(1/m sum of (logprobs - old_logprobs)). Each token has
    loss = max(-A s_t, -A clip(s_t, 1 - clip_low, 1 + clip_high)), where s_t has the value s and the gradient
    s d(logprobs_t): GSPO-token in the paper. If all tokens of a sequence have the same advantage, the mean over its
    tokens has the value and the gradient of GSPO itself.

    Args:
        logprobs: [T] float32, of the current policy.
        old_logprobs: [T] float32, of the policy at the start of the batch, without gradient.
        advantages: [T] float32.
        clip_low: Lower distance of the clip range, 0 to 1; the paper uses 3e-4.
        clip_high: Upper distance; the paper uses 4e-4.
        sequence_ids: [T] int64, equal within a sequence, -1 outside the loss tokens.

    Source: arXiv:2507.18071, GSPO and GSPO-token.
    """
    change = logprobs - old_logprobs
    mean = bound_log_ratio(sequence_mean(change.detach(), sequence_ids))
    ratio = (mean + (logprobs - logprobs.detach())).exp()  # the parentheses keep the value exact
    free = -advantages * ratio
    bounded = -advantages * ratio.clamp(1.0 - clip_low, 1.0 + clip_high)
    return TokenLoss(loss=torch.maximum(free, bounded), is_clipped=(bounded > free).float(), ppo_kl=-change.detach())


def geometric_mean_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    *,
    clip_low: float,
    clip_high: float,
    sequence_ids: Tensor,
    **_unused: object,
) -> TokenLoss:
    """Take the geometric mean of the clipped token ratios of a sequence (GMPO).

    With d = logprobs - old_logprobs, bounded on one side as in PPO: e = min(d, clip_high) if A > 0, max(d, -clip_low)
    if A < 0, 0 if A = 0. Over the m loss tokens of a sequence, each token has loss = -A exp(1/m sum of e). So the ratio
    is clipped to the range from exp(-clip_low) to exp(clip_high).

    Args:
        logprobs: [T] float32, of the current policy.
        old_logprobs: [T] float32, of the policy at the start of the batch, without gradient.
        advantages: [T] float32.
        clip_low: Largest decrease of the log-ratio; the paper uses 0.4.
        clip_high: Largest increase; the paper uses 0.4.
        sequence_ids: [T] int64, equal within a sequence, -1 outside the loss tokens.

    Source: arXiv:2507.20673.
    """
    change, sign = logprobs - old_logprobs, advantages.sign()
    clipped = change.clamp(-clip_low, clip_high)
    within = sign * torch.minimum(sign * change, sign * clipped)
    ratio = bound_log_ratio(sequence_mean(within, sequence_ids)).exp()
    return TokenLoss(
        loss=-advantages * ratio,
        is_clipped=(sign * change > sign * clipped).float(),
        ppo_kl=-change.detach(),
    )
