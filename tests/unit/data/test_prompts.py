from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rl.data.prompts import drop_long_prompts, id_in_epoch, load_prompts, row_of
from rl.errors import DataError
from rl.types import Prompt

ROW = {"messages": [{"role": "user", "content": "2+2?"}], "ground_truth": "4", "data_source": "sums", "level": 3}
ASSISTANT = {"role": "assistant", "content": ""}
BROKEN_CALL = {"type": "function", "function": {"name": "add", "arguments": "{"}}


def write_jsonl(folder: Path, *rows: object) -> Path:
    path = folder / "train.jsonl"
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def test_load_prompts_reads_jsonl(tmp_path: Path):
    path = write_jsonl(tmp_path, ROW, ROW | {"ground_truth": 5, "messages": json.dumps(ROW["messages"])})
    first, second = load_prompts(path, ["level", "labels"])
    assert first == Prompt("train-1", [{"role": "user", "content": "2+2?"}], "4", "sums", {"level": 3})
    assert (second.id, second.ground_truth, second.messages) == ("train-2", "5", first.messages)


def test_load_prompts_skips_blank_lines_and_counts_them(tmp_path: Path):
    assert [prompt.id for prompt in load_prompts(write_jsonl(tmp_path, ROW, "", ROW, ""))] == ["train-1", "train-3"]


def test_load_prompts_reads_a_line_separator_inside_a_string(tmp_path: Path):
    path = tmp_path / "train.jsonl"
    row = ROW | {"ground_truth": "a\u2028b"}
    path.write_text(json.dumps(row, ensure_ascii=False), encoding="utf-8")
    assert [prompt.ground_truth for prompt in load_prompts(path)] == ["a\u2028b"]


def test_load_prompts_removes_nulls_filled_in_by_a_columnar_file(tmp_path: Path):
    function = {"name": "add", "arguments": '{"a": 1}'}
    turn = {"role": "assistant", "content": None, "tool_calls": [{"type": "function", "function": function}]}
    path = tmp_path / "demos.parquet"
    pq.write_table(pa.Table.from_pylist([ROW | {"messages": [*ROW["messages"], turn]}]), path)
    (prompt,) = load_prompts(path)
    assert prompt.messages == [
        {"role": "user", "content": "2+2?"},
        {"role": "assistant", "tool_calls": [{"type": "function", "function": function}]},
    ]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("{", "not JSON"),
        ("[1]", "must be an object, got [1]"),
        (
            {"messages": ROW["messages"], "data_source": "sums"},
            "no column with the answer, got messages, data_source. Usual names are ground_truth, answer, ",
        ),
        (ROW | {"ground_truth": None}, "no value for 'ground_truth', got null"),
        (ROW | {"level": None}, "column 'level' must have a value, got null"),
        (ROW | {"messages": []}, "must be a non-empty list"),
        (ROW | {"messages": "2+2?"}, "text but not JSON"),
        (ROW | {"messages": ["2+2?"]}, "message 0 must be an object"),
        (
            ROW | {"messages": [{"role": "human", "content": "2+2?"}]},
            "tool, got 'human'",
        ),
        (ROW | {"messages": [{"role": "user", "content": 4}]}, "message 0 must have text content, got 4"),
        (ROW | {"messages": [{"role": "user"}]}, "message 0 must have text content"),
        (
            ROW | {"messages": [ASSISTANT | {"tool_calls": "add"}]},
            "format, got 'add'. Write a list of",
        ),
        (
            ROW | {"messages": [ASSISTANT | {"tool_calls": [{"function": {}}]}]},
            "message 0 must have tool_calls in",
        ),
        (
            ROW | {"messages": [ASSISTANT | {"tool_calls": [BROKEN_CALL]}]},
            "message 0 must have tool_calls in",
        ),
    ],
)
def test_load_prompts_names_the_row_and_the_reason(tmp_path: Path, row: object, reason: str):
    path = write_jsonl(tmp_path, ROW, row, ROW)
    with pytest.raises(DataError) as caught:
        load_prompts(path, ["level"])
    assert str(caught.value).startswith(f"{path}, row 2: ")
    assert reason in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.jsonl", None, "the data file does not exist"),
        ("a.jsonl", b"", "no rows"),
        ("a.json", b"", "no rows"),
        ("a.json", b"{}", "must be a list"),
        ("a.json", b"{", "not JSON"),
        ("a.csv", b"x", "unknown file type '.csv'"),
        ("a.jsonl", b"\xff", "not UTF-8"),
        ("a.parquet", b"PAR1", "cannot be read as parquet"),
    ],
)
def test_load_prompts_rejects_an_invalid_file(tmp_path: Path, name: str, content: bytes | None, reason: str):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=reason) as caught:
        load_prompts(path)
    assert str(path) in str(caught.value)


class WordRenderer:
    def render_prompt(self, messages: list) -> list[int]:
        return [0] * len(messages[0]["content"].split())


def test_drop_long_prompts_counts_those_beyond_the_limit():
    prompts = [Prompt(text, [{"role": "user", "content": text}], "", "") for text in ("a b", "a b c", "a")]
    kept, num_dropped = drop_long_prompts(prompts, WordRenderer(), 2)
    assert ([prompt.id for prompt in kept], num_dropped) == (["a b", "a"], 1)
    with pytest.raises(DataError, match="no prompt has at most 0 tokens, the shortest has 1 tokens"):
        drop_long_prompts(prompts, WordRenderer(), 0)


def test_id_in_epoch_is_the_rows_own_in_the_first():
    assert [id_in_epoch("train-7", epoch) for epoch in (0, 1, 2)] == ["train-7", "train-7@1", "train-7@2"]
    assert [row_of(name) for name in ("train-7", "train-7@1", "a@2-7@12", "a@2-7")] == ["train-7"] * 2 + ["a@2-7"] * 2
