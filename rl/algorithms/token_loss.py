"""What policy losses take and give: one number for each token, to be minimized."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

MAX_LOG_RATIO = 20.0
"""Exponents are bounded to this on both sides, so that no ratio overflows."""


@dataclass(slots=True)
class TokenLoss:
    """A loss and what is logged of it. Nothing is averaged and nothing is masked."""

    loss: Tensor
    """[T] float32, differentiable with respect to the current log-probs."""
    is_clipped: Tensor
    """[T] float32, 1 where the clip acted: on most losses it removes the gradient there."""
    ppo_kl: Tensor
    """[T] float32, old minus current log-prob: the k1 estimate of KL(old || current)."""


class PolicyLoss(Protocol):
    """What the functions in `rl.algorithms.losses.LOSSES` have in common."""

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
