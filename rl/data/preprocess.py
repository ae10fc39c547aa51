"""Preprocessing of raw data files into rows of messages, ground truth, data source and extra columns.

Rows are not tokenized and have no template applied, so they work with every model and `prompt_type`. Preprocessing is
idempotent.
"""

from __future__ import annotations

import json
import logging
import os
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rl.chat.templates import TEMPLATES
from rl.config.schema import DatasetConfig
from rl.data.columnar import ARROW_ERRORS, AS_JSON, is_saved_dataset
from rl.data.columns import answer_value, column_text, complete_map, look_up, prompt_messages
from rl.data.inline_calls import INLINE_CALLS
from rl.data.json_text import shorten
from rl.data.messages import ground_truth_text
from rl.data.prompts import COLUMNS
from rl.data.rows import SUFFIXES, is_columnar, iter_rows
from rl.errors import ConfigError, DataError, unknown_name
from rl.types import Message

logger = logging.getLogger(__name__)


@dataclass(slots=True, frozen=True)
class _Row:
    where: str
    """File and row number, for errors."""
    values: dict[str, Any]


MAP_KEYS = ("prompt", "query", "response", "system", "data_source")
"""Keys of `DatasetConfig.map_keys`, which map parts of a row to columns; `query` and `system` may be empty in a row."""
_KINDS: dict[str, Any] = {
    "a boolean": bool,
    "a number": int | float,
    "text": str,
    "a list or record": list | dict,
    "bytes": bytes,
}
_OWN_COLUMNS = (*COLUMNS, "labels")  # `labels` is MindSpeed-RL's name for `ground_truth`


def preprocess(config: DatasetConfig) -> Path:
    """Write `<output_prefix>.parquet`, and `<output_prefix>_eval.parquet` with `eval_size` rows.

    The columns are `messages` (JSON text), `ground_truth`, `data_source` and the additional keys. Lists and records in
    additional columns are stored as JSON text, which `rl.data.rows` decodes. Files are replaced atomically.

    Args:
        config: Input, output and column mapping (configs/datasets/*.yaml).

    Returns:
        The path of the training rows.

    Raises:
        ConfigError: A key of the configuration is wrong.
        DataError: A file or row is malformed; the message has the row number, from 1.
    """
    _check(config)
    source = Path(config.input)
    rows = _convert_all(source, config)
    if config.eval_size >= len(rows):
        raise DataError(
            f"eval_size: must be less than the {len(rows)} rows of {source}, got {config.eval_size}. Lower it."
        )
    output = Path(f"{config.output_prefix}.parquet")
    if config.eval_size:
        random.Random(config.seed).shuffle(rows)
        evaluation, rows = rows[: config.eval_size], rows[config.eval_size :]
        _write(output.with_name(f"{output.stem}_eval.parquet"), evaluation, config.prompt_type)
    _write(output, rows, config.prompt_type)
    return output


def _check(config: DatasetConfig) -> None:
    for key, value in (("input", config.input), ("output_prefix", config.output_prefix)):
        if not value:
            raise ConfigError(f"{key}: must not be empty. Set a path, in the YAML file or on the command line.")
    for key in config.map_keys:
        if key not in MAP_KEYS:
            raise ConfigError(unknown_name("map_keys", key, MAP_KEYS))
    if config.map_keys.get("prompt") == "":
        raise ConfigError("map_keys.prompt: must not be empty. Name the column with the prompt, or remove the key.")
    if config.answer_pattern and _num_groups(config.answer_pattern) != 1:
        raise ConfigError(
            f"answer_pattern: must be a regular expression with one group, got '{config.answer_pattern}'. Put "
            "parentheses around the answer, as in '#### (.*)'."
        )
    if config.prompt_type not in TEMPLATES:
        raise ConfigError(unknown_name("prompt_type", config.prompt_type, TEMPLATES))


def _input_files(source: Path) -> Iterator[Path]:
    if not source.exists():
        raise DataError(
            f"input: no file or folder '{source}'. Put the raw data there, or set another path: input=PATH."
        )
    if not source.is_dir() or is_saved_dataset(source):
        yield source
        return
    files = sorted(path for path in source.iterdir() if path.suffix in SUFFIXES)
    if not files:
        raise DataError(f"{source}: the folder has no {', '.join(SUFFIXES)} file. Correct `input`.")
    yield from files


def _convert_all(source: Path, config: DatasetConfig) -> list[_Row]:
    rows: list[_Row] = []
    bad: list[DataError] = []
    seen: set[tuple[str, str, str]] = set()
    kinds: dict[str, tuple[str, str]] = {}
    num_repeated = 0

    def refuse(error: DataError) -> None:
        if not config.skip_bad_rows:
            raise DataError(f"{error} Set skip_bad_rows=true to skip and count such rows.") from error
        bad.append(error)

    for path in _input_files(source):
        for number, raw in iter_rows(path, refuse):
            where = f"{path}, row {number}"
            try:
                row = _convert(where, raw, config, source.stem, has_filler=is_columnar(path))
                _check_kinds(where, row, kinds)
            except DataError as error:
                refuse(error)
                continue
            if config.drop_duplicates:
                key = (row["messages"], row["ground_truth"], row["data_source"])
                if key in seen:
                    num_repeated += 1
                    continue
                seen.add(key)
            rows.append(_Row(where, row))
    if bad:
        logger.warning("%s: skipped %d bad rows. The first: %s", source, len(bad), bad[0])
        if not rows:
            raise DataError(f"{source}: all rows are bad. The first: {bad[0]}")
    if num_repeated:
        logger.info("%s: skipped %d duplicate rows.", source, num_repeated)
    return rows


def _check_kinds(where: str, row: dict[str, Any], kinds: dict[str, tuple[str, str]]) -> None:
    """Reject a column with different types in different rows; `kinds` records the first type of each column."""
    for name, value in row.items():
        if value is None:
            continue
        kind = next((kind for kind, types in _KINDS.items() if isinstance(value, types)), type(value).__name__)
        first, first_where = kinds.setdefault(name, (kind, where))
        if kind != first:
            raise DataError(
                f"{where}: column '{name}' must have one type in all rows, got {kind} here and {first} in "
                f"{first_where}. Correct the row, or remove the column from dataset_additional_keys."
            )


def _convert(where: str, row: dict[str, Any], config: DatasetConfig, stem: str, *, has_filler: bool) -> dict[str, Any]:
    """Convert one row to the form that `rl.data.prompts.load_prompts` reads."""
    columns = complete_map(where, row, config.map_keys)
    messages = _messages(where, row, columns, config.system_prompt, has_filler=has_filler)
    if config.inline_calls:
        messages = INLINE_CALLS[config.inline_calls](where, messages)
    answer = answer_value(where, row, columns["response"])
    if config.answer_pattern:
        answer = _match(where, answer, config.answer_pattern)
    source = look_up(where, row, columns["data_source"]) if columns.get("data_source") else row.get("data_source")
    extra = {key: look_up(where, row, key) for key in config.dataset_additional_keys if key not in _OWN_COLUMNS}
    return {
        "messages": json.dumps(messages, ensure_ascii=False),
        "ground_truth": ground_truth_text(answer),
        "data_source": column_text(where, "data_source", source) or config.data_source or stem,
        **extra,
    }


def _messages(
    where: str, row: dict[str, Any], columns: dict[str, str], system_prompt: str, *, has_filler: bool
) -> list[Message]:
    messages = prompt_messages(where, row, columns["prompt"], has_filler=has_filler)
    query, system = (column_text(where, name := columns.get(key, ""), row.get(name)) for key in ("query", "system"))
    if query:
        last = messages[-1]
        if last["role"] != "user":
            raise DataError(
                f"{where}: the last message must be the user's, because the query is appended to it, got "
                f"{last['role']}. Correct the row or map_keys.query."
            )
        messages[-1] = {**last, "content": f"{last['content']}\n{query}"}
    if (system or system_prompt) and messages[0]["role"] != "system":
        messages.insert(0, {"role": "system", "content": system or system_prompt})
    return messages


def _match(where: str, answer: Any, pattern: str) -> str:
    """The part of an answer that the group of the pattern matches."""
    found = re.search(pattern, answer) if isinstance(answer, str) else None
    if found is None or found[1] is None:
        raise DataError(f"{where}: the answer does not match answer_pattern '{pattern}', got {shorten(answer)}.")
    return found[1].strip()


def _num_groups(pattern: str) -> int:
    try:
        return re.compile(pattern).groups
    except re.error as error:
        raise ConfigError(f"answer_pattern: '{pattern}' is not a regular expression: {error}. Correct it.") from error


def _write(path: Path, rows: Sequence[_Row], prompt_type: str) -> None:
    """Write a parquet file under a temporary name and rename it, so that readers never see a partial file."""
    fields, arrays = zip(*(_column(name, rows) for name in rows[0].values), strict=True)
    table = pa.Table.from_arrays(arrays, schema=pa.schema(fields, metadata={"prompt_type": prompt_type}))
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as file:  # pyarrow would parse a path with a colon as a URI
            pq.write_table(table, file)
        part.replace(path)
    except OSError as error:
        raise ConfigError(
            f"output_prefix: cannot write {path} ({error.strerror or error}). Choose a writable folder."
        ) from error
    except pa.ArrowException as error:
        part.unlink(missing_ok=True)
        raise DataError(
            f"{path}: parquet cannot store a column ({error}). Remove it from dataset_additional_keys."
        ) from error
    logger.info("%s: %d rows.", path, len(rows))


def _column(name: str, rows: Sequence[_Row]) -> tuple[pa.Field, pa.Array]:
    """Convert a column. Lists and records become JSON text, unless JSON cannot represent them (images, for example)."""
    values = [row.values[name] for row in rows]
    texts = _as_json(values)
    try:
        array = pa.array(values if texts is None else texts)
    except ARROW_ERRORS as error:
        where = next((row.where for row, value in zip(rows, values, strict=True) if not _fits(value)), rows[0].where)
        raise DataError(
            f"{where}: parquet cannot store column '{name}' ({error}). Correct the row, or remove the column from "
            "dataset_additional_keys."
        ) from error
    return pa.field(name, array.type, metadata=None if texts is None else AS_JSON), array


def _as_json(values: Sequence[Any]) -> list[str | None] | None:
    if not any(isinstance(value, list | dict) for value in values):
        return None
    try:
        return [None if value is None else json.dumps(value, ensure_ascii=False) for value in values]
    except TypeError:
        return None


def _fits(value: Any) -> bool:
    try:
        pa.array([value])
    except ARROW_ERRORS:
        return False
    return True
