"""The quickstart's data: small versions of its three files, made by its own script."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import reasoning_gym

from examples.quickstart.make_data import ALWAYS_CALLED, PROGRAMS, UNDEMONSTRATED, make_data
from rl.data.prompts import load_prompts
from rl.types import Prompt


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("quickstart")
    make_data(output, num_train=6, num_eval=3, num_demonstrations=12, seed=1)
    return output


@pytest.fixture(scope="module")
def demonstrations(folder: Path) -> list[Prompt]:
    return load_prompts(folder / "demonstrations.parquet")


def test_evaluation_questions_occur_nowhere_else(folder: Path, demonstrations: list[Prompt]) -> None:
    def questions(prompts: list[Prompt]) -> set[str]:
        return {p.messages[0]["content"] for p in prompts}

    train, evaluation = load_prompts(folder / "train.parquet"), load_prompts(folder / "eval.parquet")
    assert (len(questions(train)), len(questions(evaluation))) == (48, 24)
    assert not questions(evaluation) & (questions(train) | questions(demonstrations))


def test_prompts_hold_the_question_alone(folder: Path) -> None:
    for prompt in load_prompts(folder / "train.parquet"):
        assert [m["role"] for m in prompt.messages] == ["user"]
        assert prompt.extra["task"] == prompt.data_source


def test_the_scorer_takes_the_entry_and_the_ground_truth(folder: Path) -> None:
    for prompt in load_prompts(folder / "eval.parquet"):
        score = reasoning_gym.get_score_answer_fn(prompt.extra["task"])
        assert score(prompt.ground_truth, json.loads(prompt.extra["entry"])) == 1.0
        assert score("nonsense", json.loads(prompt.extra["entry"])) < 1.0


def test_two_tasks_are_never_demonstrated(folder: Path, demonstrations: list[Prompt]) -> None:
    assert {p.data_source for p in demonstrations} == set(PROGRAMS)
    assert {p.data_source for p in load_prompts(folder / "train.parquet")} == {*PROGRAMS, *UNDEMONSTRATED}


def test_demonstrated_calls_have_what_the_program_printed(demonstrations: list[Prompt]) -> None:
    with_call = [p.messages for p in demonstrations if len(p.messages) == 4]
    assert len(with_call) == 2 * 2 + 4 * 1  # both of two tasks, the first of two of each other
    for question, call, result, answer in with_call:
        assert call["tool_calls"][0]["function"]["name"] == "code_interpreter"
        assert "print(" in call["tool_calls"][0]["function"]["arguments"]["code"]
        assert question["role"] == "user"
        assert (result["role"], answer["role"]) == ("tool", "assistant")
        assert answer["content"] == f"\\boxed{{{result['content']}}}"


def test_other_demonstrations_answer_at_once(demonstrations: list[Prompt]) -> None:
    at_once = [p for p in demonstrations if len(p.messages) == 2]
    assert len(at_once) == 4
    for prompt in at_once:
        assert prompt.data_source not in ALWAYS_CALLED
        assert prompt.messages[1]["content"] == f"\\boxed{{{prompt.ground_truth}}}"
