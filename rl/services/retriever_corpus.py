"""Reads a corpus: a .jsonl or .parquet file of documents, in the form in which the retriever sends them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rl.errors import ServiceError

_CHUNK_BYTES = 1 << 20
_SUFFIXES = (".jsonl", ".parquet")


@dataclass(slots=True, frozen=True)
class Document:
    """One document of a corpus."""

    contents: str
    """Title, a line break, and text: what is searched."""
    encoded: bytes
    """The JSON object of an answer, on one line: `contents`, and what else the corpus says (`id`, `title`, ...)."""


def iter_documents(path: Path) -> Iterator[Document]:
    """Read a corpus document by document.

    A row has `contents`, as Search-R1's corpora have, or `title` and `text`; other columns are kept. A row without
    `id` gets its number, from 0.

    Args:
        path: .jsonl, one object a line, blank lines skipped; or .parquet.

    Yields:
        The documents in order; at least one.

    Raises:
        ServiceError: The file is missing, empty or of another type, or a row is malformed; says which, from 1.
    """
    check_corpus(path)
    rows = _read_jsonl(path) if path.suffix == ".jsonl" else _read_parquet(path)
    number = -1
    for number, (where, row) in enumerate(rows):
        yield _to_document(where, number, row)
    if number < 0:
        raise ServiceError(f"{path}: has no document. Give a corpus of at least one.")


def check_corpus(path: Path) -> None:
    """See that a corpus is there and of a known type.

    Raises:
        ServiceError: It is not.
    """
    if path.suffix not in _SUFFIXES:
        raise ServiceError(f"{path}: unknown file type '{path.suffix}'. Give one of {', '.join(_SUFFIXES)}.")
    if not path.is_file():
        raise ServiceError(f"{path}: no such corpus. Correct the path.")


def count_rows(path: Path) -> int:
    """Documents of a corpus, for a progress bar; blank lines count."""
    if path.suffix == ".parquet":
        return int(_open_parquet(path).metadata.num_rows)
    with path.open("rb") as stream:
        return sum(chunk.count(b"\n") for chunk in iter(lambda: stream.read(_CHUNK_BYTES), b""))


def hash_corpus(path: Path) -> str:
    """SHA-256 of the file, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _read_jsonl(path: Path) -> Iterator[tuple[str, Any]]:
    with path.open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            if line.isspace():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:  # JSONDecodeError and UnicodeDecodeError
                raise ServiceError(f"{path}: line {number} is not JSON: {error}. Correct the line.") from error
            yield f"{path}: line {number}", row


def _read_parquet(path: Path) -> Iterator[tuple[str, Any]]:
    number = 0
    for batch in _open_parquet(path).iter_batches():
        for row in batch.to_pylist():
            number += 1
            yield f"{path}: row {number}", row


def _open_parquet(path: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        raise ServiceError(f"{path}: is not a parquet file: {error}. Write it again.") from error


def _to_document(where: str, number: int, row: Any) -> Document:
    if not isinstance(row, dict):
        raise ServiceError(f"{where} must be an object with 'contents', got {row!r:.50}. Correct it.")
    contents = row.get("contents")
    if contents is None and isinstance(row.get("title"), str) and isinstance(row.get("text"), str):
        contents = f"{row['title']}\n{row['text']}"
    if not isinstance(contents, str):
        raise ServiceError(
            f"{where} needs 'contents', or 'title' and 'text', as texts; it has {', '.join(row) or 'nothing'}. "
            "Correct it."
        )
    others = {key: value for key, value in row.items() if key not in ("contents", "text")}
    body = {"id": str(number), **others, "contents": contents}
    try:
        encoded = json.dumps(body, ensure_ascii=False).encode()
    except (TypeError, UnicodeEncodeError) as error:
        raise ServiceError(f"{where} cannot be sent as JSON: {error}. Correct it.") from error
    return Document(contents, encoded)
