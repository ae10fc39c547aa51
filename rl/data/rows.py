"""Reading of data files row by row. Every problem becomes a `DataError` with file, row and a suggestion."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import pyarrow as pa
import pyarrow.parquet as pq

from rl.errors import DataError

SUFFIXES = (".parquet", ".jsonl", ".json")
"""Supported file types."""
AS_JSON = {"turnwise": "json"}
"""Metadata of a parquet text column with JSON values. Lists and records are stored like this, because parquet would
fill in nulls and cannot store empty records."""
_MAX_DEPTH = 100  # parquet's own limit
_SURROGATE = re.compile("[\ud800-\udfff]")
_ESCAPED_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_OTHER_FILES = {
    b"\x1f\x8b": "compressed by gzip", b"\x28\xb5\x2f\xfd": "compressed by zstd", b"BZh": "compressed by bzip2",
    b"\xfd7zXZ": "compressed by xz", b"PK\x03\x04": "a zip archive", b"PAR1": "a parquet file",
}  # fmt: skip
"""Magic bytes of files that often have a wrong name."""
_DECODER = json.JSONDecoder()
_SPACE = re.compile(r"[ \t\r\n]*")
ARROW_ERRORS = (pa.ArrowException, ValueError, TypeError, OverflowError, KeyError)
"""Raised by pyarrow for values that it or Python cannot represent: 80-bit numbers, dates after the year 9999."""


def _raise(error: DataError) -> NoReturn:
    raise error


def iter_rows(path: Path, on_bad: Callable[[DataError], None] = _raise) -> Iterator[tuple[int, dict[str, Any]]]:
    """Read a table file row by row.

    Args:
        path: .parquet; .jsonl, one object per line, blank lines are skipped; or .json, a list of objects.
        on_bad: Called with the error of a bad row, which is then skipped; by default the error is raised.

    Yields:
        Row number, from 1 (in a .jsonl file the line number), and row; at least one.

    Raises:
        DataError: The file is missing, unreadable, empty or of another type, or a row is not an object.
    """
    if not path.is_file():
        raise DataError(f"{path}: the data file does not exist. Run `python -m rl preprocess`, or correct the path.")
    readers = {".parquet": _read_parquet, ".jsonl": _read_jsonl, ".json": _read_json}
    if path.suffix not in readers:
        raise DataError(f"{path}: unknown file type '{path.suffix}'. Use one of {', '.join(readers)}.")
    is_empty = True
    try:
        for number, row in readers[path.suffix](path):
            is_empty = False
            if isinstance(row, DataError):
                on_bad(row)
            elif not isinstance(row, dict):
                on_bad(DataError(f"{path}, row {number}: must be an object, got {shorten(row)}. Correct the row."))
            else:
                yield number, row
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error}). Check its permissions.") from error
    if is_empty:
        raise DataError(f"{path}: the file has no rows. Check what wrote it.")


def recorded_prompt_type(path: Path) -> str | None:
    """The `prompt_type` that `rl preprocess` recorded in a parquet file, or None."""
    if path.suffix != ".parquet" or not path.is_file():
        return None
    try:
        with path.open("rb") as file:
            recorded = (pq.read_schema(file).metadata or {}).get(b"prompt_type")
    except (pa.ArrowException, OSError):
        return None  # `iter_rows` reports the error
    return recorded.decode(errors="replace") if recorded else None


def decode_json(where: str, text: str, *, what: str = "") -> Any:
    """Decode a JSON text of a row.

    Args:
        where: File and row, for errors.
        text: One JSON value.
        what: Start of the error's sentence, for example "`messages` is text but ".

    Raises:
        DataError: The text is not JSON, is nested too deeply, or contains half a surrogate pair, which is not text.
    """
    value, end = _decode_at(where, text, _skip_space(text, 0), what)
    if _skip_space(text, end) != len(text):
        raise DataError(f"{where}: {what}not JSON (text after the value), got {shorten(text)}. Correct it.")
    return _checked(where, value, text, what)


def shorten(value: Any) -> str:
    """Shorten a value for an error message."""
    text = repr(value[:80] if isinstance(value, str) else value)
    return text if len(text) <= 80 else text[:77] + "..."


def _decode_at(where: str, text: str, start: int, what: str = "") -> tuple[Any, int]:
    try:
        return _DECODER.raw_decode(text, start)
    except RecursionError:
        raise _too_deep(where, what) from None
    except ValueError as error:
        raise DataError(f"{where}: {what}not JSON ({error}), got {shorten(text[start:])}. Correct it.") from error


def _checked(where: str, value: Any, text: str, what: str = "") -> Any:
    """Reject deep nesting and half surrogate pairs, which would fail later without a row number. Not recursive."""
    if text.count("[") + text.count("{") <= _MAX_DEPTH and not _ESCAPED_SURROGATE.search(text):
        return value
    level = [value]
    for _ in range(_MAX_DEPTH + 1):
        for item in level:
            if isinstance(item, str) and _SURROGATE.search(item):
                raise DataError(
                    f"{where}: {what}invalid text (half a surrogate pair), got {shorten(item)}. "
                    "Write the character itself, or both halves."
                )
        nested = [[*item, *item.values()] if isinstance(item, dict) else item for item in level]
        level = [inner for item in nested if isinstance(item, list) for inner in item]
    if level:
        raise _too_deep(where, what)
    return value


def _too_deep(where: str, what: str) -> DataError:
    return DataError(f"{where}: {what}nested too deeply, more than {_MAX_DEPTH} levels. Flatten it, or remove the row.")


def _skip_space(text: str, start: int) -> int:
    return _SPACE.match(text, start).end()  # type: ignore[union-attr]  # matches the empty string too


def _to_text(where: str, raw: bytes) -> str:
    raw = raw.removeprefix(codecs.BOM_UTF8)
    try:
        if b"\0" not in raw:  # JSON has no zero bytes, but UTF-16 has
            return raw.decode()
        reason = "it has zero bytes"
    except UnicodeDecodeError as error:
        reason = f"{error.reason} at byte {error.start}"
    kind = next((kind for start, kind in _OTHER_FILES.items() if raw.startswith(start)), None)
    if kind is not None:
        raise DataError(f"{where}: not text, but {kind}. Unpack it, or correct its file name.")
    is_utf16 = raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or raw[:200].count(0) > len(raw[:200]) // 4
    if is_utf16:
        reason = "it looks like UTF-16"
    encoding = "UTF-16" if is_utf16 else "ITS_ENCODING"
    raise DataError(f"{where}: not UTF-8 text ({reason}). Convert the file: iconv -f {encoding} -t UTF-8 OLD > NEW.")


def _read_jsonl(path: Path) -> Iterator[tuple[int, Any]]:
    # Rows end only at "\n": a line separator inside a JSON string (U+2028) does not end a row.
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if line.removeprefix(codecs.BOM_UTF8).strip():
                where = f"{path}, row {number}"
                yield number, _result_or_error(lambda: decode_json(where, _to_text(where, line)))  # noqa: B023  # called at once


def _read_json(path: Path) -> Iterator[tuple[int, Any]]:
    text = _to_text(str(path), path.read_bytes())
    position, number = _skip_space(text, 0), 0
    if position == len(text):
        return
    if text[position] != "[":
        _, end = _decode_at(str(path), text, position)
        got = shorten(text[position:end])
        raise DataError(f"{path}: must be a list of objects, got {got}. Write a list, or use .jsonl with one per line.")
    position = _skip_space(text, position + 1)
    while not text.startswith("]", position):
        number += 1
        where = f"{path}, row {number}"
        row, end = _decode_at(where, text, position)
        yield number, _result_or_error(lambda: _checked(where, row, text[position:end]))  # noqa: B023  # called at once
        position = _skip_space(text, end)
        if text.startswith(",", position):
            position = _skip_space(text, position + 1)
        elif not text.startswith("]", position):
            raise DataError(f"{where}: not JSON (no comma or end of the list after it). Correct it.")
    if _skip_space(text, position + 1) != len(text):
        raise DataError(f"{path}: not JSON (text after the list). Write one list per .json file.")


def _read_parquet(path: Path) -> Iterator[tuple[int, Any]]:
    try:
        with path.open("rb") as stream:  # pyarrow would parse a path with a colon as a URI
            file = pq.ParquetFile(stream)
            as_json = [field.name for field in file.schema_arrow if _is_json(field)]
            number = 0
            for batch in file.iter_batches():
                for row in _batch_rows(path, batch, number):
                    number += 1
                    where = f"{path}, row {number}"
                    yield number, _result_or_error(lambda: _with_json(where, row, as_json))  # noqa: B023  # called at once
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: cannot be read as parquet ({error}). Write it again.") from error


def _batch_rows(path: Path, batch: pa.RecordBatch, number: int) -> list[Any]:
    try:
        return batch.to_pylist()
    except ARROW_ERRORS:
        return [
            _result_or_error(lambda: _single_row(f"{path}, row {number + i + 1}", batch.slice(i, 1)))  # noqa: B023
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


def _result_or_error(read: Callable[[], Any]) -> Any:
    """Return the result of a function, or the `DataError` that it raises."""
    try:
        return read()
    except DataError as error:
        return error
