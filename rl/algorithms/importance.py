"""Off-policy correction: weights for what the engine sampled and the actor would have sampled with another probability.

Three policies meet in an update. *rollout* is the engine's and has sampled; *old* is the actor's at the start of the
batch; *current* is the actor's now. The policy loss bounds current / old. What is left is old / rollout: in bfloat16
two implementations of the same weights differ, and a group carried over from an earlier step was sampled by older
weights. Here old / rollout becomes a weight on each token's loss, or a reason to leave a whole sequence out.

Source: truncated importance sampling, https://fengyao.notion.site/off-policy-rl; its levels, rejection and metrics,
https://richardli.xyz/rl-collapse, under the names that verl gives them.
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
from rl.config.correction import ImportanceLevel, RolloutCorrection

MAX_LOG_RATIO = 20.0
"""Exponents are bounded to this, so that exp cannot overflow."""


@dataclass(slots=True, frozen=True)
class Correction:
    """What becomes of each token's loss. No gradient flows through any of it."""

    weights: Tensor
    """[T] float32, factor of the policy loss."""
    is_kept: Tensor
    """[T] float32, 0 on the tokens of rejected sequences, which take no part in any loss term."""
    ratios: Tensor
    """[T] float32, what `weights` were before they were bounded."""


def correct(log_ratios: Tensor, ids: Tensor, settings: RolloutCorrection) -> Correction:
    """Weigh tokens and reject sequences as configured.

    Args:
        log_ratios: [T] float32, log(old / rollout) of the sampled tokens, without gradient.
        ids: [T] int64, as `rl.algorithms.aggregation.sequence_ids` gives them: -1 off the loss tokens.
        settings: `rl_config.rollout_correction`.

    Returns:
        Weights of 1 and everything kept where nothing is configured.
    """
    ones = torch.ones_like(log_ratios)
    level = settings.rollout_is
    ratios = ones if level is None else importance_ratios(log_ratios, ids, level)
    weights = bound_weights(ratios, settings.rollout_is_threshold, settings.rollout_is_threshold_lower)
    is_kept = ones
    if settings.rollout_rs is not None:
        assert settings.rollout_rs_threshold is not None, "validation asks for it"
        upper, lower = settings.rollout_rs_threshold, settings.rollout_rs_threshold_lower
        is_kept = keep_sequences(log_ratios, ids, settings.rollout_rs, upper=upper, lower=lower)
    return Correction(ones if level is None else weights, is_kept, ratios)


def importance_ratios(log_ratios: Tensor, ids: Tensor, level: ImportanceLevel) -> Tensor:
    """How much likelier the old policy finds what was sampled.

    token: r_t = exp(d_t), with d_t = `log_ratios`; biased, since the tokens before t are taken as they came, but of low
    variance. sequence: r = exp(sum of d_t over the sequence), on each of its tokens; unbiased, and the variance grows
    exponentially with the length.

    Args:
        log_ratios: [T] float32.
        ids: [T] int64, sequences.
        level: `token` or `sequence`.

    Returns:
        [T] float32, from exp(-20) to exp(20).
    """
    exponents = log_ratios if level is ImportanceLevel.TOKEN else sequence_sum(log_ratios, ids)
    return exponents.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()


def bound_weights(ratios: Tensor, upper: float, lower: float | None = None) -> Tensor:
    """Truncate ratios, or drop those outside a band.

    Without `lower`: min(r, upper), truncated importance sampling. With it: r where lower <= r <= upper, else 0, IcePop.

    Example: 0.4, 1.5, 3 with upper 2 give 0.4, 1.5, 2; with lower 0.5 too, 0, 1.5, 0.

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
    """Reject the sequences whose divergence is out of bounds.

    With d = `log_ratios`, each token has k1 = d, k2 = d² / 2, k3 = exp(d) - 1 - d; `seq_sum_*`, `seq_mean_*` and
    `seq_max_*` take their sum, mean and maximum over the loss tokens of a sequence. k2 and k3 must be at most `upper`.
    exp of a k1 statistic (the ratio of the whole sequence for `seq_sum_k1`, the geometric mean of its tokens' ratios
    for `seq_mean_k1`) must be from `lower` to `upper`.

    Args:
        log_ratios: [T] float32.
        ids: [T] int64, sequences.
        statistic: A key of `REJECTIONS`.
        upper: Above 0.
        lower: Of a k1 statistic; None: 1 / `upper`.

    Returns:
        [T] float32, 1 on the tokens of kept sequences and off the loss tokens, else 0.
    """
    values = REJECTIONS[statistic](log_ratios.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO), ids)
    if is_ratio_statistic(statistic):
        low = 1.0 / upper if lower is None else lower
        is_kept = (values >= math.log(low)) & (values <= math.log(upper))
    else:
        is_kept = values <= upper
    return torch.where(ids < 0, 1.0, is_kept.float())


def is_ratio_statistic(statistic: str) -> bool:
    """Whether a rejection bounds a ratio from both sides, as k1 does, and not a divergence from above."""
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
    if (reduction, divergence) != ("max", "k1")  # one side of a ratio says nothing of the other
}
"""Values of `rl_config.rollout_correction.rollout_rs`."""
