from __future__ import annotations

from typing import Any

import pytest

from rl.errors import RewardError
from rl.rewards.registry import load_rewards
from rl.rewards.search import normalize_text, search_em, search_f1, word_f1
from rl.types import Prompt, StopReason, ToolResult, ToolStatus, Trajectory, Turn


def trajectory(answer: str, truth: str, *results: str, **extra: Any) -> Trajectory:
    prompt = Prompt("test-1", [{"role": "user", "content": "Who?"}], truth, "countries", extra)
    searches = [Turn("", 1, results=[ToolResult("search", text, ToolStatus.OK)]) for text in results]
    return Trajectory(prompt, 0, [], [*searches, Turn(answer, 3)], StopReason.FINISHED)


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("The  Beatles!", "beatles"),
        ("an A-team", "ateam"),
        ("652,230", "652230"),
        (".af", "af"),
        ("Theatre", "theatre"),
    ],
)
def test_normalize_text_is_squads(text: str, normal: str) -> None:
    assert normalize_text(text) == normal


@pytest.mark.parametrize(
    ("answer", "truth", "f1"),
    [
        ("the Cold War", "Cold war", 1.0),
        ("New York City", "New York", 0.8),  # P 2/3, R 1: 2 * 2/3 / (5/3)
        ("a b b", "b b b c", 4 / 6),  # 'a' is an article; P 2/2, R 2/4
        ("Rome", "Paris", 0.0),
        ("", "Paris", 0.0),
        ("the", "a", 0.0),
    ],
)
def test_word_f1_is_the_harmonic_mean(answer: str, truth: str, f1: float) -> None:
    assert word_f1(answer, truth) == pytest.approx(f1)
    assert word_f1(truth, answer) == pytest.approx(f1)


@pytest.mark.parametrize(
    ("answer", "truth", "em", "f1"),
    [
        (r"It is \boxed{The Euro}.", "euro", 1.0, 1.0),
        (r"\boxed{New York City}", "New York", 0.0, 0.8),
        (r"\boxed{652,230}<|im_end|>", "652230", 1.0, 1.0),
        ("<answer> Kabul </answer>", "Kabul", 1.0, 1.0),
        (r"<answer>Rome</answer> \boxed{Kabul}", "Kabul", 1.0, 1.0),
        (r"\boxed{UK}", '["United Kingdom", "UK"]', 1.0, 1.0),
        (r"\boxed{UK}", '{"target": ["United Kingdom", "UK"]}', 1.0, 1.0),
        (r"\boxed{93}", "93", 1.0, 1.0),
        ("Kabul", "Kabul", 0.0, 0.0),
        (r"\boxed{the}", "a", 0.0, 0.0),
        (r"\boxed{}", "", 0.0, 0.0),
        (r"\boxed{Lisbon}", '{"target": "Lisbon"}', 1.0, 1.0),
        (r"\boxed{1999}", "[1999, 2000]", 1.0, 1.0),
        ("<answer>Rome</answer> or <answer>Kabul</answer>", "Kabul", 1.0, 1.0),
        ("<answer>Rome</answer> or <answer>Kabul", "Rome", 1.0, 1.0),
        # one form of Unicode on both sides
        ("\\boxed{Cafe\u0301}", "Café", 1.0, 1.0),
        (r"\boxed{Côte d’Ivoire}", "Côte d'Ivoire", 1.0, 1.0),
        (r"\boxed{1914–1918}", "1914-1918", 1.0, 1.0),
        (r"\boxed{“Ｋａｂｕｌ”。}", "Kabul", 1.0, 1.0),
        ("\\boxed{New\u00a0York}", "New York", 1.0, 1.0),
        (r"\boxed{STRASSE}", "Straße", 1.0, 1.0),
        ("\\boxed{Ka\u200bbul}", "Kabul", 1.0, 1.0),
    ],
)
def test_search_rewards_compare_with_every_accepted_answer(answer: str, truth: str, em: float, f1: float) -> None:
    row = trajectory(answer, truth)
    assert search_em(row) == {"score": em, "f1": pytest.approx(f1)}
    assert search_f1(row) == {"score": pytest.approx(f1), "em": em}


def test_search_rewards_measure_which_gold_documents_were_shown() -> None:
    first = "Doc 1 (Title: Kabul)\nKabul is the capital of Afghanistan.\n\nDoc 2 (Title: Rome (city))\nDoc 3 (Title: x"
    gold = ["Kabul", "Afghanistan"]
    assert search_em(trajectory("", "93", first, gold_titles=gold))["recall"] == 0.5
    assert search_em(trajectory("", "93", first, "Doc 1 (Title: Afghanistan)\n", gold_titles=gold))["recall"] == 1.0
    assert search_f1(trajectory("", "93", first, gold_titles=["Rome (city)"]))["recall"] == 1.0
    assert search_em(trajectory("", "93", gold_titles=gold))["recall"] == 0.0
    assert search_em(trajectory("", "93", gold_titles=[]))["recall"] == 1.0
    assert search_em(trajectory("", "93", first, gold_titles="Kabul"))["recall"] == 1.0
    with pytest.raises(RewardError, match="gold_titles must be a list of texts, got 3"):
        search_em(trajectory("", "93", first, gold_titles=3))
    assert "recall" not in search_em(trajectory("", "93", first))


async def test_search_rewards_are_registered() -> None:
    rewards = load_rewards(["search_em", "search_f1"], [1.0, 0.5])
    row = trajectory(r"\boxed{New York City}", "New York", gold_titles=["New York"])
    row.take_scores(await rewards.score(row))
    assert row.score == pytest.approx(0.4)
    assert row.rewards["search_em/recall"] == 0.0
    assert [reward.isolate for reward in rewards.rewards] == [False, False]
