"""Estimators of KL(policy || reference) from the log-probs of sampled tokens, and the coefficient of the KL term.

The values of k1 and k3 are unbiased, that of k2 nearly so. In a loss the gradient matters too: that of k1 is a score
function with expectation 0, so it has no effect on average. `kl_estimate` therefore gives k1 the gradient of k2, which
is the gradient of the divergence when sampling is on-policy. k3 keeps its own gradient, as in GRPO.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from rl.algorithms.token_loss import bound_log_ratio
from rl.batches import MicroBatch
from rl.config.schema import KlControl, KlPenalty, RLConfig


def kl_estimate(logprobs: Tensor, ref_logprobs: Tensor, kind: KlPenalty) -> Tensor:
    """Estimate KL(policy || reference) at each sampled token.

    With d = logprobs - ref_logprobs:  k1 = d,  k2 = d² / 2,  k3 = exp(-d) - 1 + d  (`low_var_kl` is k3, with d bounded
    to ±20 so that the exponential cannot overflow). Gradient with respect to logprobs: d for k1 (see the module) and
    k2, 1 - exp(-d) for k3.

    Args:
        logprobs: [T] float32, of the current policy.
        ref_logprobs: [T] float32, of the reference, without gradient.
        kind: The estimator.

    Returns:
        [T] float32; k2 and k3 are never negative.

    Source: http://joschu.net/blog/kl-approx.html; the gradients: Tang and Munos, arXiv:2506.09477.
    """
    difference = logprobs - ref_logprobs
    if kind in (KlPenalty.K3, KlPenalty.LOW_VAR_KL):
        bounded = bound_log_ratio(difference)
        return torch.expm1(-bounded) + bounded
    half_square = difference.square() / 2
    if kind == KlPenalty.K2:
        return half_square
    assert kind == KlPenalty.K1, f"an estimator was added to KlPenalty without a formula here: {kind}"
    return difference.detach() + (half_square - half_square.detach())


def kl_of_samples(micro_batches: list[MicroBatch], num_samples: int, kind: KlPenalty) -> Tensor:
    """Sum the estimates over the sampled tokens of each sample of a mini-batch, with the engine's log-probs.

    Args:
        micro_batches: Packed, with `ref_logprobs`.
        num_samples: N, the mini-batch's.
        kind: The estimator.

    Returns:
        [N] float32, nats.
    """
    totals = torch.zeros(num_samples)
    for micro in micro_batches:
        assert micro.ref_logprobs is not None, "of a packed batch, after the reference"
        estimates = kl_estimate(micro.rollout_logprobs, micro.ref_logprobs, kind)
        is_sampled = micro.loss_mask > 0
        totals.index_add_(0, micro.sample_ids[is_sampled], estimates[is_sampled])
    return totals


@dataclass(slots=True)
class KlCoefficient:
    """The coefficient of the KL term, fixed or adapted towards a target.

    Adaptive: after a step with mean divergence d per token, over n trajectories,

        coefficient <- coefficient (1 + clip(d / target - 1, -0.2, 0.2) n / horizon)

    Example: 0.1, target 0.05, horizon 100; d = 0.2 over 10 trajectories: 0.1 (1 + 0.2 * 10 / 100) = 0.102.

    Source: Ziegler et al., arXiv:1909.08593, section 2.2, which uses the divergence of whole episodes.
    """

    value: float
    """Coefficient of the next step, at least 0."""
    is_adaptive: bool = False
    target: float = 1.0
    """Nats per token, above 0."""
    horizon: float = 1.0
    """Trajectories, above 0."""

    @staticmethod
    def of(rl: RLConfig) -> KlCoefficient:
        """The coefficient that the configuration asks for."""
        is_adaptive = rl.kl_ctrl_type is KlControl.ADAPTIVE
        return KlCoefficient(rl.init_kl_coef, is_adaptive, rl.kl_target, rl.kl_horizon)

    def observe(self, divergence: float, num_trajectories: int) -> None:
        """Adapt to a step's divergence; NaN, Inf or a fixed coefficient change nothing.

        Args:
            divergence: Mean estimate per token, nats.
            num_trajectories: Trajectories it was measured on.
        """
        if self.is_adaptive and math.isfinite(divergence):
            error = min(max(divergence / self.target - 1.0, -0.2), 0.2)
            self.value = max(self.value * (1.0 + error * num_trajectories / self.horizon), 0.0)
