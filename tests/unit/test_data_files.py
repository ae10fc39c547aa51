"""Data files of the recipes: made once, and the word problems' rows."""

from __future__ import annotations

import importlib
import json
import random
import re
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from examples.boxed.make_data import SYSTEM_PROMPT, demonstrate, make_data, make_row
from examples.data_files import make_from_command_line, make_once


def test_files_are_made_once_for_the_same_arguments_and_again_after_a_failure(tmp_path: Path) -> None:
    made: list[int] = []
    for seed in (1, 1, 2):
        make_once(tmp_path / "data", {"seed": seed}, lambda _, seed: made.append(seed))
    assert made == [1, 2]

    def fail(output: Path, seed: int) -> None:
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        make_once(tmp_path / "data", {"seed": 3}, fail)
    make_once(
        tmp_path / "data", {"seed": 2}, lambda _, seed: made.append(seed)
    )  # the files of seed 2 may be half overwritten
    assert made == [1, 2, 2]


def test_the_command_line_gives_the_numbers_and_makes_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[dict[str, object]] = []

    def make(output: Path, **numbers: int) -> None:
        made.append({"output": output, **numbers})

    monkeypatch.setattr("sys.argv", ["make_data", "--output", str(tmp_path), "--train", "5"])
    for _ in range(2):
        make_from_command_line(make, "Make data.", Path("data/x"), train=(640, "rows"), eval=(200, "rows"))
    assert made == [{"output": tmp_path, "num_train": 5, "num_eval": 200, "seed": 1}]


def test_files_are_made_again_after_a_change_of_the_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    code = tmp_path / "maker_of_rows.py"
    code.write_text("def make(output, seed): pass\n")
    make = importlib.import_module("maker_of_rows").make
    made = tmp_path / "data" / "manifest.json"
    make_once(made.parent, {"seed": 1}, make)
    before = made.read_text()
    code.write_text("def make(output, seed): pass  # other rows\n")
    make_once(made.parent, {"seed": 1}, make)
    assert made.read_text() != before


def test_word_problems_have_the_form_of_gsm8k() -> None:
    rng = random.Random(0)
    for _ in range(200):
        row = make_row(rng)
        first, second, last = row["answer"].split("\n")
        for step in (first, second):
            left, right = step.split(" = ")
            assert str(eval(left)) == right
        assert last == f"#### {second.split(' = ')[1]}"
        assert int(last.removeprefix("#### ")) > 0
        numbers = set(re.findall(r"\d+", row["question"]))
        assert set(re.findall(r"\d+", first.split(" = ")[0])) <= numbers
        assert not set("{}") & set(row["question"])


def test_demonstrations_answer_with_steps_or_at_once() -> None:
    row = {"question": "Ada has 3 boxes with 4 pens each, and loses 2.", "answer": "3 * 4 = 12\n12 - 2 = 10\n#### 10"}
    with_steps = demonstrate(row, steps=True)
    assert with_steps["messages"][2]["content"] == "3 * 4 = 12\n12 - 2 = 10\n\\boxed{10}"
    assert demonstrate(row, steps=False)["messages"] == [
        {"role": "system", "content": SYSTEM_PROMPT},
        {"role": "user", "content": row["question"]},
        {"role": "assistant", "content": "\\boxed{10}"},
    ]
    assert with_steps["ground_truth"] == "10"


def test_no_word_problem_is_in_two_files(tmp_path: Path) -> None:
    make_data(tmp_path, num_train=40, num_eval=20, num_demonstrations=12, seed=1)
    asked = [
        [json.loads(line)["question"] for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()]
        for name in ("train", "eval")
    ]
    shown = pq.read_table(tmp_path / "demonstrations.parquet")["messages"].to_pylist()
    asked.append([messages[1]["content"] for messages in shown])
    assert [len(questions) for questions in asked] == [40, 20, 12]
    assert len({question for questions in asked for question in questions}) == 72
