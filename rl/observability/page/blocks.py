"""Blocks of trajectory files: the index of their rows and of their words, and where their records lie on disk."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rl.errors import DataError
from rl.observability.page import pack_chunk, pack_json
from rl.observability.page.rows import RowIndex
from rl.observability.page.words import WordIndex
from rl.observability.trajectories import iterate_records

logger = logging.getLogger(__name__)

_CHUNK_BYTES = 512 << 10


@dataclass(slots=True, frozen=True)
class RecordChunk:
    """Consecutive lines of a trajectory file, so many that the browser reads them at once."""

    path: Path
    offset: int
    size: int
    """Bytes."""
    count: int
    """Number of trajectories."""

    def pack(self) -> bytes:
        """Read the lines from disk and compress them."""
        with self.path.open("rb") as stream:
            stream.seek(self.offset)
            return pack_chunk(stream.read(self.size))


@dataclass(slots=True, frozen=True)
class Block:
    """Consecutive trajectory files."""

    num_rows: int
    rows: bytes
    """`RowIndex` as JSON, packed."""
    words: bytes
    """`WordIndex`, packed."""
    records: list[RecordChunk]
    """In the order of the rows."""

    def entry(self) -> dict[str, Any]:
        """What the page has to know to read the block: its number of rows, and of each chunk of records."""
        return {"num_rows": self.num_rows, "records": [chunk.count for chunk in self.records]}


def make_blocks(files: Iterable[Path], rows_per_block: int) -> Iterator[Block]:
    """Read trajectory files and index them.

    Args:
        files: In the order in which the page shows them.
        rows_per_block: A block ends after the file with which it has at least so many rows.

    Yields:
        The blocks. A file with a malformed row, as a killed run leaves it, ends before that row, with a warning.
    """
    builder = _BlockBuilder()
    for path in files:
        builder.add_file(path)
        if builder.rows.num_rows >= rows_per_block:
            yield builder.finish()
            builder = _BlockBuilder()
    if builder.rows.files:
        yield builder.finish()


class _BlockBuilder:
    def __init__(self) -> None:
        self.rows, self.words = RowIndex(), WordIndex()
        self.records: list[RecordChunk] = []

    def add_file(self, path: Path) -> None:
        self.rows.add_file(path.stem)
        start = end = count = 0
        try:
            for line, record in iterate_records(path):
                self.rows.add(record)
                self.words.add(record)
                end, count = end + len(line), count + 1
                if end - start >= _CHUNK_BYTES:
                    self.records.append(RecordChunk(path, start, end - start, count))
                    start, count = end, 0
        except DataError as error:
            logger.warning("%s The page shows the rows before it.", error)
        if count:
            self.records.append(RecordChunk(path, start, end - start, count))

    def finish(self) -> Block:
        return Block(self.rows.num_rows, pack_json(self.rows.to_json()), pack_chunk(self.words.pack()), self.records)
