"""The loss of one micro-batch: policy loss with importance weights, KL term and entropy bonus, and their metrics.

A NaN or Inf in the log-probs or the loss of any token makes the gradient NaN on every rank, even if clipping would hide
it. The optimizer then skips the step.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rl.algorithms.aggregation import sequence_ids
from rl.algorithms.importance import Correction, correct
from rl.algorithms.kl import kl_estimate
from rl.algorithms.losses import LOSSES
from rl.algorithms.mismatch import MismatchSums, mismatch_sums
from rl.algorithms.token_loss import PolicyLoss, TokenLoss, bound_log_ratio
from rl.batches import MicroBatch, TokenColumns
from rl.config.correction import RolloutCorrection
from rl.config.schema import Config, KlPenalty
from rl.training.head import HeadOutput


@dataclass(slots=True, frozen=True)
class Objective:
    """The minimized function: sum of loss_weights * (w * policy loss + kl_coef * KL - entropy_coef * entropy).

    w is the importance weight from `correction`. Tokens of rejected sequences are in the denominators but in no term.
    """

    loss: PolicyLoss
    temperature: float
    """Sampling temperature of the rollouts."""
    clip_low: float = 0.2
    clip_high: float = 0.2
    clip_c: float | None = None
    """Bound of the dual clip."""
    kl_coef: float = 0.0
    kl_kind: KlPenalty = KlPenalty.LOW_VAR_KL
    entropy_coef: float = 0.0
    correction: RolloutCorrection | None = None
    """None if there are no rollouts."""

    @staticmethod
    def of(config: Config) -> Objective:
        """Build the objective of reinforcement learning."""
        rl = config.rl_config
        return Objective(
            loss=LOSSES[rl.policy_loss],
            temperature=config.generate_config.sampling_config.temperature,
            clip_low=rl.clip_ratio_low if rl.clip_higher_enable else rl.clip_ratio,
            clip_high=rl.clip_ratio_high if rl.clip_higher_enable else rl.clip_ratio,
            clip_c=rl.clip_ratio_c,
            kl_coef=rl.init_kl_coef,
            kl_kind=rl.kl_penalty,
            entropy_coef=rl.entropy_coeff,
            correction=rl.rollout_correction,
        )

    @staticmethod
    def of_sft() -> Objective:
        """Build the objective of the cold start: likelihood of demonstrations at temperature 1."""
        return Objective(loss=LOSSES["sft"], temperature=1.0)


_NO_CORRECTION = RolloutCorrection(rollout_is=None)

MEANS = ("actor/pg_loss", "actor/kl_loss", "actor/entropy", "actor/ppo_kl", "actor/pg_clipfrac")
"""Metrics summed over tokens with the weights of the loss. The weights of a mini-batch sum to 1, so the sums are means,
except for seq-mean-token-sum-norm."""

TOKEN_SUMS = ("training/rollout_probs_diff_mean", "actor/kl")
"""Metrics averaged over the loss tokens with equal weights."""


@dataclass(slots=True, frozen=True)
class TokenSums:
    """Contributions of one micro-batch to the metrics."""

    sums: Tensor
    """[len(MEANS) + len(TOKEN_SUMS) + 2]: `MEANS`, `TOKEN_SUMS`, number of loss tokens, number of broken tokens."""
    largest_difference: Tensor
    """Scalar, the largest difference between the actor's and the engine's probability of a token."""
    mismatch: MismatchSums
    is_broken: Tensor
    """[T] bool, loss tokens with NaN or Inf."""
    columns: TokenColumns


def policy_loss(micro_batch: MicroBatch, head: HeadOutput, objective: Objective) -> tuple[Tensor, TokenSums]:
    """Compute the contribution of one micro-batch to the loss of the mini-batch, which is their sum.

    Args:
        micro_batch: On the device of `head`.
        head: Current log-probs, with gradient, and entropy.
        objective: Loss and coefficients.

    Returns:
        The scalar loss and the contributions to the metrics. Loss and gradient are NaN if any token is broken.
    """
    assert micro_batch.loss_weights is not None and micro_batch.advantages is not None, "loss columns are not filled"
    weights, mask, current = micro_batch.loss_weights, micro_batch.loss_mask, head.logprobs.detach()
    ids = sequence_ids(micro_batch.sample_ids)
    old, trained = _old_and_trained(micro_batch, current, objective.correction)
    token = objective.loss(
        head.logprobs,
        old,
        micro_batch.advantages,
        clip_low=objective.clip_low,
        clip_high=objective.clip_high,
        clip_c=objective.clip_c,
        loss_mask=mask,
        sequence_ids=ids,
    )
    settings = objective.correction or _NO_CORRECTION
    correction = correct(trained - micro_batch.rollout_logprobs, ids, settings)
    per_token = policy = correction.weights * token.loss
    kl = torch.zeros_like(current)
    if micro_batch.ref_logprobs is not None:
        kl = kl_estimate(head.logprobs, micro_batch.ref_logprobs, objective.kl_kind)
        per_token = per_token + objective.kl_coef * kl
    if objective.entropy_coef:
        per_token = per_token - objective.entropy_coef * head.entropy
    loss = (weights * correction.is_kept * per_token).sum()
    is_broken = _is_broken(micro_batch, old, current, per_token) & (mask > 0)
    logged = torch.stack([policy * correction.is_kept, kl, head.entropy, token.ppo_kl, token.is_clipped]).detach()
    difference = (micro_batch.rollout_logprobs.exp() - trained.exp()).abs() * mask
    plain = torch.stack([difference.sum(), (kl.detach() * mask).sum(), mask.sum(), is_broken.float().sum()])
    sums = TokenSums(
        torch.cat([(logged * weights).sum(1), plain]),
        difference.max(),
        mismatch_sums(trained, micro_batch.rollout_logprobs, ids, correction, settings),
        is_broken,
        _token_columns(current, old, trained, token, correction, head.entropy.detach()),
    )
    # Add NaN instead of multiplying the loss by it: where a clamp stops the gradient, the product would have none.
    return loss + torch.where(is_broken.any(), torch.nan, 0.0) * head.logprobs.sum(), sums


def _old_and_trained(
    micro_batch: MicroBatch, current: Tensor, correction: RolloutCorrection | None
) -> tuple[Tensor, Tensor]:
    """Log-probs that the policy loss compares the current ones with, and those compared with the engine's."""
    if correction is not None and correction.bypass_mode:
        return micro_batch.rollout_logprobs, current
    old = current if micro_batch.old_logprobs is None else micro_batch.old_logprobs
    return old, old


def _token_columns(
    current: Tensor, old: Tensor, trained: Tensor, token: TokenLoss, correction: Correction, entropy: Tensor
) -> TokenColumns:
    return TokenColumns(
        old_logprobs=trained,
        ratios=bound_log_ratio(current - old).exp(),
        is_clipped=token.is_clipped.detach(),
        correction_weights=correction.weights * correction.is_kept,
        entropy=entropy,
    )


def _is_broken(micro_batch: MicroBatch, old: Tensor, current: Tensor, per_token: Tensor) -> Tensor:
    """[T] bool, true where an input of the loss is NaN or Inf, even if clipping hides it from the loss."""
    numbers = [per_token.detach(), current, old, micro_batch.rollout_logprobs, micro_batch.advantages]
    if micro_batch.ref_logprobs is not None:
        numbers.append(micro_batch.ref_logprobs)
    return ~torch.isfinite(torch.stack(numbers)).all(0)
