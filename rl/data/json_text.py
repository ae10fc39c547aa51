"""Decodes JSON texts of data files. Every problem becomes a `DataError` with file, row and a suggestion."""

from __future__ import annotations

import json
import re
from typing import Any

from rl.errors import DataError

_MAX_DEPTH = 100  # parquet's own limit
_SURROGATE = re.compile("[\ud800-\udfff]")
_ESCAPED_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_DECODER = json.JSONDecoder()
_SPACE = re.compile(r"[ \t\r\n]*")


def decode_json(where: str, text: str, *, what: str = "") -> Any:
    """Decode a JSON text of a row.

    Args:
        where: File and row, for errors.
        text: One JSON value.
        what: Start of the error's sentence, for example "`messages` is text but ".

    Raises:
        DataError: The text is not JSON, is nested too deeply, or contains half a surrogate pair, which is not text.
    """
    value, end = decode_at(where, text, skip_space(text, 0), what)
    if skip_space(text, end) != len(text):
        raise DataError(f"{where}: {what}not JSON (text after the value), got {shorten(text)}. Correct it.")
    return checked(where, value, text, what)


def decode_at(where: str, text: str, start: int, what: str = "") -> tuple[Any, int]:
    """Decode the value that begins at a position; return it and its end. Raises DataError."""
    try:
        return _DECODER.raw_decode(text, start)
    except RecursionError:
        raise _too_deep(where, what) from None
    except ValueError as error:
        raise DataError(f"{where}: {what}not JSON ({error}), got {shorten(text[start:])}. Correct it.") from error


def checked(where: str, value: Any, text: str, what: str = "") -> Any:
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


def skip_space(text: str, start: int) -> int:
    """The position of the first character from `start` on that is no space."""
    return _SPACE.match(text, start).end()  # type: ignore[union-attr]  # matches the empty string too


def shorten(value: Any) -> str:
    """Shorten a value for an error message."""
    text = repr(value[:80] if isinstance(value, str) else value)
    return text if len(text) <= 80 else text[:77] + "..."


def _too_deep(where: str, what: str) -> DataError:
    return DataError(f"{where}: {what}nested too deeply, more than {_MAX_DEPTH} levels. Flatten it, or remove the row.")
