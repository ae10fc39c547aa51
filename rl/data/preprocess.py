"""Raw data files to the rows that a run reads: messages, ground truth, data source and extra columns.

Nothing is tokenized and no template is applied here: rows serve every model and every `prompt_type`.
"""

from __future__ import annotations

import json
import logging
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rl.config.schema import DatasetConfig
from rl.data.prompts import COLUMNS, check_messages, iter_rows
from rl.data.templates import TEMPLATES
from rl.errors import ConfigError, DataError, unknown_name
from rl.types import Message

logger = logging.getLogger(__name__)

MAP_KEYS = ("prompt", "query", "response", "system", "data_source")
"""Parts of a row that `DatasetConfig.map_keys` gives a column to; `query` and `system` may be empty in a row."""
_SUFFIXES = (".parquet", ".jsonl", ".json")
_OWN_COLUMNS = (*COLUMNS, "labels")  # MindSpeed-RL calls `labels` what is `ground_truth` here


def preprocess(config: DatasetConfig) -> Path:
    """Write `<output_prefix>.parquet`, and `<output_prefix>_test.parquet` where rows are held out.

    Columns: `messages` (JSON text), `ground_truth`, `data_source` and the additional keys. An answer that is a record
    with a `ground_truth`, as DAPO-Math-17k's `reward_model`, stands for that. The files are replaced as a whole.

    Args:
        config: What to read and how (configs/datasets/*.yaml).

    Returns:
        The path of the training rows.

    Raises:
        ConfigError: A key of the configuration is wrong.
        DataError: A file or row is malformed; says which row, from 1.
    """
    _check(config)
    source = Path(config.input)
    rows = _convert_all(source, config)
    if config.test_size >= len(rows):
        raise DataError(
            f"{source}: has {len(rows)} rows, of which test_size {config.test_size} leave none to train on. Lower it."
        )
    output = Path(f"{config.output_prefix}.parquet")
    if config.test_size:
        random.Random(config.seed).shuffle(rows)
        held_out, rows = rows[: config.test_size], rows[config.test_size :]
        _write(output.with_name(f"{output.stem}_test.parquet"), held_out, config.prompt_type)
    _write(output, rows, config.prompt_type)
    return output


def _check(config: DatasetConfig) -> None:
    for key, value in (("input", config.input), ("output_prefix", config.output_prefix)):
        if not value:
            raise ConfigError(f"{key}: is empty. Name a path, here or on the command line.")
    for key in config.map_keys:
        if key not in MAP_KEYS:
            raise ConfigError(unknown_name("map_keys", key, MAP_KEYS))
    if not config.map_keys.get("prompt"):
        raise ConfigError("map_keys.prompt: is empty. Name the column that holds the prompt.")
    if config.prompt_type not in TEMPLATES:
        raise ConfigError(unknown_name("prompt_type", config.prompt_type, TEMPLATES))
    if config.test_size < 0:
        raise ConfigError(f"test_size: must be at least 0, got {config.test_size}. Give a number of rows.")


def _input_files(source: Path) -> Iterator[Path]:
    if not source.exists():
        raise DataError(f"input: no file or folder '{source}'. Put the raw data there, or name another: input=PATH.")
    if not source.is_dir():
        yield source
        return
    files = sorted(path for path in source.iterdir() if path.suffix in _SUFFIXES)
    if not files:
        raise DataError(f"{source}: the folder has no {', '.join(_SUFFIXES)} file. Correct `input`.")
    yield from files


def _convert_all(source: Path, config: DatasetConfig) -> list[dict[str, Any]]:
    rows = []
    seen: set[tuple[str, str, str]] = set()
    num_repeated = 0
    for path in _input_files(source):
        for number, raw in iter_rows(path):
            row = _convert(f"{path}, row {number}", raw, config, default_source=config.data_source or source.stem)
            if config.drop_duplicates:
                key = (row["messages"], row["ground_truth"], row["data_source"])
                if key in seen:
                    num_repeated += 1
                    continue
                seen.add(key)
            rows.append(row)
    if num_repeated:
        logger.info("%s: left out %d rows that repeat another.", source, num_repeated)
    return rows


def _convert(where: str, row: dict[str, Any], config: DatasetConfig, *, default_source: str) -> dict[str, Any]:
    """Bring one row into the form that `rl.data.prompts.load_prompts` reads."""
    columns = config.map_keys
    messages = _messages(where, row, columns)
    answer = _lookup(where, row, columns["response"]) if columns.get("response") else ""
    if isinstance(answer, dict):
        if answer.get("ground_truth") is None:
            raise DataError(
                f"{where}: the answer '{columns['response']}' is a record without 'ground_truth', got fields "
                f"{', '.join(answer)}. Name the field: map_keys.response={columns['response']}.FIELD."
            )
        answer = answer["ground_truth"]
    source = _lookup(where, row, columns["data_source"]) if columns.get("data_source") else row.get("data_source")
    extra = {key: _lookup(where, row, key) for key in config.dataset_additional_keys if key not in _OWN_COLUMNS}
    return {
        "messages": json.dumps(messages, ensure_ascii=False),
        "ground_truth": answer if isinstance(answer, str) else json.dumps(answer, ensure_ascii=False, default=str),
        "data_source": str(source or default_source),
        **extra,
    }


def _messages(where: str, row: dict[str, Any], columns: dict[str, str]) -> list[Message]:
    prompt = _lookup(where, row, columns["prompt"])
    if not isinstance(prompt, str | list) or not prompt:
        raise DataError(f"{where}: '{columns['prompt']}' must be text or messages, got {prompt!r}. Correct the row.")
    messages = check_messages(where, [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt)
    query = row.get(columns.get("query", ""))
    if query:
        last = messages[-1]
        if last["role"] != "user":
            raise DataError(f"{where}: a query needs a user message to stand behind, got {last['role']}.")
        messages[-1] = {**last, "content": f"{last['content']}\n{query}"}
    system = row.get(columns.get("system", ""))
    if system and messages[0]["role"] != "system":
        messages.insert(0, {"role": "system", "content": str(system)})
    return messages


def _lookup(where: str, row: dict[str, Any], column: str) -> Any:
    """The value of a column; dots reach into records unless a column has that very name."""
    value: Any = row
    for part in [column] if column in row else column.split("."):
        if not isinstance(value, dict) or value.get(part) is None:
            known = ", ".join(row)
            raise DataError(f"{where}: has no value for '{column}'. Its columns: {known}. Correct map_keys or the row.")
        value = value[part]
    return value


def _write(path: Path, rows: list[dict[str, Any]], prompt_type: str) -> None:
    """Write a parquet file under another name and move it into place, so that no half file is ever found."""
    try:
        table = pa.Table.from_pylist(rows)
    except (pa.ArrowException, OverflowError) as error:
        raise DataError(f"{path}: a column does not have one type in all rows ({error}). Correct the input.") from error
    table = table.replace_schema_metadata({"prompt_type": prompt_type})
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.name}.{os.getpid()}")
        with part.open("wb") as file:  # not its name, which pyarrow takes for a URI where it has a colon
            pq.write_table(table, file)
        part.replace(path)
    except OSError as error:
        raise ConfigError(
            f"output_prefix: cannot write {path} ({error.strerror or error}). Choose a folder that can be written."
        ) from error
    logger.info("%s: %d rows.", path, len(rows))
