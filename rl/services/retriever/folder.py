"""The folder of an index: made once, kept beside the corpus with what it was made from, and memory-mapped afterwards.

Every backend keeps the documents in the same way; what it searches in lies beside them.
"""

from __future__ import annotations

import fcntl
import json
import mmap
import os
import shutil
import tempfile
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
from rl.services.retriever.corpus import check_corpus, count_rows, hash_file

_MANIFEST, _DOCUMENTS, _OFFSETS = "manifest.json", "documents.jsonl", "offsets.npy"
_SCRATCH = ".building"


@dataclass(slots=True, frozen=True)
class Hit:
    """One document found."""

    row: int
    """In the corpus, from 0."""
    score: float


class SearchIndex(Protocol):
    """What the retriever serves: an opened folder of one backend."""

    batch_size: int
    """Queries that `search_batch` is given at most. Above 1 a call keeps all cores busy."""

    @property
    def num_documents(self) -> int:
        """Of the corpus."""

    def search_batch(self, queries: Sequence[str], topk: int) -> list[tuple[Hit, ...]]:
        """Find the documents of the highest scores. May be called from several threads at once.

        Args:
            queries: Any texts, at least one.
            topk: Documents of each, at least 1.

        Returns:
            For each query at most `topk` documents, best first.
        """

    def has_words(self, query: str) -> bool:
        """Whether there is anything in a query to search for."""

    def document(self, row: int) -> bytes:
        """The JSON object of a document, as an answer holds it."""


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
        """Append documents.

        Args:
            encoded: Their JSON objects, without line breaks.
        """
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
    """A file of the corpus when the index was made."""

    bytes: int
    mtime_ns: int
    sha256: str


@dataclass(slots=True)
class _Manifest:
    """What an index was made from; it is built again where this does not fit any more."""

    settings: dict[str, Any]
    files: list[_File]


def find_folder(
    corpus: Path | Sequence[Path],
    directory: Path | None,
    settings: dict[str, Any],
    build: Callable[[Sequence[Path], Path], None],
) -> Path:
    """Name the index folder of a corpus; build it first where there is none, or it was made from something else.

    Args:
        corpus: One file, or several that make up one corpus in this order.
        directory: Where the index lies; by default beside the first file, under its name with the backend's.
        settings: What the index depends on beside the corpus, as JSON knows it; `backend` is its name.
        build: Fills an empty folder with the index of a corpus.

    Returns:
        The folder.

    Raises:
        ServiceError: The corpus is missing or malformed, or the folder cannot be written or holds something else.
    """
    files = [corpus] if isinstance(corpus, Path) else list(corpus)
    check_corpus(files)
    others = f"+{len(files) - 1}" if len(files) > 1 else ""
    directory = directory or files[0].with_name(f"{files[0].name}{others}.{settings['backend']}")
    manifest = _read_manifest(directory)
    if _holds_something_else(directory):
        raise ServiceError(f"{directory}: is not an index. Give a new folder by --index, or remove this one.")
    if manifest is None or manifest.settings != settings or not _are_same(manifest.files, files):
        _build_in_place(files, directory, settings, build)
    return directory


@contextmanager
def indexing_bar(corpus: Sequence[Path]) -> Iterator[Callable[[int], None]]:
    """Show a progress bar on a terminal.

    Args:
        corpus: Files of the corpus.

    Yields:
        What to call with the number of documents that are done since the last call.
    """
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(f"indexing {corpus[0].name}", total=count_rows(corpus))
        yield lambda num_documents: progress.advance(task, num_documents)


def _holds_something_else(directory: Path) -> bool:
    if (directory / _MANIFEST).is_file() or not directory.exists():
        return False
    return not directory.is_dir() or any(directory.iterdir())


def _read_manifest(directory: Path) -> _Manifest | None:
    """None where there is none, or one of another version."""
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
    """Build under another name and move it into place, so that no half index is ever found."""
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        with _scratch_folder(directory) as scratch:
            made = scratch / "index"
            made.mkdir()
            states = [(file.stat(), hash_file(file)) for file in corpus]  # before they are read
            manifest = _Manifest(settings, [_File(s.st_size, s.st_mtime_ns, sha256) for s, sha256 in states])
            build(corpus, made)
            (made / _MANIFEST).write_text(json.dumps(asdict(manifest)))
            if directory.exists():
                directory.rename(scratch / "outdated")
            made.rename(directory)
    except OSError as error:
        raise ServiceError(
            f"{directory}: the index cannot be written, {error.strerror}. Give another folder by --index."
        ) from error


@contextmanager
def _scratch_folder(directory: Path) -> Iterator[Path]:
    """A folder beside the index, locked as long as its process lives; those of processes that were killed go."""
    prefix = f".{directory.name}."
    for path in directory.parent.iterdir():
        if path.name.startswith(prefix) and path.name.endswith(_SCRATCH) and (lock := _lock(path)) is not None:
            shutil.rmtree(path, ignore_errors=True)
            os.close(lock)
    lock = None
    while lock is None:  # another process may have taken it for abandoned before it was locked
        path = Path(tempfile.mkdtemp(prefix=prefix, suffix=_SCRATCH, dir=directory.parent))
        lock = _lock(path)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        os.close(lock)


def _lock(folder: Path) -> int | None:
    """A descriptor that holds the lock until it is closed; None where another has it, or the folder is gone."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if folder.exists():
            return descriptor
    except OSError:
        pass
    os.close(descriptor)
    return None
