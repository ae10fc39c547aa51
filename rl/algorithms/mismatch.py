"""Metrics of the mismatch between the engine's policy and the actor's (`rollout_corr/*`), from micro-batch sums."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from rl.algorithms.aggregation import sequence_mean, sequence_sum
from rl.algorithms.importance import Correction
from rl.algorithms.token_loss import bound_log_ratio
from rl.config.correction import RolloutCorrection

_TOKEN_MEANS = (
    "rollout_corr/kl",
    "rollout_corr/k3_kl",
    "rollout_corr/chi2_token",
    "rollout_corr/rollout_is_mean",
    "rollout_corr/rollout_is_std",
    "rollout_corr/rollout_is_ratio_fraction_high",
    "rollout_corr/rollout_is_ratio_fraction_low",
    "rollout_corr/rollout_rs_masked_fraction",
)
_SEQUENCE_MEANS = (
    "rollout_corr/training_ppl",
    "rollout_corr/rollout_ppl",
    "rollout_corr/log_ppl_diff",
    "rollout_corr/log_ppl_abs_diff",
    "rollout_corr/ppl_ratio",
    "rollout_corr/chi2_seq",
    "rollout_corr/rollout_rs_seq_masked_fraction",
)
_MAXIMA = ("rollout_corr/log_ppl_diff_max", "rollout_corr/rollout_is_max")
_MINIMA = ("rollout_corr/log_ppl_diff_min", "rollout_corr/rollout_is_min")

NUM_SUMS = len(_TOKEN_MEANS) + len(_SEQUENCE_MEANS) + 2
"""Length of `MismatchSums.sums`."""
NUM_MAXIMA = len(_MAXIMA) + len(_MINIMA)
"""Length of `MismatchSums.maxima`."""


@dataclass(slots=True, frozen=True)
class MismatchSums:
    """Sums and maxima over one or more micro-batches, from which the metrics follow."""

    sums: Tensor
    """[NUM_SUMS] float32, combined by addition: sums over tokens, sums over sequences, both counts."""
    maxima: Tensor
    """[NUM_MAXIMA] float32, combined by maximum: maxima, then negated minima."""


def mismatch_sums(
    trained: Tensor, rollout: Tensor, ids: Tensor, correction: Correction, settings: RolloutCorrection
) -> MismatchSums:
    """Compute the contribution of one micro-batch.

    Args:
        trained: [T] float32, the actor's log-probs of the sampled tokens.
        rollout: [T] float32, the engine's.
        ids: [T] int64, from `rl.algorithms.aggregation.sequence_ids`.
        correction: Computed from the same log-probs.
        settings: `rl_config.rollout_correction`.
    """
    is_loss, per_sequence, d = _loss_tokens(trained - rollout, ids)
    gap = -sequence_mean(d, ids)
    weights, rejected = correction.weights, 1.0 - correction.is_kept
    high = settings.rollout_is_threshold
    low = settings.rollout_is_threshold_lower or 1.0 / high
    # Sum x - 1 instead of x where x is near 1: float32 would round the differences away.
    tokens = [-d, torch.expm1(d) - d, torch.expm1(2 * d), weights - 1.0, (weights - 1.0).square()]
    tokens += [(correction.ratios > high).float(), (correction.ratios < low).float(), rejected]
    whole = bound_log_ratio(sequence_sum(d, ids))
    sequences = [(-sequence_mean(trained, ids)).exp(), (-sequence_mean(rollout, ids)).exp(), gap, gap.abs()]
    sequences += [gap.exp(), torch.expm1(2 * whole), rejected]
    sums = torch.cat(
        [
            (torch.stack(tokens) * is_loss).sum(1),
            (torch.stack(sequences) * per_sequence).sum(1),
            torch.stack([is_loss.sum(), per_sequence.sum()]),
        ]
    )
    extremes = torch.stack([gap, weights, -gap, -weights])
    return MismatchSums(sums, torch.where(ids >= 0, extremes, -torch.inf).amax(1))


def mismatch_metrics(total: MismatchSums, settings: RolloutCorrection) -> dict[str, float]:
    """Turn the sums of a whole mini-batch into metrics.

    With d = log(trained / rollout) at each loss token. Means over tokens: kl = mean(-d); k3_kl = mean(exp(d) - 1 - d);
    chi2_token = mean(exp(2 d)) - 1. Means over sequences: chi2_seq, the same with the sum of d over the sequence; ppl =
    exp(-mean log-prob of the sequence); log_ppl_diff = log(training_ppl / rollout_ppl); ppl_ratio = exp(log_ppl_diff).
    For the weights w: rollout_is_eff_sample_size = mean(w)² / mean(w²).

    Args:
        total: Over all micro-batches and ranks.
        settings: Decides whether weights and rejections have metrics.

    Returns:
        `rollout_corr/*`; empty without loss tokens.
    """
    *sums, num_tokens, num_sequences = total.sums.tolist()
    if not num_tokens:
        return {}
    num = len(_TOKEN_MEANS)
    metrics = {name: value / num_tokens for name, value in zip(_TOKEN_MEANS, sums[:num], strict=True)}
    metrics |= {name: value / num_sequences for name, value in zip(_SEQUENCE_MEANS, sums[num:], strict=True)}
    maxima = total.maxima.tolist()
    metrics |= dict(zip(_MAXIMA, maxima[: len(_MAXIMA)], strict=True))
    metrics |= {name: -value for name, value in zip(_MINIMA, maxima[len(_MAXIMA) :], strict=True)}
    _finish_weights(metrics)
    unused = [] if settings.rollout_is else ["rollout_corr/rollout_is_"]
    unused += [] if settings.rollout_rs else ["rollout_corr/rollout_rs_"]
    return {name: value for name, value in metrics.items() if not name.startswith(tuple(unused))}


def _finish_weights(metrics: dict[str, float]) -> None:
    """Replace the means of w - 1 and (w - 1)² by mean, standard deviation and effective sample size of w."""
    excess, square = metrics["rollout_corr/rollout_is_mean"], metrics["rollout_corr/rollout_is_std"]
    variance = max(square - excess**2, 0.0)
    mean = 1.0 + excess
    metrics["rollout_corr/rollout_is_mean"] = mean
    metrics["rollout_corr/rollout_is_std"] = math.sqrt(variance)
    second_moment = variance + mean**2
    metrics["rollout_corr/rollout_is_eff_sample_size"] = mean**2 / second_moment if second_moment else 0.0


def _loss_tokens(log_ratios: Tensor, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return 1, 1 / number of loss tokens of the sequence, and the bounded log-ratio; all 0 outside loss tokens."""
    is_loss = (ids >= 0).float()
    per_sequence = is_loss / sequence_sum(is_loss, ids).clamp(min=1.0)
    return is_loss, per_sequence, bound_log_ratio(log_ratios) * is_loss
