"""The estimators of an evaluation: mean@k, best@n and maj@n of a question, and 95 % intervals over questions."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

_Z_95 = 1.959963984540054
_CORRECT = 1.0 - 1e-6


@dataclass(slots=True, frozen=True)
class Estimate:
    """A mean over questions with its 95 % interval."""

    value: float
    low: float
    high: float


def is_correct(rewards: Mapping[str, float], reward_error: str | None) -> bool:
    """Whether the first reward of a trajectory is 1; False if there is none or a reward failed."""
    first = next(iter(rewards.values()), None)
    return first is not None and reward_error is None and first >= _CORRECT


def wilson_interval(share: float, num: float) -> tuple[float, float]:
    """95 % confidence interval of a share.

    (p + z²/2n ± z sqrt(p(1-p)/n + z²/4n²)) / (1 + z²/n) with z = 1.96.

    Args:
        share: The observed share, 0 to 1.
        num: Number of observations, above 0; an effective number may be a fraction.

    Returns:
        Lower and upper end.

    Source: Wilson 1927, doi:10.1080/01621459.1927.10502953.
    """
    z2 = _Z_95**2
    middle = share + z2 / (2 * num)
    half = _Z_95 * math.sqrt(share * (1 - share) / num + z2 / (4 * num**2))
    return max(0.0, (middle - half) / (1 + z2 / num)), min(1.0, (middle + half) / (1 + z2 / num))


def estimate_mean(values: Sequence[float], draws: int = 1) -> Estimate:
    """Mean over questions with Wilson's interval for the effective number of questions.

    n_eff = 1 + (n - 1) p(1 - p) / s² with s² = mean((v - p)²), at most n * draws. With one sample per question the
    values are 0 or 1, so n_eff is n and the interval is Wilson's for a share. Where p is 0 or 1, n_eff is n.

    Args:
        values: [n] one value per question, 0 to 1.
        draws: Independent draws behind each value: k for mean@k, k // n for best@n and maj@n.

    Source: Korn and Graubard 1998, Survey Methodology 24(2), for the effective sample size.
    """
    num = len(values)
    mean = min(1.0, max(0.0, math.fsum(values) / num))
    spread, most = mean * (1 - mean), float(num * draws)
    variance = math.fsum((value - mean) ** 2 for value in values) / num
    effective = float(num)
    if spread > 0 and num > 1:
        effective = min(most, 1 + (num - 1) * spread / variance) if variance > 0 else most
    return Estimate(mean, *wilson_interval(mean, effective))


def best_at(num: int, values: Sequence[float]) -> float:
    """Expected best of `num` samples drawn without replacement from the samples of a question.

    sum_i v_(i) C(i - 1, n - 1) / C(k, n) over the sorted values; for values 0 and 1 with c ones it is
    1 - C(k - c, n) / C(k, n), pass@n. Unbiased.

    Args:
        num: n, from 1 to k.
        values: [k] values of the samples.

    Raises:
        ValueError: There are fewer samples than `num`.

    Source: Chen et al. 2021, arXiv:2107.03374, for pass@k.
    """
    _check_num(num, len(values))
    ways = math.comb(len(values), num)
    return math.fsum(value * (math.comb(i, num - 1) / ways) for i, value in enumerate(sorted(values)))


def majority_at(num: int, answers: Sequence[str], values: Sequence[float]) -> float:
    """Expected value of the majority answer among `num` samples drawn without replacement.

    Exact, without random draws: a sum over the vote counts of all subsets. Tied answers share the win equally. An
    answer's value is the mean over the samples that gave it. Unbiased.

    Args:
        num: n, from 1 to k.
        answers: [k] answers of the samples; equal texts are one answer.
        values: [k] values of the samples, 1 where the answer is correct.

    Raises:
        ValueError: There are fewer samples than `num`.

    Source: Wang et al. 2022, arXiv:2203.11171, for the vote; verl's maj@n estimates the same by a bootstrap.
    """
    _check_num(num, len(values))
    votes: dict[str, list[float]] = defaultdict(list)
    for answer, value in zip(answers, values, strict=True):
        votes[answer].append(value)
    most = max(map(len, votes.values()))
    if num == len(values):
        winners = [math.fsum(given) / most for given in votes.values() if len(given) == most]
        return math.fsum(winners) / len(winners)
    won = sum(_value_of_winners(num, top, list(votes.values())) for top in range(1, min(num, most) + 1))
    return won / math.comb(len(values), num)


def sample_numbers(num_samples: int) -> list[int]:
    """The n of best@n and maj@n: powers of two up to 64 below k, and k itself; none with a single sample."""
    return [*(n for n in (2, 4, 8, 16, 32, 64) if n < num_samples), num_samples] if num_samples > 1 else []


def _value_of_winners(num: int, top: int, votes: Sequence[Sequence[float]]) -> float:
    """Sum over the subsets of `num` samples whose winners have exactly `top` votes of the winners' mean value.

    `ways[s, t]` counts the choices of s samples from the answers so far in which t answers have `top` votes and none
    has more; `sums[s, t]` adds up the values of those t answers over the same choices.
    """
    most_ties = num // top
    ways, sums = np.zeros((num + 1, most_ties + 1)), np.zeros((num + 1, most_ties + 1))
    ways[0, 0] = 1.0
    for given in votes:
        mean = math.fsum(given) / len(given)
        new_ways, new_sums = np.zeros_like(ways), np.zeros_like(sums)
        for count in range(min(len(given), top) + 1):
            is_tied = int(count == top)
            choices, before = math.comb(len(given), count), np.s_[: num + 1 - count, : most_ties + 1 - is_tied]
            new_ways[count:, is_tied:] += choices * ways[before]
            new_sums[count:, is_tied:] += choices * (sums[before] + is_tied * mean * ways[before])
        ways, sums = new_ways, new_sums
    return float((sums[num, 1:] / np.arange(1, most_ties + 1)).sum())


def _check_num(num: int, num_samples: int) -> None:
    if not 1 <= num <= num_samples:
        raise ValueError(f"n of best@n and maj@n: must be from 1 to the {num_samples} samples, got {num}.")
