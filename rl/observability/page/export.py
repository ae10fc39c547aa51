"""`rl view RUN --html`: a run as one HTML file."""

from __future__ import annotations

import logging
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from rl.errors import DataError
from rl.observability.page import pack_chunk, pack_json, read_asset, render_page
from rl.observability.page.blocks import Block, RecordChunk, make_blocks
from rl.observability.page.details import step_details
from rl.observability.page.overview import overview, trajectory_files
from rl.observability.run_directory import RunDirectory

logger = logging.getLogger(__name__)

_ROWS_PER_BLOCK = 16_384


@dataclass(slots=True, frozen=True)
class PageSize:
    """What a written page has."""

    num_trajectories: int
    num_left_out: int
    """Trajectories that are in the list but cannot be opened, because the page reached its limit."""
    num_bytes: int


def write_page(run: RunDirectory, output: Path, max_bytes: int) -> PageSize:
    """Write a run as one HTML file that opens from disk.

    Metrics and the indexes of all trajectories are always in it. The trajectories are added while the page is below its
    limit: the start of each step's file, from the last step to the first, then the next part of each. The timelines and
    the recorded tokens follow.

    Args:
        run: The run.
        output: The file to write; replaced if it exists.
        max_bytes: The limit.

    Raises:
        DataError: The metrics or the warnings are malformed.
    """
    temporary = output.with_name(output.name + ".partial")
    shown = overview(run)
    try:
        with tempfile.TemporaryFile(dir=temporary.parent) as spool, temporary.open("wb") as stream:
            chunks = _Chunks(spool, max_bytes)
            blocks = list(make_blocks(trajectory_files(run), _ROWS_PER_BLOCK))
            contents = _add_blocks(chunks, blocks) | {"details": _add_details(chunks, run), "max_mb": max_bytes >> 20}
            head = ("run", pack_json(shown | {"contents": contents}))
            page = render_page(
                shown["name"],
                script=read_asset("viewer.js"),
                style=read_asset("viewer.css"),
                chunks=chunks.after(head),
            )
            stream.writelines(page)
            size = PageSize(sum(block.num_rows for block in blocks), contents["num_left_out"], stream.tell())
        temporary.replace(output)
    finally:
        temporary.unlink(missing_ok=True)
    return size


@dataclass(slots=True)
class _Chunks:
    """The chunks of a page, in a file until the page is written, since they may not fit in memory."""

    spool: IO[bytes]
    max_bytes: int
    num_bytes: int = 0
    places: dict[str, tuple[int, int]] = field(default_factory=dict)

    def add(self, name: str, packed: bytes) -> None:
        self.places[name] = (self.spool.seek(0, 2), len(packed))
        self.spool.write(packed)
        self.num_bytes += _embedded_size(packed)

    def add_if_room(self, name: str, packed: bytes) -> bool:
        if self.num_bytes + _embedded_size(packed) > self.max_bytes:
            return False
        self.add(name, packed)
        return True

    def after(self, head: tuple[str, bytes]) -> Iterator[tuple[str, bytes]]:
        yield head
        for name, (offset, size) in self.places.items():
            self.spool.seek(offset)
            yield name, self.spool.read(size)


def _embedded_size(packed: bytes) -> int:
    return (len(packed) + 2) // 3 * 4


def _add_blocks(chunks: _Chunks, blocks: list[Block]) -> dict[str, Any]:
    """Add the indexes, then the records that fit; returns what the page has to know of them."""
    for i, block in enumerate(blocks):
        chunks.add(f"rows/{i}", block.rows)
    for i, block in enumerate(blocks):
        chunks.add(f"words/{i}", block.words)
    left_out, num_left_out, is_full = [], 0, False
    for name, chunk in _by_depth(blocks):
        is_full = is_full or not chunks.add_if_room(name, chunk.pack())
        if is_full:
            left_out.append(name)
            num_left_out += chunk.count
    return {"blocks": [block.entry() for block in blocks], "left_out": left_out, "num_left_out": num_left_out}


def _by_depth(blocks: list[Block]) -> list[tuple[str, RecordChunk]]:
    """Names and chunks of records: the first of each file, from the last file to the first, then the second of each."""
    seen: Counter[Path] = Counter()
    found: list[tuple[int, int, str, RecordChunk]] = []
    for i, block in enumerate(blocks):
        for j, chunk in enumerate(block.records):
            found.append((seen[chunk.path], -len(found), f"records/{i}/{j}", chunk))
            seen[chunk.path] += 1
    return [(name, chunk) for _, _, name, chunk in sorted(found, key=lambda entry: entry[:2])]


def _add_details(chunks: _Chunks, run: RunDirectory) -> dict[str, list[str]]:
    """Add what was recorded of single steps; returns what fits, by the chunk's name.

    What a damaged file keeps from being read is left out, with a warning for each such file.
    """
    kept, damages = {}, set()
    for detail in step_details(run):
        try:
            content = detail.make()
        except DataError as error:
            if str(error) not in damages:
                logger.warning("%s The page leaves %s out.", error, detail.name.rpartition("/")[0])
            damages.add(str(error))
            continue
        if chunks.add_if_room(detail.name, pack_chunk(content)):
            kept[detail.name] = detail.covers
    return kept
