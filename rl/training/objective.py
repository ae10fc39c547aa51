"""The loss of one micro-batch: policy loss with importance weights, KL term, entropy bonus, and what is logged of them.

A NaN or Inf in the log-probs or the loss of any token makes the gradient NaN on every rank, even where a clip or a
bound would have hidden it: the optimizer then skips the step.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rl.algorithms.aggregation import sequence_ids
from rl.algorithms.importance import correct
from rl.algorithms.kl import kl_estimate
from rl.algorithms.losses import LOSSES
from rl.algorithms.mismatch import MismatchSums, mismatch_sums
from rl.algorithms.token_loss import PolicyLoss
from rl.batches import MicroBatch
from rl.config.correction import RolloutCorrection
from rl.config.schema import Config, KlPenalty
from rl.training.head import HeadOutput


@dataclass(slots=True, frozen=True)
class Objective:
    """What is minimized: sum of loss_weights * (w * policy loss + kl_coef * KL - entropy_coef * entropy).

    w is the importance weight of `correction`; tokens of rejected sequences count in no term, but in the denominators.
    """

    loss: PolicyLoss
    temperature: float
    """Of the distribution that was sampled from."""
    clip_low: float = 0.2
    clip_high: float = 0.2
    clip_c: float | None = None
    """Bound of the dual clip."""
    kl_coef: float = 0.0
    kl_kind: KlPenalty = KlPenalty.LOW_VAR_KL
    entropy_coef: float = 0.0
    correction: RolloutCorrection | None = None
    """None: nothing was rolled out."""

    @staticmethod
    def of(config: Config) -> Objective:
        """The objective of reinforcement learning."""
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
        """The objective of the cold start: the likelihood of demonstrations, at temperature 1."""
        return Objective(loss=LOSSES["sft"], temperature=1.0)


_NO_CORRECTION = RolloutCorrection(rollout_is=None)

MEANS = ("actor/pg_loss", "actor/kl_loss", "actor/entropy", "actor/ppo_kl", "actor/pg_clipfrac")
"""Metrics that are sums over tokens, each weighted as in the loss. The weights of a mini-batch sum to 1, but for
seq-mean-token-sum-norm: there the sums are no means."""

TOKEN_SUMS = ("training/rollout_probs_diff_mean", "actor/kl")
"""Metrics that are means over the loss tokens, whatever the loss weighs them with."""


@dataclass(slots=True, frozen=True)
class TokenSums:
    """What is logged of one micro-batch."""

    sums: Tensor
    """[len(MEANS) + len(TOKEN_SUMS) + 2]: `MEANS`, `TOKEN_SUMS`, then the number of loss tokens, and of broken ones."""
    largest_difference: Tensor
    """Scalar: the largest difference in probability."""
    mismatch: MismatchSums
    is_broken: Tensor
    """[T] bool, loss tokens with a NaN or Inf."""


def policy_loss(micro_batch: MicroBatch, head: HeadOutput, objective: Objective) -> tuple[Tensor, TokenSums]:
    """The loss of one micro-batch: its share of the mini-batch's, to be summed.

    Args:
        micro_batch: On the device of `head`.
        head: Current log-probs, with gradient, and entropy.
        objective: What is minimized.

    Returns:
        The scalar loss, NaN with a NaN gradient where any token is broken, and what is logged of it.
    """
    assert micro_batch.loss_weights is not None and micro_batch.advantages is not None, "the loss columns come first"
    weights, mask, current = micro_batch.loss_weights, micro_batch.loss_mask, head.logprobs.detach()
    ids = sequence_ids(micro_batch.cu_seqlens, mask)
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
    )
    # Added, not multiplied: where a clamp has stopped the gradient, NaN times it is 0.
    return loss + torch.where(is_broken.any(), torch.nan, 0.0) * head.logprobs.sum(), sums


def _old_and_trained(
    micro_batch: MicroBatch, current: Tensor, correction: RolloutCorrection | None
) -> tuple[Tensor, Tensor]:
    """Log-probs that the policy loss measures the change from, and those that the engine's are compared with."""
    if correction is not None and correction.bypass_mode:
        return micro_batch.rollout_logprobs, current
    old = current if micro_batch.old_logprobs is None else micro_batch.old_logprobs
    return old, old


def _is_broken(micro_batch: MicroBatch, old: Tensor, current: Tensor, per_token: Tensor) -> Tensor:
    """[T] bool, where a number that enters the loss is NaN or Inf; bounds may hide it from the loss itself."""
    numbers = [per_token.detach(), current, old, micro_batch.rollout_logprobs, micro_batch.advantages]
    if micro_batch.ref_logprobs is not None:
        numbers.append(micro_batch.ref_logprobs)
    return ~torch.isfinite(torch.stack(numbers)).all(0)
