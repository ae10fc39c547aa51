"""The interface of policy losses: log-probs and advantages in, one loss per token out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

_MAX_LOG_RATIO = 20.0


@dataclass(slots=True)
class TokenLoss:
    """Per-token loss and metrics, neither averaged nor masked."""

    loss: Tensor
    """[T] float32, differentiable with respect to the current log-probs."""
    is_clipped: Tensor
    """[T] float32, 1 where the ratio was clipped; for most losses the gradient is 0 there."""
    ppo_kl: Tensor
    """[T] float32, old minus current log-prob: the k1 estimate of KL(old || current)."""


class PolicyLoss(Protocol):
    """Signature of the functions in `rl.algorithms.losses.LOSSES`."""

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
            sequence_ids: [T] int64, from `rl.algorithms.aggregation.sequence_ids`: equal within a sampled sequence,
                which never spans micro-batches; -1 where `loss_mask` is 0.
        """
        ...


def bound_log_ratio(log_ratio: Tensor) -> Tensor:
    """Clamp a log-ratio to ±20, so that its exponential cannot overflow."""
    return log_ratio.clamp(-_MAX_LOG_RATIO, _MAX_LOG_RATIO)
