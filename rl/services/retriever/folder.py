"""The folder of an index: built once, with a manifest of what it was built from, and memory-mapped afterwards.

All backends store the documents in the same way, and their own index files next to them.
"""

from __future__ import annotations

import json
import mmap
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from rl.errors import ServiceError
from rl.services.owned_folder import owned_folder
from rl.services.retriever.corpus import check_corpus, count_rows, hash_file

_MANIFEST, _DOCUMENTS, _OFFSETS = "manifest.json", "documents.jsonl", "offsets.npy"
_SCRATCH = ".building-"


@dataclass(slots=True, frozen=True)
class Hit:
    """One search result."""

    row: int
    """Number of the document in the corpus, from 0."""
    score: float


class SearchIndex(Protocol):
    """An open index of one backend, as the retriever serves it."""

    batch_size: int
    """Largest batch for `search_batch`. If it is above 1, one call uses all cores."""

    @property
    def num_documents(self) -> int:
        """Number of documents in the corpus."""

    def search_batch(self, queries: Sequence[str], topk: int) -> list[tuple[Hit, ...]]:
        """Find the documents with the highest scores. Thread-safe.

        Args:
            queries: At least one.
            topk: Documents for each query, at least 1.

        Returns:
            For each query at most `topk` documents, best first.
        """

    def has_words(self, query: str) -> bool:
        """Whether a query has any word to search for."""

    def document(self, row: int) -> bytes:
        """The JSON object of a document."""


class DocumentReader:
    """The documents of an index folder."""

    def __init__(self, directory: Path) -> None:
        self._offsets = np.asarray(np.load(directory / _OFFSETS, mmap_mode="r"))
        with (directory / _DOCUMENTS).open("rb") as stream:
            self._text = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __getitem__(self, row: int) -> bytes:
        return self._text[self._offsets[row] : self._offsets[row + 1] - 1]


class DocumentWriter:
    """Writes the documents of an index folder. A context manager."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._stream = (directory / _DOCUMENTS).open("wb")
        self._lengths = [np.zeros(1, dtype=np.int64)]
        self.num_documents = 0

    def write(self, encoded: Iterable[bytes]) -> None:
        """Append documents, which are JSON objects without line breaks."""
        lines = [text + b"\n" for text in encoded]
        self._stream.writelines(lines)
        self._lengths.append(np.fromiter(map(len, lines), np.int64, len(lines)))
        self.num_documents += len(lines)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: BaseException | TracebackType | None) -> None:
        self._stream.close()
        if kind is None:
            np.save(self._directory / _OFFSETS, np.cumsum(np.concatenate(self._lengths)))


@dataclass(slots=True)
class _File:
    """The state of a corpus file when the index was built."""

    bytes: int
    mtime_ns: int
    sha256: str


@dataclass(slots=True)
class _Manifest:
    """What an index was built from. The index is rebuilt when this has changed."""

    settings: dict[str, Any]
    files: list[_File]


def find_folder(
    corpus: Path | Sequence[Path],
    directory: Path | None,
    settings: dict[str, Any],
    build: Callable[[Sequence[Path], Path], None],
) -> Path:
    """Find the index folder of a corpus. Builds it first if it is missing or outdated.

    Args:
        corpus: One file, or several that form one corpus in this order.
        directory: The folder; by default next to the first file, with the backend's name as a suffix.
        settings: JSON values on which the index depends in addition to the corpus; `backend` is the backend's name.
        build: Writes the index of a corpus into an empty folder.

    Raises:
        ServiceError: The corpus is missing or malformed, or the folder cannot be written or has other content.
    """
    files = [corpus] if isinstance(corpus, Path) else list(corpus)
    check_corpus(files)
    others = f"+{len(files) - 1}" if len(files) > 1 else ""
    directory = directory or files[0].with_name(f"{files[0].name}{others}.{settings['backend']}")
    manifest = _read_manifest(directory)
    if _has_other_content(directory):
        raise ServiceError(f"{directory}: is not an index. Give a new folder with --index, or remove this one.")
    if manifest is None or manifest.settings != settings or not _are_same(manifest.files, files):
        _build_in_place(files, directory, settings, build)
    return directory


@contextmanager
def indexing_bar(corpus: Sequence[Path]) -> Iterator[Callable[[int], None]]:
    """Show a progress bar on a terminal.

    Yields:
        A function to call with the number of documents indexed since the last call.
    """
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(f"indexing {corpus[0].name}", total=count_rows(corpus))
        yield lambda num_documents: progress.advance(task, num_documents)


def _has_other_content(directory: Path) -> bool:
    if (directory / _MANIFEST).is_file() or not directory.exists():
        return False
    return not directory.is_dir() or any(directory.iterdir())


def _read_manifest(directory: Path) -> _Manifest | None:
    """None if there is none, or it belongs to another version."""
    try:
        given = json.loads((directory / _MANIFEST).read_bytes())
        return _Manifest(given["settings"], [_File(**file) for file in given["files"]])
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None


def _are_same(recorded: list[_File], files: Sequence[Path]) -> bool:
    return len(recorded) == len(files) and all(map(_is_same, recorded, files))


def _is_same(recorded: _File, file: Path) -> bool:
    status = file.stat()
    if recorded.bytes != status.st_size:
        return False
    return recorded.mtime_ns == status.st_mtime_ns or recorded.sha256 == hash_file(file)


def _build_in_place(
    corpus: Sequence[Path], directory: Path, settings: dict[str, Any], build: Callable[[Sequence[Path], Path], None]
) -> None:
    """Build in a temporary folder and rename it, so that an incomplete index is never found."""
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        with owned_folder(f".{directory.name}{_SCRATCH}", directory.parent) as scratch:
            made = scratch / "index"
            made.mkdir()
            states = [(file.stat(), hash_file(file)) for file in corpus]  # before the corpus is read
            manifest = _Manifest(settings, [_File(s.st_size, s.st_mtime_ns, sha256) for s, sha256 in states])
            build(corpus, made)
            (made / _MANIFEST).write_text(json.dumps(asdict(manifest)))
            if directory.exists():
                directory.rename(scratch / "outdated")
            made.rename(directory)
    except OSError as error:
        raise ServiceError(
            f"{directory}: the index cannot be written, {error.strerror}. Give another folder with --index."
        ) from error
