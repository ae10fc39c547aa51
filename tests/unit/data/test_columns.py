"""Rows of other projects' schemas are read without a mapping; two possible columns are an error."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rl.config.schema import DatasetConfig
from rl.data.preprocess import preprocess
from rl.data.prompts import load_prompts
from rl.errors import DataError

USER = [{"role": "user", "content": "What is 6 * 7?"}]
VERL = {
    "data_source": "openai/gsm8k",
    "prompt": USER,
    "ability": "math",
    "reward_model": {"style": "rule", "ground_truth": "42"},
    "extra_info": {"split": "train", "index": 0, "answer": "6 * 7 = 42\n#### 42", "question": "What is 6 * 7?"},
}
SEARCH_R1 = {
    "id": "train_0",
    "question": "total number of death row inmates in the us",
    "golden_answers": ["2,718"],
    "data_source": "nq",
    "prompt": [{"role": "user", "content": "Answer the given question. Question: total number?"}],
    "ability": "fact-reasoning",
    "reward_model": {"ground_truth": {"target": ["2,718"]}, "style": "rule"},
    "extra_info": {"index": 0, "split": "train"},
    "metadata": None,
}


def write(path: Path, *rows: dict[str, Any]) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(list(rows)), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read(path: Path, *, by_preprocess: bool) -> Any:
    if by_preprocess:
        path = preprocess(DatasetConfig(input=str(path), output_prefix=str(path.with_name("rows"))))
    (prompt,) = load_prompts(path)
    return prompt


@pytest.mark.parametrize("by_preprocess", [False, True])
@pytest.mark.parametrize("suffix", [".parquet", ".jsonl"])
@pytest.mark.parametrize(
    ("row", "content", "truth", "source"),
    [
        (VERL, "What is 6 * 7?", "42", "openai/gsm8k"),
        (SEARCH_R1, SEARCH_R1["prompt"][0]["content"], '{"target": ["2,718"]}', "nq"),
        ({"prompt": "What is 6 * 7?", "solution": "42"}, "What is 6 * 7?", "42", "raw"),
        ({"prompt": USER, "label": 42}, "What is 6 * 7?", "42", "raw"),
        ({"question": "What is 6 * 7?", "answer": "42"}, "What is 6 * 7?", "42", "raw"),
        ({"Problem": "What is 6 * 7?", "Answer": 42, "ID": "I-1"}, "What is 6 * 7?", "42", "raw"),
        ({"question": "What is 6 * 7?", "golden_answers": ["42", "6*7"]}, "What is 6 * 7?", '["42", "6*7"]', "raw"),
        ({"messages": USER, "answer": "42"}, "What is 6 * 7?", "42", "raw"),
        ({"messages": USER, "ground_truth": "42", "answer": "x", "question": "x"}, "What is 6 * 7?", "42", "raw"),
    ],
)
def test_row_is_read_without_a_mapping(
    tmp_path: Path, row: dict, suffix: str, content: str, truth: str, source: str, by_preprocess: bool
) -> None:
    prompt = read(write(tmp_path / f"raw{suffix}", row), by_preprocess=by_preprocess)
    assert prompt.messages == [{"role": "user", "content": content}]
    assert (prompt.ground_truth, prompt.data_source) == (truth, source)


def test_row_keeps_its_other_columns(tmp_path: Path) -> None:
    assert read(write(tmp_path / "a.parquet", VERL), by_preprocess=False).extra == {
        key: VERL[key] for key in ("ability", "reward_model", "extra_info")
    }
    row = {"question": "6 * 7?", "answer": "42", "level": 3}
    assert read(write(tmp_path / "b.jsonl", row), by_preprocess=False).extra == {"answer": "42", "level": 3}


@pytest.mark.parametrize("by_preprocess", [False, True])
@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (
            {"question": "6 * 7?", "prompt": "7 * 6?", "answer": "42"},
            "the prompt could be 'question' or 'prompt'. Choose it: `python -m rl preprocess` with map_keys.prompt=",
        ),
        (
            {"problem": "6 * 7?", "solution": "6 * 7 = 42", "answer": "42"},
            "the answer could be 'solution' or 'answer'. Choose it: `python -m rl preprocess` with map_keys.response=",
        ),
        ({"text": "6 * 7?", "answer": "42"}, "no column with the prompt, got text, answer."),
        ({"problem": "6 * 7?", "answer": None, "a": 1}, "no value for 'answer', got null"),
    ],
)
def test_ambiguous_row_is_an_error_that_says_how_to_choose(
    tmp_path: Path, row: dict, reason: str, by_preprocess: bool
) -> None:
    with pytest.raises(DataError) as caught:
        read(write(tmp_path / "raw.jsonl", row), by_preprocess=by_preprocess)
    assert str(caught.value).startswith(f"{tmp_path}/raw.jsonl, row 1: {reason}")


def test_named_column_ends_the_ambiguity(tmp_path: Path) -> None:
    source = write(tmp_path / "raw.jsonl", {"problem": "6 * 7?", "solution": "6 * 7 = 42", "answer": "42"})
    config = DatasetConfig(input=str(source), output_prefix=str(tmp_path / "rows"), map_keys={"response": "answer"})
    (prompt,) = load_prompts(preprocess(config))
    assert (prompt.messages[0]["content"], prompt.ground_truth) == ("6 * 7?", "42")
