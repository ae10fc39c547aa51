"""Off-policy correction: importance weights for the difference between the engine's policy and the actor's.

An update involves three policies: *rollout*, the engine's, which sampled the tokens; *old*, the actor's at the start
of the batch; *current*, the actor's now. The policy loss bounds current / old. The ratio old / rollout remains: two
implementations of the same weights differ in bfloat16, and older weights sampled the groups carried over from earlier
steps. This module turns old / rollout into a weight on each token's loss, or rejects a whole sequence because of it.

Source: truncated importance sampling, https://fengyao.notion.site/off-policy-rl; levels, rejection and metrics,
https://richardli.xyz/rl-collapse, with verl's names.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import product

import torch
from torch import Tensor

from rl.algorithms.aggregation import sequence_mean, sequence_sum
from rl.algorithms.token_loss import bound_log_ratio
from rl.config.correction import ImportanceLevel, RolloutCorrection


@dataclass(slots=True, frozen=True)
class Correction:
    """Weights and rejections of one micro-batch, without gradient."""

    weights: Tensor
    """[T] float32, factor on the policy loss."""
    is_kept: Tensor
    """[T] float32, 0 on the loss tokens of rejected sequences, which enter no loss term."""
    ratios: Tensor
    """[T] float32, `weights` before they were bounded."""


def correct(log_ratios: Tensor, ids: Tensor, settings: RolloutCorrection) -> Correction:
    """Weigh tokens and reject sequences as configured.

    Args:
        log_ratios: [T] float32, log(old / rollout) of the sampled tokens, without gradient.
        ids: [T] int64, from `rl.algorithms.aggregation.sequence_ids`: -1 outside the loss tokens.
        settings: `rl_config.rollout_correction`.

    Returns:
        The correction; without any configured, weights of 1 and no rejections.
    """
    ones = torch.ones_like(log_ratios)
    level = settings.rollout_is
    ratios = ones if level is None else importance_ratios(log_ratios, ids, level)
    weights = bound_weights(ratios, settings.rollout_is_threshold, settings.rollout_is_threshold_lower)
    is_kept = ones
    if settings.rollout_rs is not None:
        assert settings.rollout_rs_threshold is not None, "validation requires it"
        upper, lower = settings.rollout_rs_threshold, settings.rollout_rs_threshold_lower
        is_kept = keep_sequences(log_ratios, ids, settings.rollout_rs, upper=upper, lower=lower)
    return Correction(ones if level is None else weights, is_kept, ratios)


def importance_ratios(log_ratios: Tensor, ids: Tensor, level: ImportanceLevel) -> Tensor:
    """Compute the ratio old / rollout of each token or of its whole sequence.

    token: r_t = exp(d_t), with d_t = `log_ratios`; low variance, but biased, because it ignores the tokens before t.
    sequence: r = exp(sum of d_t over the sequence), on each of its tokens; unbiased, but the variance grows
    exponentially with the length.

    Args:
        log_ratios: [T] float32.
        ids: [T] int64, sequences.
        level: Per token or per sequence.

    Returns:
        [T] float32, from exp(-20) to exp(20).
    """
    exponents = log_ratios if level is ImportanceLevel.TOKEN else sequence_sum(log_ratios, ids)
    return bound_log_ratio(exponents).exp()


def bound_weights(ratios: Tensor, upper: float, lower: float | None = None) -> Tensor:
    """Truncate ratios, or zero those outside a band.

    Without `lower`: min(r, upper), truncated importance sampling. With it: r if lower <= r <= upper, else 0, IcePop.

    Example: 0.4, 1.5, 3 with upper 2 give 0.4, 1.5, 2; with lower 0.5 as well, 0, 1.5, 0.

    Args:
        ratios: [T] float32.
        upper: Above 0.
        lower: Above 0 and at most `upper`, or None.

    Returns:
        [T] float32.

    Source: https://fengyao.notion.site/off-policy-rl; IcePop, arXiv:2510.18855, section on the training-inference gap.
    """
    if lower is None:
        return ratios.clamp(max=upper)
    return torch.where((ratios >= lower) & (ratios <= upper), ratios, 0.0)


def keep_sequences(
    log_ratios: Tensor, ids: Tensor, statistic: str, *, upper: float, lower: float | None = None
) -> Tensor:
    """Reject sequences whose divergence is out of bounds.

    With d = `log_ratios`, each token has k1 = d, k2 = d² / 2, k3 = exp(d) - 1 - d. `seq_sum_*`, `seq_mean_*` and
    `seq_max_*` are their sum, mean and maximum over the loss tokens of a sequence. A k2 or k3 statistic must be at most
    `upper`. The exp of a k1 statistic must lie between `lower` and `upper`: for `seq_sum_k1` it is the ratio of the
    whole sequence, for `seq_mean_k1` the geometric mean of the token ratios.

    Args:
        log_ratios: [T] float32.
        ids: [T] int64, sequences.
        statistic: A key of `REJECTIONS`.
        upper: Above 0.
        lower: Lower bound for k1 statistics; None means 1 / `upper`.

    Returns:
        [T] float32, 0 on the loss tokens of rejected sequences, 1 elsewhere.
    """
    values = REJECTIONS[statistic](bound_log_ratio(log_ratios), ids)
    if is_ratio_statistic(statistic):
        low = 1.0 / upper if lower is None else lower
        is_kept = (values >= math.log(low)) & (values <= math.log(upper))
    else:
        is_kept = values <= upper
    return torch.where(ids < 0, 1.0, is_kept.float())


def is_ratio_statistic(statistic: str) -> bool:
    """Whether a statistic is a ratio with two bounds (k1) and not a divergence with an upper bound."""
    return statistic.endswith("_k1")


def _sequence_max(values: Tensor, ids: Tensor) -> Tensor:
    lowest = values.new_full((len(ids) + 1,), -torch.inf)
    return lowest.scatter_reduce(0, ids + 1, values, reduce="amax")[ids + 1]


_DIVERGENCES: dict[str, Callable[[Tensor], Tensor]] = {
    "k1": lambda d: d,
    "k2": lambda d: d.square() / 2,
    "k3": lambda d: torch.expm1(d) - d,
}
_REDUCTIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "sum": sequence_sum,
    "mean": sequence_mean,
    "max": _sequence_max,
}


def _statistic(log_ratios: Tensor, ids: Tensor, *, reduction: str, divergence: str) -> Tensor:
    return _REDUCTIONS[reduction](_DIVERGENCES[divergence](log_ratios), ids)


REJECTIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    f"seq_{reduction}_{divergence}": partial(_statistic, reduction=reduction, divergence=divergence)
    for reduction, divergence in product(_REDUCTIONS, _DIVERGENCES)
    if (reduction, divergence) != ("max", "k1")  # the largest ratio says nothing about the smallest
}
"""Values of `rl_config.rollout_correction.rollout_rs`."""
