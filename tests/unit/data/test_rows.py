"""Errors name file, row and cure; preprocessed rows are read back unchanged."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rl.config.schema import DatasetConfig
from rl.data.messages import read_messages
from rl.data.preprocess import preprocess
from rl.data.prompts import load_prompts
from rl.data.rows import iter_rows, recorded_prompt_type
from rl.errors import DataError

ROW: dict[str, Any] = {"messages": [{"role": "user", "content": "é?"}], "ground_truth": "4", "data_source": "s"}
LINE = json.dumps(ROW, ensure_ascii=False)
OWN = {"prompt": "messages", "response": "ground_truth", "data_source": "data_source"}


def nested(depth: int, inside: Any = 1) -> Any:
    for _ in range(depth):
        inside = [inside]
    return inside


@pytest.mark.parametrize("suffix", [".jsonl", ".json"])
@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"messages": [{"role": "user", "content": "a\ud800"}]}, "invalid text (half a surrogate pair)"),
        ({"level": "\udfff"}, "invalid text (half a surrogate pair)"),
        ({"a": {"b\udc00": 1}}, "invalid text (half a surrogate pair)"),
        (
            {"messages": '[{"role": "user", "content": "\\ud83d"}]'},
            "`messages` is text but invalid text (half a surrogate pair)",
        ),
        ({"level": nested(100)}, "nested too deeply, more than 100 levels"),
        ({"messages": "[" * 5000}, "`messages` is text but nested too deeply"),
        (
            {"messages": '[{"role": "user", "content": "q"}] [1]'},
            "`messages` is text but not JSON (text after",
        ),
    ],
)
def test_load_prompts_names_the_row_of_an_invalid_value(tmp_path: Path, suffix: str, row: dict, reason: str):
    texts = [LINE, json.dumps(ROW | row)]
    path = tmp_path / f"rows{suffix}"
    path.write_text("\n".join(texts) if suffix == ".jsonl" else f"[{', '.join(texts)}]")
    with pytest.raises(DataError) as caught:
        load_prompts(path)
    assert str(caught.value).startswith(f"{path}, row 2: {reason}")


@pytest.mark.parametrize("suffix", [".jsonl", ".json"])
@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[" * 100_000, "nested too deeply"),
        ("1" * 5000, "not JSON (Exceeds the limit"),
        ('{"a": }', "not JSON (Expecting value"),
    ],
)
def test_iter_rows_names_the_row_that_is_not_json(tmp_path: Path, suffix: str, text: str, reason: str):
    path = tmp_path / f"rows{suffix}"
    path.write_text(f"{LINE}\n{text}\n" if suffix == ".jsonl" else f"[{LINE}, {text}")
    with pytest.raises(DataError) as caught:
        list(iter_rows(path))
    assert str(caught.value).startswith(f"{path}, row 2: {reason}")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("[{}, {} {}]", ", row 2: not JSON (no comma or end of the list after it)"),
        ("[{}] [{}]", ": not JSON (text after the list)"),
        (
            '{"a": 1}\n{"a": 2}',
            ": must be a list of objects, got '{\"a\": 1}'. Write a list, or use .jsonl",
        ),
    ],
)
def test_iter_rows_rejects_a_json_file_that_is_not_one_list(tmp_path: Path, content: str, reason: str):
    path = tmp_path / "rows.json"
    path.write_text(content)
    with pytest.raises(DataError) as caught:
        list(iter_rows(path))
    assert str(caught.value).startswith(f"{path}{reason}")


@pytest.mark.parametrize("suffix", [".jsonl", ".json"])
def test_iter_rows_reads_utf8_with_a_byte_order_mark(tmp_path: Path, suffix: str):
    path = tmp_path / f"rows{suffix}"
    path.write_text(LINE if suffix == ".jsonl" else f"[{LINE}]", encoding="utf-8-sig")
    assert list(iter_rows(path)) == [(1, ROW)]


def test_iter_rows_recognizes_compressed_files(tmp_path: Path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(gzip.compress(LINE.encode()))
    with pytest.raises(DataError, match="row 1: not text, but compressed by gzip"):
        list(iter_rows(path))


@pytest.mark.parametrize(
    ("encoding", "place", "cure"),
    [
        ("utf-16", "row 1: not UTF-8 text (it looks like UTF-16)", "iconv -f UTF-16 -t UTF-8"),
        ("utf-16-le", "row 1: not UTF-8 text (it looks like UTF-16)", "iconv -f UTF-16 -t UTF-8"),
        ("latin-1", "row 2: not UTF-8 text (invalid continuation byte at byte 43)", "iconv -f ITS_ENCODING -t UTF-8"),
    ],
)
def test_iter_rows_names_the_row_and_the_cure_of_another_encoding(tmp_path: Path, encoding: str, place: str, cure: str):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(f'{{"a": "plain"}}\n{LINE}\n'.encode(encoding))
    with pytest.raises(DataError) as caught:
        list(iter_rows(path))
    assert str(caught.value) == f"{path}, {place}. Convert the file: {cure} OLD > NEW."


def test_iter_rows_reports_an_unreadable_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "rows.jsonl"
    path.write_text(LINE)

    def refused(*args: object, **kwargs: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "open", refused)
    with pytest.raises(DataError, match=r"rows.jsonl: cannot be read \(Permission denied\)"):
        list(iter_rows(path))


@pytest.mark.parametrize(
    ("column", "reason"),
    [
        (pa.array([b"fine", b"\xff"]).cast(pa.binary()).view(pa.string()), "not UTF-8 text (invalid start byte)"),
        (pa.array([0, 2**60], pa.timestamp("us")), "date value out of range"),
    ],
)
def test_iter_rows_names_the_row_and_column_of_an_unrepresentable_value(tmp_path: Path, column: pa.Array, reason: str):
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"good": [1, 2], "bad": column}), path)
    rows = iter_rows(path)
    assert next(rows)[0] == 1
    with pytest.raises(DataError) as caught:
        next(rows)
    assert str(caught.value).startswith(f"{path}, row 2: column 'bad' has an unreadable value: {reason}")


def test_recorded_prompt_type_is_the_one_of_preprocess(tmp_path: Path):
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"a": [1]}), path)
    assert recorded_prompt_type(path) is None
    pq.write_table(pa.table({"a": [1]}).replace_schema_metadata({"prompt_type": "qwen"}), path)
    assert recorded_prompt_type(path) == "qwen"
    path.write_bytes(b"PAR1")
    assert recorded_prompt_type(path) is None
    assert recorded_prompt_type(tmp_path / "rows.jsonl") is None


# What is written is read back


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)
records = st.dictionaries(texts, values, max_size=3)


@st.composite
def conversations(draw: st.DrawFn) -> list[dict]:
    messages: list[dict] = [{"role": "user", "content": draw(texts)}]
    for arguments in draw(st.lists(records, max_size=2)):
        given = draw(st.sampled_from([arguments, json.dumps(arguments)]))
        call = {"type": "function", "function": {"name": "f", "arguments": given}}
        messages.append({"role": "assistant", "content": draw(texts), "tool_calls": [call]})
        messages.append({"role": "tool", "content": draw(texts)})
    return messages


rows = st.fixed_dictionaries(
    {
        "messages": conversations(),
        "ground_truth": texts,
        "data_source": st.just("s"),
        "a": records,
        "b": st.lists(values),
    }
)


def of(path: Path) -> list[tuple]:
    return [(p.messages, p.ground_truth, p.data_source, p.extra) for p in load_prompts(path)]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(written=st.lists(rows, min_size=1, max_size=3), as_text=st.booleans())
def test_preprocess_of_its_own_output_gives_the_same_rows(tmp_path: Path, written: list[dict], as_text: bool):
    source = tmp_path / "raw.jsonl"
    raw = [row | {"messages": json.dumps(row["messages"])} for row in written] if as_text else written
    source.write_text("".join(json.dumps(row) + "\n" for row in raw))
    keys = {"map_keys": OWN, "dataset_additional_keys": ["a", "b"]}
    once = preprocess(DatasetConfig(input=str(source), output_prefix=str(tmp_path / "once"), **keys))
    twice = preprocess(DatasetConfig(input=str(once), output_prefix=str(tmp_path / "twice"), **keys))
    expected = [(r["messages"], r["ground_truth"], "s", {"a": r["a"], "b": r["b"]}) for r in written]
    assert of(source) == of(once) == of(twice) == expected


def call_of(arguments: object) -> dict:
    return {
        "role": "assistant",
        "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": arguments}}],
    }


def test_a_null_among_arguments_is_kept_where_the_file_can_tell_it_from_none(tmp_path: Path):
    messages = [call_of({"unit": None, "deep": [{"a": None}]}), call_of('{"unit": null}')]
    assert read_messages("x", messages) == messages
    assert read_messages("x", json.dumps(messages)) == messages
    filled = pa.array([[call_of({"a": 1}), call_of({"b": 2})]]).to_pylist()[0]  # a null for what the other one has
    assert filled[0]["tool_calls"][0]["function"]["arguments"] == {"a": 1, "b": None}
    assert read_messages("x", filled, has_filler=True) == [call_of({"a": 1}), call_of({"b": 2})]


def test_preprocess_distinguishes_json_messages_from_other_lists(tmp_path: Path):
    source = tmp_path / "raw.jsonl"
    prompts = [json.dumps(ROW["messages"]), "[1, 2] + [3]?", "[1, 2]", '[{"a": 1}]', "[]", "[" * 2000]
    source.write_text("".join(json.dumps({"prompt": p, "response": "4"}) + "\n" for p in prompts))
    read = load_prompts(preprocess(DatasetConfig(input=str(source), output_prefix=str(tmp_path / "out"))))
    assert read[0].messages == ROW["messages"]
    assert [p.messages for p in read[1:]] == [[{"role": "user", "content": p}] for p in prompts[1:]]


@pytest.mark.parametrize("kept", [{}, {"a": {}}, [], [{}], {"a": None, "b": [1, "x"]}])
def test_preprocess_keeps_a_record_as_it_is(tmp_path: Path, kept: object):
    source = tmp_path / "raw.jsonl"
    source.write_text("".join(json.dumps({"prompt": "q", "response": "4", "x": x}) + "\n" for x in (kept, {"c": 1})))
    config = DatasetConfig(input=str(source), output_prefix=str(tmp_path / "a:b"), dataset_additional_keys=["x"])
    assert [p.extra["x"] for p in load_prompts(preprocess(config))] == [kept, {"c": 1}]


def test_preprocess_keeps_bytes_of_a_column_as_parquet_has_them(tmp_path: Path):
    source, images = tmp_path / "raw.parquet", [{"bytes": b"\xff\x00", "path": None}, {"bytes": b"", "path": "p"}]
    pq.write_table(pa.table({"prompt": ["q", "r"], "response": ["1", "2"], "image": images}), source)
    config = DatasetConfig(input=str(source), output_prefix=str(tmp_path / "out"), dataset_additional_keys=["image"])
    assert [p.extra["image"] for p in load_prompts(preprocess(config))] == images


BAD = [
    {"prompt": "q", "response": "4", "x": 1},
    {"prompt": "q", "response": None, "x": 2},
    "no object",
    {"prompt": "a\ud800", "response": "4", "x": 3},
    {"prompt": "q", "response": "4", "x": "three"},
    {"prompt": "q", "response": "5", "x": 4.5},
]


def test_preprocess_skips_and_counts_bad_rows_if_configured(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    source = tmp_path / "raw.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in BAD) + "{\n")
    config = DatasetConfig(input=str(source), output_prefix=str(tmp_path / "out"), dataset_additional_keys=["x"])
    with pytest.raises(DataError, match=r"row 2: no value for 'response'.* Set skip_bad_rows=true to skip"):
        preprocess(config)
    config.skip_bad_rows = True
    assert [(p.ground_truth, p.extra) for p in load_prompts(preprocess(config))] == [("4", {"x": 1}), ("5", {"x": 4.5})]
    assert f"{source}: skipped 5 bad rows. The first: {source}, row 2: no value" in caplog.text
    source.write_text("{\n{\n")
    with pytest.raises(DataError, match=r"all rows are bad. The first: .*row 1: not JSON"):
        preprocess(config)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (
            [1, "two"],
            "row 2: column 'x' must have one type in all rows, got text here and a number in {}, row 1.",
        ),
        ([[1], True], "row 2: column 'x' must have one type in all rows, got a boolean here and a list"),
        ([1, 2**70], "row 2: parquet cannot store column 'x' ("),
    ],
)
def test_preprocess_names_the_column_and_rows_with_different_types(tmp_path: Path, values: list, reason: str):
    source = tmp_path / "raw.jsonl"
    source.write_text("".join(json.dumps({"prompt": "q", "response": "4", "x": x}) + "\n" for x in values))
    config = DatasetConfig(input=str(source), output_prefix=str(tmp_path / "out"), dataset_additional_keys=["x"])
    with pytest.raises(DataError) as caught:
        preprocess(config)
    assert str(caught.value).startswith(f"{source}, {reason.format(source)}")
