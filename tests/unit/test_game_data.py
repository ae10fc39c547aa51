"""The guessing game's data: small versions of its files, and the players of its demonstrations."""

from __future__ import annotations

from pathlib import Path

import pytest

from examples.environment.game import GuessTheNumber
from examples.environment.make_data import WIDTH, demonstrate, make_data, make_row
from rl.data.prompts import load_prompts


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("game")
    make_data(output, num_train=60, num_eval=30, num_demonstrations=12, seed=1)
    return output


def test_evaluation_ranges_occur_in_no_other_file(folder: Path) -> None:
    lows = {name: {p.extra["low"] for p in load_prompts(folder / f"{name}.parquet")} for name in ("train", "eval")}
    assert lows["train"].isdisjoint(lows["eval"])
    (prompt, *_) = load_prompts(folder / "eval.parquet")
    assert prompt.extra["low"] <= int(prompt.ground_truth) <= prompt.extra["high"]
    assert len(load_prompts(folder / "demonstrations.parquet")) == 12


def test_a_player_who_halves_finds_15_of_16_numbers() -> None:
    games = [demonstrate(make_row(40, 40 + i), halves=True)["messages"] for i in range(WIDTH)]
    assert games[7] == [
        {"role": "system", "content": "Find my number. Say one number at a time."},
        {"role": "user", "content": "My number is from 40 to 55."},
        {"role": "assistant", "content": "47"},
    ]
    found = [messages[-1]["content"] == str(40 + i) for i, messages in enumerate(games)]
    assert sum(found) == 15


def test_a_player_who_counts_says_the_lowest_numbers() -> None:
    messages = demonstrate(make_row(40, 47), halves=False)["messages"]
    assert [m["content"] for m in messages if m["role"] == "assistant"] == ["40", "41", "42", "43"]


def test_the_game_rewards_the_turn_that_finds_the_number() -> None:
    game = GuessTheNumber(max_guesses=3)
    assert game.reset(low=1, high=8, number=5) == "My number is from 1 to 8."
    assert [game.step(text) for text in ("4", "five", "5")] == [
        ("Higher.", 0.0, False),
        ("Say a number.", 0.0, False),
        ("Right.", 1.0, True),
    ]
