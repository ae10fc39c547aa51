"""A BM25 index of a corpus: built once with bm25s, kept in a folder, and memory-mapped afterwards.

score(q, d) = sum over the words t of q, as often as they occur there, of
idf(t) tf / (tf + k1 (1 - b + b |d| / avg |d|)), with idf(t) = ln(1 + (N - df + 0.5) / (df + 0.5)).
bm25s computes every summand when it builds the index; a query adds up those of its words. Words are as bm25s takes them
(lower case, two letters at least, no English stop words), stemmed by Snowball.

Source: Robertson and Zaragoza 2009 in Lucene's form (Kamphuis et al. 2020); bm25s, arXiv:2407.03618.
"""

from __future__ import annotations

import json
import logging
import mmap
import re
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import Stemmer
from rich.console import Console
from rich.progress import Progress

from rl.errors import ServiceError
from rl.services.retriever_corpus import check_corpus, count_rows, hash_corpus, iter_documents

logger = logging.getLogger(__name__)

_K1, _B = 0.9, 0.4  # as Anserini and Search-R1 set Lucene's
_LANGUAGE = "english"
_WORD = re.compile(r"(?u)\b\w\w+\b")
_FORMAT = 1
_MANIFEST, _DOCUMENTS, _OFFSETS = "manifest.json", "documents.jsonl", "offsets.npy"
_DATA, _ROWS, _STARTS, _VOCABULARY = (
    "data.csc.index.npy",
    "indices.csc.index.npy",
    "indptr.csc.index.npy",
    "vocab.index.json",
)


@dataclass(slots=True, frozen=True)
class Hit:
    """One document found."""

    row: int
    """In the corpus, from 0."""
    score: float
    """Above 0."""


@dataclass(slots=True)
class _Manifest:
    """What an index was made from; it is built again where this does not fit any more."""

    format: int
    k1: float
    b: float
    corpus_bytes: int
    corpus_mtime_ns: int
    corpus_sha256: str
    stop_words: list[str]


class Bm25Index:
    """An index folder, opened."""

    def __init__(self, directory: Path) -> None:
        """Open a folder that `open_index` made.

        Args:
            directory: The folder.
        """
        manifest = _read_manifest(directory)
        assert manifest is not None, "open_index made it"
        self._stop_words = frozenset(manifest.stop_words)
        self._stemmer = Stemmer.Stemmer(_LANGUAGE)
        self._vocabulary: dict[str, int] = json.loads((directory / _VOCABULARY).read_bytes())
        self._data, self._rows, self._starts, self._offsets = (
            np.asarray(np.load(directory / name, mmap_mode="r")) for name in (_DATA, _ROWS, _STARTS, _OFFSETS)
        )
        with (directory / _DOCUMENTS).open("rb") as stream:
            self._documents = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        self.num_documents: int = len(self._offsets) - 1

    def search(self, query: str, topk: int) -> tuple[Hit, ...]:
        """Find the documents of the highest scores.

        Args:
            query: Any text.
            topk: How many, at least 1.

        Returns:
            At most `topk`, best first, among equals the earlier in the corpus; none that shares no word with the query.
        """
        words = self._stemmer.stemWords([w for w in _WORD.findall(query.lower()) if w not in self._stop_words])
        scores = np.zeros(self.num_documents, dtype=np.float32)
        for word in words:
            number = self._vocabulary.get(word)
            if number is not None:
                part = slice(self._starts[number], self._starts[number + 1])
                scores[self._rows[part]] += self._data[part]  # a row occurs once among those of a word
        found = np.flatnonzero(scores)
        order = -scores[found]  # the best in front: numpy finds the few at the front sooner than those at the end
        if len(found) > topk:
            is_near = order <= np.partition(order, topk - 1)[topk - 1]
            found, order = found[is_near], order[is_near]
        best = found[np.argsort(order, kind="stable")[:topk]]
        return tuple(Hit(int(row), float(scores[row])) for row in best)

    def document(self, row: int) -> bytes:
        """The JSON object of a document, as an answer holds it."""
        return self._documents[self._offsets[row] : self._offsets[row + 1] - 1]


def open_index(corpus: Path, directory: Path | None = None) -> Bm25Index:
    """Open the index of a corpus; build it first where there is none, or the corpus is another than it was made from.

    Args:
        corpus: .jsonl or .parquet; see `iter_documents`.
        directory: Where the index lies; by default beside the corpus, under its name with `.bm25s`.

    Returns:
        The index.

    Raises:
        ServiceError: The corpus is missing or malformed, or the folder cannot be written or holds something else.
    """
    check_corpus(corpus)
    directory = directory or corpus.with_name(f"{corpus.name}.bm25s")
    manifest = _read_manifest(directory)
    if manifest is None and directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise ServiceError(f"{directory}: is not an index. Give a new folder by --index, or remove this one.")
    if manifest is None or not _fits(manifest, corpus):
        _build(corpus, directory)
    return Bm25Index(directory)


def _read_manifest(directory: Path) -> _Manifest | None:
    try:
        return _Manifest(**json.loads((directory / _MANIFEST).read_bytes()))
    except (OSError, ValueError, TypeError):
        return None


def _fits(manifest: _Manifest, corpus: Path) -> bool:
    if (manifest.format, manifest.k1, manifest.b) != (_FORMAT, _K1, _B):
        return False
    status = corpus.stat()
    if (manifest.corpus_bytes, manifest.corpus_mtime_ns) == (status.st_size, status.st_mtime_ns):
        return True
    return manifest.corpus_bytes == status.st_size and manifest.corpus_sha256 == hash_corpus(corpus)


def _build(corpus: Path, directory: Path) -> None:
    """Build under another name and move it into place, so that no half index is ever found."""
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{directory.name}.", dir=directory.parent) as scratch:
            made = Path(scratch) / "index"
            made.mkdir()
            _write_index(corpus, made)
            if directory.exists():
                shutil.rmtree(directory)
            made.rename(directory)
    except OSError as error:
        raise ServiceError(
            f"{directory}: the index cannot be written, {error.strerror}. Give another folder by --index."
        ) from error


def _write_index(corpus: Path, directory: Path) -> None:
    import bm25s  # brings in numba where that is installed, which takes longer than opening an index
    from bm25s.stopwords import STOPWORDS_EN

    status, sha256, num_rows = corpus.stat(), hash_corpus(corpus), count_rows(corpus)
    logger.info("retriever: building the index of %s, %d documents", corpus, num_rows)
    lengths = [0]
    console = Console(stderr=True)
    bars = Progress(console=console, transient=True, disable=not console.is_terminal)
    with bars as progress, (directory / _DOCUMENTS).open("wb") as stream:
        documents = _copy_documents(corpus, stream, lengths)
        texts = progress.track(documents, total=num_rows, description=f"reading {corpus.name}")
        stemmer = Stemmer.Stemmer(_LANGUAGE)
        tokens = bm25s.tokenize(texts, stopwords="en", stemmer=stemmer, show_progress=False)
        if not tokens.vocab:
            raise ServiceError(f"{corpus}: has no word to search for. Give a corpus in English.")
        progress.add_task("computing scores", total=None)
        retriever = bm25s.BM25(k1=_K1, b=_B, method="lucene")
        retriever.index(tokens, show_progress=False)
    retriever.save(directory)
    np.save(directory / _OFFSETS, np.cumsum(lengths, dtype=np.int64))
    manifest = _Manifest(_FORMAT, _K1, _B, status.st_size, status.st_mtime_ns, sha256, list(STOPWORDS_EN))
    (directory / _MANIFEST).write_text(json.dumps(asdict(manifest)))


def _copy_documents(corpus: Path, stream: BinaryIO, lengths: list[int]) -> Iterator[str]:
    """Write each document to a stream, note its length with the line break, and hand on its contents."""
    for document in iter_documents(corpus):
        lengths.append(stream.write(document.encoded + b"\n"))
        yield document.contents
