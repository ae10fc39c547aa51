"""Two evaluations compared question by question."""

from __future__ import annotations

from typing import Any

import pytest

from rl.errors import DataError
from rl.observability.paired import paired_comparison, sign_test


def records(*questions: str, text: str = "2+2?", name: str = "eval") -> list[dict[str, Any]]:
    """Records of questions, each a text with a digit per sample: 1 right, 0 wrong, x without a score."""
    return [
        {
            "id": f"{name}-{number}/{index}",
            "messages": [{"role": "user", "content": text}],
            "ground_truth": "4",
            "rewards": {} if sample == "x" else {"right": float(sample)},
            "reward_error": None,
            "score": None if sample == "x" else float(sample),
        }
        for number, samples in enumerate(questions, start=1)
        for index, sample in enumerate(samples)
    ]


def test_paired_comparison_of_ten_questions_by_hand() -> None:
    # 4 questions right in both, 1 lost, 3 gained, 2 wrong in both
    before = records(*"1111", *"1", *"000", *"00")
    after = records(*"1111", *"0", *"111", *"00")
    found = paired_comparison(before, after)
    assert (found.num_questions, found.num_samples) == (10, (1, 1))
    assert (found.first.value, found.second.value) == (0.5, 0.7)
    # Wilson: 0.5 in 0.23659..0.76341, 0.7 in 0.39678..0.89221. Covariance 0.05 - 1/20 = 0, so r = 0.
    # 0.2 - sqrt(0.30322² + 0.26341²) = -0.20166; 0.2 + sqrt(0.19221² + 0.26341²) = 0.52608
    assert found.difference.value == pytest.approx(0.2)
    assert (found.difference.low, found.difference.high) == pytest.approx((-0.20166, 0.52608), abs=1e-4)
    assert found.p_value == 0.625  # 2 (1 + 4) / 2⁴
    assert [change.question for change in found.gained] == ["eval-6", "eval-7", "eval-8"]
    assert [(c.question, c.before, c.after) for c in found.lost] == [("eval-5", 1.0, 0.0)]


def test_paired_comparison_is_narrower_where_models_agree() -> None:
    # 9 right in both, 1 lost, 3 gained, 7 wrong in both: covariance 0.15 - 1/40 = 0.125, r = 0.125 / sqrt(0.25 * 0.24)
    found = paired_comparison(records("1", *"1" * 9, *"0" * 10), records("0", *"1" * 9, *"1" * 3, *"0" * 7))
    assert found.difference.value == pytest.approx(0.1)
    # r = 0.51031; 0.6 in 0.38658..0.78119, 0.5 in 0.29930..0.70070
    # 0.1 - sqrt(0.21342² - 2 r 0.21342 * 0.20070 + 0.20070²) = -0.10521; upwards 0.18119 and 0.20070: 0.28973
    assert (found.difference.low, found.difference.high) == pytest.approx((-0.10521, 0.28973), abs=1e-5)


def test_paired_comparison_mirrors() -> None:
    a, b = records("11", "10", "00", "01"), records("10", "11", "01", "00")
    forth, back = paired_comparison(a, b), paired_comparison(b, a)
    assert forth.difference.low == pytest.approx(-back.difference.high)
    assert forth.p_value == back.p_value
    assert forth.gained == [type(c)(c.question, c.after, c.before) for c in back.lost]


def test_paired_comparison_of_equal_evaluations_is_no_proof_of_equality() -> None:
    same = records(*"1" * 50, *"0" * 50)
    found = paired_comparison(same, same)
    assert (found.difference.value, found.p_value, found.gained, found.lost) == (0.0, 1.0, [], [])
    assert -0.05 < found.difference.low < -0.01
    assert found.difference.high == pytest.approx(-found.difference.low)


def test_paired_comparison_of_several_samples_changes_sides_at_a_half() -> None:
    found = paired_comparison(records("1100", "1110", "0000"), records("1110", "1000", "1100"))
    assert [(c.question, c.before, c.after) for c in found.gained] == [("eval-1", 0.5, 0.75)]
    assert [(c.question, c.before, c.after) for c in found.lost] == [("eval-2", 0.75, 0.25)]
    assert found.p_value == 1.0  # two up, one down


def test_paired_comparison_counts_what_has_no_score_as_wrong() -> None:
    found = paired_comparison(records("1", "x"), records("x", "1"))
    assert found.num_unscored == (1, 1)
    assert (found.first.value, found.second.value) == (0.5, 0.5)


def test_paired_comparison_leaves_out_what_only_one_has() -> None:
    found = paired_comparison(records(*"01x1x"), records(*"110"))
    assert (found.num_questions, found.num_left_out, found.num_unscored) == (3, 2, (1, 0))
    assert [change.question for change in found.gained] == ["eval-1"]
    assert (found.first.value, found.second.value) == (pytest.approx(1 / 3), pytest.approx(2 / 3))
    assert paired_comparison(records(*"110"), records(*"01x1x")).num_left_out == 2
    assert paired_comparison(records(*"110"), records(*"110")).num_left_out == 0


def test_paired_comparison_refuses_other_questions() -> None:
    text = r"got 2 and 2 with 1 in common; only one has eval-1, eval-3\. Evaluate both models with the same eval_data"
    with pytest.raises(DataError, match=text):
        paired_comparison(records(*"110")[:2], records(*"110")[1:])
    with pytest.raises(DataError, match=r"got 1 and 1 with 0 in common; only one has eval-1, math-1\."):
        paired_comparison(records("1"), records("1", name="math"))
    with pytest.raises(DataError, match=r"got 2 equal ids, of which 2 have another text or ground truth, first eval-1"):
        paired_comparison(records(*"11"), records(*"11", text="3+1?"))
    with pytest.raises(DataError, match=r"got 0 and 0 with 0 in common\. "):
        paired_comparison([], [])


def test_sign_test_of_eight_to_two() -> None:
    assert sign_test(8, 2) == sign_test(2, 8) == 2 * (1 + 10 + 45) / 1024
    assert sign_test(0, 0) == 1.0
