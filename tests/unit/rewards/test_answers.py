import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rl.rewards.answers import boxed_answers, last_boxed, normalize_answer, voted_answer


@pytest.mark.parametrize(
    ("text", "answers"),
    [
        ("no box", []),
        (r"\boxed{42}", ["42"]),
        (r"so \boxed{\frac{1}{2}}, or \boxed { x^{2} }.", [r"\frac{1}{2}", "x^{2}"]),
        (r"\boxed{a\}b}", [r"a\}b"]),
        (r"\boxed{a \boxed{b}}", [r"a \boxed{b}"]),
        (r"\boxed{never closed", []),
        (r"\boxed{open \boxed{b}", ["b"]),
        (r"\fbox{7}", ["7"]),
        (r"\boxed{}", [""]),
        (r"{ \boxed{3} }", ["3"]),
        (r"} \boxed{3}", ["3"]),
        (r"\\boxed{3}", ["3"]),  # an escaped backslash, as JSON writes it
        (r"\boxed{1} \boxed{2 \boxed{3} {4}} \boxed{5}", ["1", r"2 \boxed{3} {4}", "5"]),
    ],
)
def test_boxed_answers_finds_complete_boxes(text, answers):
    assert boxed_answers(text) == answers


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from(["\\boxed{", "{", "}", "\\", "a"]), max_size=20).map("".join))
def test_boxed_answers_reads_any_text(text):
    assert all(answer in text for answer in boxed_answers(text))


def test_boxed_answers_stays_fast_if_no_box_closes():
    """Quadratic time would take minutes here."""
    assert boxed_answers("\\boxed{" * 50_000 + "}") == [""]


@pytest.mark.parametrize(
    ("text", "texts", "answer"),
    [
        (r"\boxed{3}, no, \boxed{1,000.00}", {}, "1000"),
        ("it is <answer> Paris </answer>.", {}, "paris"),
        ("first\n12.0", {}, "12"),
        ("", {}, ""),
        (r"\boxed{3}", {"first/answer": "B"}, "B"),
        (r"\boxed{3}", {"first/pred": "B"}, "B"),
        (r"\boxed{3}", {"second/answer": "B"}, "3"),
    ],
)
def test_voted_answer_is_the_rewards_own_or_the_marked_one(trajectory, text, texts, answer):
    scored = trajectory(text, "4")
    scored.rewards, scored.reward_texts = {"first": 0.0, "second": 1.0}, texts
    assert voted_answer(scored) == answer


def test_voted_answer_may_be_a_number(trajectory):
    scored = trajectory(r"\boxed{3}", "4")
    scored.rewards = {"first": 0.0, "first/answer": 7.0}
    assert voted_answer(scored) == "7"


def test_last_boxed_takes_the_last_box_of_the_last_turn_without_its_thoughts(trajectory):
    assert last_boxed(trajectory(r"\boxed{1} no, \boxed{2}<|im_end|>", "2")) == "2"
    assert last_boxed(trajectory(r"<think>\boxed{1}</think>It is \boxed{2}", "2")) == "2"
    assert last_boxed(trajectory(r"<think>\boxed{1}</think>done", "2")) is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (" $1,234.00$. ", "1234"),
        ("\\$5", "5"),
        ("'The answer'", "the answer"),
        (r"\text{ Tuesday }", "tuesday"),
        ("0.50", "0.5"),
        ("3.", "3"),
        ("100", "100"),
        ("+7", "7"),
        ("(1,2)", "(1,2)"),
        ("1,234,567", "1234567"),
        ("", ""),
    ],
)
def test_normalize_answer_unifies_spellings(text, expected):
    assert normalize_answer(text) == expected
