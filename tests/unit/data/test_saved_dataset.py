"""Folders of the library `datasets` (`save_to_disk`), which is not installed: files are written as it writes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from rl.config.schema import DatasetConfig
from rl.data.preprocess import preprocess
from rl.data.prompts import load_prompts
from rl.data.rows import iter_rows
from rl.errors import DataError

CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 1, "b": None}}}
ROWS = [
    {"prompt": [{"role": "user", "content": "1?", "tool_calls": None}], "answer": "1"},
    {"prompt": [{"role": "user", "content": "2?", "tool_calls": None}], "answer": "2"},
    {"prompt": [{"role": "user", "content": "3?"}, {"role": "assistant", "tool_calls": [CALL]}], "answer": "3"},
]


def save_to_disk(folder: Path, *parts: list[dict[str, Any]]) -> Path:
    """Write Arrow streams, `state.json` and `dataset_info.json`."""
    folder.mkdir(parents=True)
    names = [f"data-{number:05d}-of-{len(parts):05d}.arrow" for number in range(len(parts))]
    schema = pa.Table.from_pylist([row for part in parts for row in part]).schema
    for name, part in zip(names, parts, strict=True):
        table = pa.Table.from_pylist(part, schema=schema)
        with (folder / name).open("wb") as file, pa.ipc.new_stream(file, schema) as stream:
            stream.write_table(table, max_chunksize=1)
    state = {
        "_data_files": [{"filename": name} for name in names],
        "_fingerprint": "0123456789abcdef",
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": "train",
    }
    (folder / "state.json").write_text(json.dumps(state, indent=2))
    (folder / "dataset_info.json").write_text(json.dumps({"citation": "", "features": {}}))
    return folder


def test_folder_is_read_in_the_order_of_its_files(tmp_path: Path) -> None:
    folder = save_to_disk(tmp_path / "sums", ROWS[:2], ROWS[2:])
    assert [number for number, _ in iter_rows(folder)] == [1, 2, 3]
    prompts = load_prompts(folder)
    assert [(p.id, p.ground_truth, p.data_source) for p in prompts] == [
        ("sums-1", "1", "sums"),
        ("sums-2", "2", "sums"),
        ("sums-3", "3", "sums"),
    ]
    function = {"name": "add", "arguments": {"a": 1}}  # without the nulls that the columnar file filled in
    assert prompts[2].messages[1] == {"role": "assistant", "tool_calls": [{"type": "function", "function": function}]}


def test_preprocess_reads_a_folder(tmp_path: Path) -> None:
    folder = save_to_disk(tmp_path / "sums", ROWS)
    path = preprocess(DatasetConfig(input=str(folder), output_prefix=str(tmp_path / "rows")))
    assert [(p.ground_truth, p.data_source) for p in load_prompts(path)] == [
        ("1", "sums"),
        ("2", "sums"),
        ("3", "sums"),
    ]


def test_folder_of_splits_names_them(tmp_path: Path) -> None:
    for split in ("train", "test"):
        save_to_disk(tmp_path / "all" / split, ROWS)
    (tmp_path / "all/dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    with pytest.raises(DataError) as caught:
        load_prompts(tmp_path / "all")
    assert str(caught.value) == (
        f"{tmp_path}/all: the folder has several datasets, train, test. Name one of them: {tmp_path}/all/train."
    )
    with pytest.raises(DataError, match="several datasets, train, test"):
        preprocess(DatasetConfig(input=str(tmp_path / "all"), output_prefix=str(tmp_path / "rows")))
    assert len(load_prompts(tmp_path / "all/test")) == 3


def test_other_folders_are_errors(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"it has no state.json. Name a file in it, or join its files"):
        load_prompts(tmp_path)
    folder = save_to_disk(tmp_path / "sums", ROWS)
    (folder / "data-00000-of-00001.arrow").write_bytes(b"ARROW1")
    with pytest.raises(DataError, match=r"data-00000-of-00001.arrow: cannot be read as an Arrow stream"):
        load_prompts(folder)
    (folder / "data-00000-of-00001.arrow").unlink()
    with pytest.raises(DataError, match=r"the file does not exist, but .*state.json names it"):
        load_prompts(folder)
    (folder / "state.json").write_text("{}")
    with pytest.raises(DataError, match="names no files"):
        load_prompts(folder)
