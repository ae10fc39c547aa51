"""Two evaluations of the same questions, compared question by question."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rl.errors import DataError
from rl.observability.accuracy import Estimate, estimate_mean, is_correct

_SHOWN = 3
"""Number of questions named in an error."""


@dataclass(slots=True, frozen=True)
class Change:
    """A question that changed sides."""

    question: str
    """Id of the prompt; its trajectories are `<question>/0`, `<question>/1`, ..."""
    before: float
    """Share of correct samples in the first evaluation."""
    after: float
    """The same in the second."""


@dataclass(slots=True, frozen=True)
class PairedComparison:
    """The second evaluation beside the first, on the same questions."""

    num_questions: int
    num_samples: tuple[int, int]
    """Samples of a question in each; the k of mean@k."""
    first: Estimate
    """mean@k of the first evaluation."""
    second: Estimate
    difference: Estimate
    """Second minus first, with its 95 % interval for pairs."""
    p_value: float
    """Exact sign test over the questions whose means differ; with one sample this is McNemar's exact test."""
    gained: list[Change]
    """Questions of which at most half of the samples were correct, and then more than half."""
    lost: list[Change]
    """The reverse."""
    num_unscored: tuple[int, int]
    """Trajectories without a score in each; they count as wrong."""
    num_left_out: int
    """Questions that only one of the evaluations has."""


def paired_comparison(
    records_a: Sequence[Mapping[str, Any]], records_b: Sequence[Mapping[str, Any]]
) -> PairedComparison:
    """Compare two evaluations question by question.

    The interval of the difference is Newcombe's for paired shares (method 10), from the intervals of both means and the
    correlation r between them: d - sqrt(x² - 2 r x y + y²) with x = mean_b - low_b and y = high_a - mean_a, and
    likewise upwards. With several samples, the intervals are those of `estimate_mean`.

    Args:
        records_a: Records of the first evaluation (`rl.observability.trajectories.read_records`).
        records_b: Those of the second.

    Raises:
        DataError: As `common_questions`.

    Source: Newcombe 1998, doi:10.1002/(SICI)1097-0258(19981130)17:22<2635::AID-SIM954>3.0.CO;2-C; Zou and Donner 2008,
    doi:10.1002/sim.3095, for intervals other than Wilson's.
    """
    a, b = common_questions(records_a, records_b)
    ids = sorted(a, key=_natural)
    means_a, means_b = ([_share(side[name]) for name in ids] for side in (a, b))
    num_samples = (_samples(a), _samples(b))
    first, second = estimate_mean(means_a, num_samples[0]), estimate_mean(means_b, num_samples[1])
    changes = [Change(*one) for one in zip(ids, means_a, means_b, strict=True)]
    return PairedComparison(
        num_questions=len(ids),
        num_samples=num_samples,
        first=first,
        second=second,
        difference=_difference(first, second, _correlation(means_a, means_b, min(num_samples))),
        p_value=sign_test(sum(c.after > c.before for c in changes), sum(c.after < c.before for c in changes)),
        gained=[c for c in changes if c.before <= 0.5 < c.after],
        lost=[c for c in changes if c.after <= 0.5 < c.before],
        num_unscored=(_unscored(a), _unscored(b)),
        num_left_out=max(len(_by_question(records_a)), len(_by_question(records_b))) - len(ids),
    )


def common_questions(
    records_a: Sequence[Mapping[str, Any]], records_b: Sequence[Mapping[str, Any]]
) -> tuple[dict[str, list[Mapping[str, Any]]], dict[str, list[Mapping[str, Any]]]]:
    """Group the records of two evaluations by question, without the questions that only one has.

    One may have more than the other: an evaluation with an engine drops prompts that are too long for it, one of a
    server cannot.

    Raises:
        DataError: Each has questions that the other lacks, they have none in common, or a question has another text or
            ground truth; the message names how many.
    """
    a, b = _by_question(records_a), _by_question(records_b)
    common = sorted(a.keys() & b.keys(), key=_natural)
    if not common or len(common) < min(len(a), len(b)):
        alone = [*sorted(a.keys() - b.keys(), key=_natural), *sorted(b.keys() - a.keys(), key=_natural)]
        example = f"; only one has {', '.join(alone[:_SHOWN])}" if alone else ""
        raise DataError(
            f"paired comparison: both evaluations must have the same questions, got {len(a)} and {len(b)} with "
            f"{len(common)} in common{example}. Evaluate both models with the same eval_data_path."
        )
    other = [name for name in common if _content(a[name][0]) != _content(b[name][0])]
    if other:
        raise DataError(
            f"paired comparison: both evaluations must have the same questions, got {len(common)} equal ids, of which "
            f"{len(other)} have another text or ground truth, first {', '.join(other[:_SHOWN])}. Evaluate both models "
            "with the same eval_data_path."
        )
    return {name: a[name] for name in common}, {name: b[name] for name in common}


def sign_test(num_up: int, num_down: int) -> float:
    """Two-sided exact sign test: 2 P(X <= min(up, down)) for X ~ Binomial(up + down, 1/2), at most 1.

    Source: McNemar 1947, doi:10.1007/BF02295996, where each question is right or wrong.
    """
    num = num_up + num_down
    tail = sum(math.comb(num, i) for i in range(min(num_up, num_down) + 1))
    return min(1.0, float(2 * tail / 2**num))


def _difference(first: Estimate, second: Estimate, correlation: float) -> Estimate:
    value = second.value - first.value

    def reach(x: float, y: float) -> float:
        return math.sqrt(max(0.0, x * x - 2 * correlation * x * y + y * y))

    low = value - reach(second.value - second.low, first.high - first.value)
    high = value + reach(second.high - second.value, first.value - first.low)
    return Estimate(value, max(-1.0, low), min(1.0, high))


def _correlation(a: Sequence[float], b: Sequence[float], num_samples: int) -> float:
    """Correlation over questions; a positive covariance is lowered by 1 / 2nk, at most to 0 (method 10 has k = 1)."""
    num = len(a)
    mean_a, mean_b = math.fsum(a) / num, math.fsum(b) / num
    covariance = math.fsum((x - mean_a) * (y - mean_b) for x, y in zip(a, b, strict=True)) / num
    variances = [math.fsum((x - m) ** 2 for x in v) / num for v, m in ((a, mean_a), (b, mean_b))]
    if covariance > 0:
        covariance = max(0.0, covariance - 1 / (2 * num * num_samples))
    scale = math.sqrt(variances[0] * variances[1])
    return max(-1.0, covariance / scale) if scale > 0 else 0.0


def _by_question(records: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    found: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for record in records:
        found[record["id"].rpartition("/")[0]].append(record)
    return dict(found)


def _content(record: Mapping[str, Any]) -> tuple[Any, Any]:
    return record["messages"], record["ground_truth"]


def _share(records: Sequence[Mapping[str, Any]]) -> float:
    return sum(is_correct(r["rewards"], r["reward_error"]) for r in records) / len(records)


def _samples(side: Mapping[str, Sequence[Any]]) -> int:
    return max(map(len, side.values()))


def _unscored(side: Mapping[str, Sequence[Mapping[str, Any]]]) -> int:
    return sum(record["score"] is None for records in side.values() for record in records)


def _natural(name: str) -> tuple[str, int]:
    """Sort `train-9` before `train-10`."""
    stem, _, number = name.rpartition("-")
    return (stem, int(number)) if number.isdecimal() else (name, -1)
