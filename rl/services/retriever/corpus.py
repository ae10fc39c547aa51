"""Reads a corpus, which is .jsonl or .parquet files of documents, in chunks."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rl.errors import ServiceError

CHUNK_BYTES = 4 << 20
"""Approximate size of a chunk of a .jsonl file."""

_CHUNK_ROWS = 8192
_COUNTED_BYTES = 1 << 20
_SUFFIXES = (".jsonl", ".parquet")
_ENCODER = json.JSONEncoder(ensure_ascii=False)


@dataclass(slots=True, frozen=True)
class Document:
    """One document of a corpus."""

    contents: str
    """The searched text: title, a line break, and text."""
    encoded: bytes
    """The JSON object for answers, on one line: `contents` and the corpus's other columns (`id`, `title`, ...)."""


@dataclass(slots=True, frozen=True)
class Chunk:
    """Consecutive rows of one file, not yet parsed."""

    path: Path
    place: int
    """Line or row number of the first row in the file, from 1."""
    first: int
    """Number of the first document in the corpus, from 0."""
    num_documents: int
    rows: list[bytes] | pa.RecordBatch
    """Lines, where blank ones do not count as documents; or rows of a table."""


def iter_chunks(corpus: Sequence[Path]) -> Iterator[Chunk]:
    """Cut a corpus into chunks, which are cheap to send to another process.

    Args:
        corpus: .jsonl files with one object per line, where blank lines are skipped, or .parquet files.

    Raises:
        ServiceError: A .parquet file is malformed, or there is no document.
    """
    number = 0
    for path in corpus:
        for chunk in _cut_jsonl(path, number) if path.suffix == ".jsonl" else _cut_parquet(path, number):
            yield chunk
            number += chunk.num_documents
    if not number:
        raise ServiceError(f"{', '.join(map(str, corpus))}: has no document. Give a corpus with at least one.")


def read_chunk(chunk: Chunk) -> Iterator[Document]:
    """Read the documents of a chunk.

    A row has `contents`, as in Search-R1's corpora, or `title` and `text`. Other columns are kept. A row without `id`
    gets its number in the corpus, from 0.

    Raises:
        ServiceError: A row is malformed; the message gives its number, from 1.
    """
    rows = _parse_lines(chunk, chunk.rows) if isinstance(chunk.rows, list) else _parse_table(chunk, chunk.rows)
    for number, (where, row) in enumerate(rows, start=chunk.first):
        yield _to_document(where, number, row)


def check_corpus(corpus: Sequence[Path]) -> None:
    """Check the files of a corpus.

    Raises:
        ServiceError: A file is missing, has an unknown type, or is listed twice.
    """
    for number, path in enumerate(corpus):
        if path.suffix not in _SUFFIXES:
            raise ServiceError(f"{path}: unknown file type '{path.suffix}'. Give one of {', '.join(_SUFFIXES)}.")
        if not path.is_file():
            raise ServiceError(f"{path}: no such corpus. Correct the path.")
        if path in corpus[:number]:
            raise ServiceError(f"{path}: is listed twice. List every file of the corpus once.")


def count_rows(corpus: Sequence[Path]) -> int:
    """The number of rows, blank lines included, for a progress bar."""
    return sum(map(_count_file, corpus))


def hash_file(path: Path) -> str:
    """SHA-256 of the file, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _count_file(path: Path) -> int:
    if path.suffix == ".parquet":
        return int(_open_parquet(path).metadata.num_rows)
    with path.open("rb") as stream:
        return sum(piece.count(b"\n") for piece in iter(lambda: stream.read(_COUNTED_BYTES), b""))


def _cut_jsonl(path: Path, first: int) -> Iterator[Chunk]:
    place = 1
    with path.open("rb") as stream:
        while lines := stream.readlines(CHUNK_BYTES):
            num_documents = sum(not line.isspace() for line in lines)
            yield Chunk(path, place, first, num_documents, lines)
            place += len(lines)
            first += num_documents


def _cut_parquet(path: Path, first: int) -> Iterator[Chunk]:
    place = 1
    for batch in _open_parquet(path).iter_batches(_CHUNK_ROWS):
        yield Chunk(path, place, first, batch.num_rows, batch)
        place += batch.num_rows
        first += batch.num_rows


def _open_parquet(path: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        raise ServiceError(f"{path}: is not a parquet file: {error}. Write it again.") from error


def _parse_lines(chunk: Chunk, lines: list[bytes]) -> Iterator[tuple[str, Any]]:
    for place, line in enumerate(lines, start=chunk.place):
        if line.isspace():
            continue
        where = f"{chunk.path}: line {place}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ServiceError(f"{where} is not JSON: {error}. Correct the line.") from error
        yield where, row


def _parse_table(chunk: Chunk, rows: pa.RecordBatch) -> Iterator[tuple[str, Any]]:
    for place, row in enumerate(rows.to_pylist(), start=chunk.place):
        yield f"{chunk.path}: row {place}", row


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
        encoded = _ENCODER.encode(body).encode()
    except (TypeError, UnicodeEncodeError, RecursionError) as error:
        raise ServiceError(f"{where} cannot be sent as JSON: {error}. Correct it.") from error
    return Document(contents, encoded)
