"""Reading of data files row by row. Every problem becomes a `DataError` with file, row and a suggestion."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import pyarrow as pa
import pyarrow.parquet as pq

from rl.data.columnar import is_saved_dataset, read_parquet, read_saved_dataset, result_or_error
from rl.data.json_text import checked, decode_at, decode_json, shorten, skip_space
from rl.errors import DataError

SUFFIXES = (".parquet", ".jsonl", ".json")
"""Supported file types."""
_OTHER_FILES = {
    b"\x1f\x8b": "compressed by gzip", b"\x28\xb5\x2f\xfd": "compressed by zstd", b"BZh": "compressed by bzip2",
    b"\xfd7zXZ": "compressed by xz", b"PK\x03\x04": "a zip archive", b"PAR1": "a parquet file",
}  # fmt: skip
"""Magic bytes of files that often have a wrong name."""


def _raise(error: DataError) -> NoReturn:
    raise error


def iter_rows(path: Path, on_bad: Callable[[DataError], None] = _raise) -> Iterator[tuple[int, dict[str, Any]]]:
    """Read a table file row by row.

    Args:
        path: .parquet; .jsonl, one object per line, blank lines are skipped; .json, a list of objects; or a folder that
            `save_to_disk` of the library `datasets` wrote.
        on_bad: Called with the error of a bad row, which is then skipped; by default the error is raised.

    Yields:
        Row number, from 1 (in a .jsonl file the line number), and row; at least one.

    Raises:
        DataError: The file is missing, unreadable, empty or of another type, or a row is not an object.
    """
    is_empty = True
    try:
        for number, row in _reader(path)(path):
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


def is_columnar(path: Path) -> bool:
    """Whether records of a file have null for each field that another row has."""
    return path.suffix == ".parquet" or path.is_dir()


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


def _reader(path: Path) -> Callable[[Path], Iterator[tuple[int, Any]]]:
    readers = {".parquet": read_parquet, ".jsonl": _read_jsonl, ".json": _read_json}
    if path.is_dir():
        if not is_saved_dataset(path):
            raise DataError(
                f"{path}: the folder is no dataset that `save_to_disk` wrote, it has no state.json. Name a file in it, "
                f"or join its files with `python -m rl preprocess` and input={path}."
            )
        return read_saved_dataset
    if not path.is_file():
        raise DataError(f"{path}: the data file does not exist. Run `python -m rl preprocess`, or correct the path.")
    if path.suffix not in readers:
        raise DataError(f"{path}: unknown file type '{path.suffix}'. Use one of {', '.join(readers)}.")
    return readers[path.suffix]


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
                yield number, result_or_error(lambda: decode_json(where, _to_text(where, line)))  # noqa: B023  # called at once


def _read_json(path: Path) -> Iterator[tuple[int, Any]]:
    text = _to_text(str(path), path.read_bytes())
    position, number = skip_space(text, 0), 0
    if position == len(text):
        return
    if text[position] != "[":
        _, end = decode_at(str(path), text, position)
        got = shorten(text[position:end])
        raise DataError(f"{path}: must be a list of objects, got {got}. Write a list, or use .jsonl with one per line.")
    position = skip_space(text, position + 1)
    while not text.startswith("]", position):
        number += 1
        where = f"{path}, row {number}"
        row, end = decode_at(where, text, position)
        yield number, result_or_error(lambda: checked(where, row, text[position:end]))  # noqa: B023  # called at once
        position = skip_space(text, end)
        if text.startswith(",", position):
            position = skip_space(text, position + 1)
        elif not text.startswith("]", position):
            raise DataError(f"{where}: not JSON (no comma or end of the list after it). Correct it.")
    if skip_space(text, position + 1) != len(text):
        raise DataError(f"{path}: not JSON (text after the list). Write one list per .json file.")
