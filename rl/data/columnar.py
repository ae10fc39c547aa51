"""Reads parquet files and folders that `save_to_disk` of the library `datasets` wrote, row by row."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rl.data.json_text import decode_json
from rl.errors import DataError

AS_JSON = {"turnwise": "json"}
"""Metadata of a parquet text column with JSON values. Lists and records are stored like this, because parquet would
fill in nulls and cannot store empty records."""
ARROW_ERRORS = (pa.ArrowException, ValueError, TypeError, OverflowError, KeyError)
"""Raised by pyarrow for values that it or Python cannot represent: 80-bit numbers, dates after the year 9999."""


def read_parquet(path: Path) -> Iterator[tuple[int, Any]]:
    """Yield the number, from 1, and the row, or the error of a bad row. Raises DataError."""
    try:
        with path.open("rb") as stream:  # pyarrow would parse a path with a colon as a URI
            file = pq.ParquetFile(stream)
            as_json = [field.name for field in file.schema_arrow if _is_json(field)]
            number = 0
            for batch in file.iter_batches():
                for row in _batch_rows(path, batch, number):
                    number += 1
                    where = f"{path}, row {number}"
                    yield number, result_or_error(lambda: _with_json(where, row, as_json))  # noqa: B023  # called at once
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: cannot be read as parquet ({error}). Write it again.") from error


def is_saved_dataset(path: Path) -> bool:
    """Whether a path is a folder that `save_to_disk` wrote.

    Raises:
        DataError: It is a folder of several splits.
    """
    if (path / "dataset_dict.json").is_file():
        found = _read_record(path / "dataset_dict.json").get("splits") or []
        splits = ", ".join(map(str, found))
        raise DataError(
            f"{path}: the folder has several datasets, {splits}. Name one of them: {path}/{(found or ['NAME'])[0]}."
        )
    return (path / "state.json").is_file()


def read_saved_dataset(path: Path) -> Iterator[tuple[int, Any]]:
    """Yield the rows of a folder as `read_parquet` does. `state.json` names its files, which are Arrow streams.

    Source: `Dataset.save_to_disk` of the library `datasets`, which is not needed here.
    """
    state = path / "state.json"
    files = _read_record(state).get("_data_files")
    names = [str(file.get("filename")) for file in files if isinstance(file, dict)] if isinstance(files, list) else []
    if not names:
        raise DataError(f"{state}: names no files under `_data_files`. Save the dataset again.")
    number = 0
    for file in (path / name for name in names):
        if not file.is_file():
            raise DataError(f"{file}: the file does not exist, but {state} names it. Copy the whole folder.")
        try:
            with pa.memory_map(str(file)) as stream, pa.ipc.open_stream(stream) as batches:
                for batch in batches:
                    for row in _batch_rows(path, batch, number):
                        number += 1
                        yield number, row
        except pa.ArrowException as error:
            raise DataError(f"{file}: cannot be read as an Arrow stream ({error}). Save the dataset again.") from error


def _read_record(path: Path) -> dict[str, Any]:
    try:
        value = decode_json(str(path), path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text ({error.reason}). Save the dataset again.") from error
    if not isinstance(value, dict):
        raise DataError(f"{path}: must be an object, got {value!r:.80}. Save the dataset again.")
    return value


def _batch_rows(path: Path, batch: pa.RecordBatch, number: int) -> list[Any]:
    try:
        return batch.to_pylist()
    except ARROW_ERRORS:
        return [
            result_or_error(lambda: _single_row(f"{path}, row {number + i + 1}", batch.slice(i, 1)))  # noqa: B023
            for i in range(batch.num_rows)
        ]


def _single_row(where: str, row: pa.RecordBatch) -> Any:
    for name, column in zip(row.schema.names, row.columns, strict=True):
        try:
            column.to_pylist()
        except ARROW_ERRORS as error:
            problem = f"not UTF-8 text ({error.reason})" if isinstance(error, UnicodeDecodeError) else str(error)
            raise DataError(f"{where}: column '{name}' has an unreadable value: {problem}. Correct it.") from error
    return row.to_pylist()[0]


def _is_json(field: pa.Field) -> bool:
    return (field.metadata or {}).items() >= {key.encode(): value.encode() for key, value in AS_JSON.items()}.items()


def _with_json(where: str, row: Any, columns: list[str]) -> Any:
    for name in columns if isinstance(row, dict) else ():
        if isinstance(row[name], str):
            row[name] = decode_json(where, row[name], what=f"column '{name}' is ")
    if isinstance(row, DataError):
        raise row
    return row


def result_or_error(read: Callable[[], Any]) -> Any:
    """Return the result of a function, or the `DataError` that it raises."""
    try:
        return read()
    except DataError as error:
        return error
