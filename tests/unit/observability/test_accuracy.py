"""mean@k, best@n, maj@n and their intervals, against numbers by hand and an enumeration of all subsets."""

from __future__ import annotations

import random
from collections import Counter
from itertools import combinations
from statistics import mean

import pytest

from rl.observability.accuracy import best_at, estimate_mean, majority_at, sample_numbers, wilson_interval


def test_best_at_of_one_correct_sample_in_four() -> None:
    # pass@n = 1 - C(3, n) / C(4, n): 1 - 3/4, 1 - 3/6, 1 - 1/4, 1
    assert [best_at(n, [0, 1, 0, 0]) for n in (1, 2, 3, 4)] == pytest.approx([0.25, 0.5, 0.75, 1.0])


def test_best_at_of_values_that_are_not_binary() -> None:
    # the best of two of 1, 2, 3: 2, 3, 3
    assert best_at(2, [3, 1, 2]) == pytest.approx(8 / 3)


def test_majority_at_outvotes_a_correct_minority() -> None:
    # pairs: two ties of right and wrong give 1/2 each, the pair of two wrong ones gives 0; all three: wrong
    answers, values = ["4", "5", "5"], [1.0, 0.0, 0.0]
    assert [majority_at(n, answers, values) for n in (1, 2, 3)] == pytest.approx([1 / 3, 1 / 3, 0.0])


def test_majority_at_wins_where_wrong_answers_differ() -> None:
    answers, values = ["4", "4", "5", "6"], [1.0, 1.0, 0.0, 0.0]
    # triples: {4,4,5}, {4,4,6} right; {4,5,6} twice a tie of three
    assert majority_at(3, answers, values) == pytest.approx((1 + 1 + 1 / 3 + 1 / 3) / 4)
    assert majority_at(4, answers, values) == 1.0


@pytest.mark.parametrize("seed", range(40))
def test_estimators_equal_the_enumeration_of_all_subsets(seed: int) -> None:
    dice = random.Random(seed)
    num_samples = dice.randint(1, 7)
    answers = [dice.choice("abcd") for _ in range(num_samples)]
    values = [float(answer == "a") if dice.random() < 0.8 else 0.5 for answer in answers]
    for n in range(1, num_samples + 1):
        subsets = list(combinations(range(num_samples), n))
        assert best_at(n, values) == pytest.approx(mean(max(values[i] for i in subset) for subset in subsets))
        won = []
        for subset in subsets:
            votes = Counter(answers[i] for i in subset)
            winners = [answer for answer, count in votes.items() if count == max(votes.values())]
            won.append(mean(mean(v for a, v in zip(answers, values, strict=True) if a == w) for w in winners))
        assert majority_at(n, answers, values) == pytest.approx(mean(won))


def test_estimators_do_not_depend_on_the_order_of_samples() -> None:
    assert majority_at(2, ["a", "b", "b"], [1, 0, 0]) == pytest.approx(majority_at(2, ["b", "a", "b"], [0, 1, 0]))
    assert best_at(2, [0, 0, 1]) == best_at(2, [1, 0, 0])


@pytest.mark.parametrize("num", [0, 3])
def test_estimators_refuse_more_samples_than_there_are(num: int) -> None:
    with pytest.raises(ValueError, match=f"must be from 1 to the 2 samples, got {num}"):
        best_at(num, [0, 1])
    with pytest.raises(ValueError, match=f"must be from 1 to the 2 samples, got {num}"):
        majority_at(num, ["a", "b"], [0, 1])


def test_sample_numbers_are_powers_of_two_and_k() -> None:
    assert [sample_numbers(k) for k in (1, 2, 6, 8)] == [[], [2], [2, 4, 6], [2, 4, 8]]
    assert sample_numbers(1000)[-2:] == [64, 1000]


def test_majority_at_of_many_different_answers_is_their_mean() -> None:
    answers = [str(i) for i in range(64)]
    values = [1.0] * 16 + [0.0] * 48
    assert majority_at(32, answers, values) == pytest.approx(0.25)


def test_estimate_mean_of_single_samples_is_wilsons() -> None:
    found = estimate_mean([1.0] * 5 + [0.0] * 5)
    assert found.value == 0.5
    # z² = 3.8415: middle 0.5 + 0.19207 = 0.69207; half 1.96 sqrt(0.025 + 0.0096) = 0.36457; denominator 1.38415
    assert (found.low, found.high) == pytest.approx((0.23659, 0.76341), abs=1e-4)


def test_estimate_mean_counts_questions_that_agree_more_often() -> None:
    # means 0.25 and 0.75: s² = 1/16, p(1 - p) = 1/4, so ten questions count as 1 + 9 * 4; the samples allow eighty
    found = estimate_mean([0.25, 0.75] * 5, draws=8)
    assert (found.low, found.high) == pytest.approx(wilson_interval(0.5, 37))


def test_estimate_mean_never_counts_more_than_the_samples() -> None:
    found = estimate_mean([0.5] * 10, draws=2)
    assert (found.low, found.high) == pytest.approx(wilson_interval(0.5, 20))


def test_estimate_mean_of_one_question_counts_one() -> None:
    found = estimate_mean([0.5], draws=8)
    assert (found.low, found.high) == pytest.approx(wilson_interval(0.5, 1))


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_estimate_mean_at_a_bound_counts_questions(value: float) -> None:
    found = estimate_mean([value] * 10, draws=8)
    assert (found.value, found.low, found.high) == pytest.approx((value, *wilson_interval(value, 10)))


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_wilson_interval_mirrors_and_stays_within_bounds(share: float) -> None:
    low, high = wilson_interval(share, 20)
    assert 0.0 <= low <= share <= high <= 1.0
    assert wilson_interval(1 - share, 20) == pytest.approx((1 - high, 1 - low))
