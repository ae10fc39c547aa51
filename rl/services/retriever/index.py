"""The BM25 index of a corpus, with the scores of bm25s, computed in chunks and searched with numpy.

score(q, d) = sum over all occurrences of words t in q of
idf(t) tf / (tf + k1 (1 - b + b |d| / avg |d|)), with idf(t) = ln(1 + (N - df + 0.5) / (df + 0.5)).
All summands are computed when the index is built; a query adds those of its words (`rl.services.retriever.tokenizer`).
bm25s can open the folder too. docs/decisions/0033-own-bm25.md says why bm25s does not build and search it.

Source: Robertson and Zaragoza 2009 in Lucene's form (Kamphuis et al. 2020); bm25s, arXiv:2407.03618.
"""

from __future__ import annotations

import json
import logging
import math
from collections import defaultdict
from collections.abc import Sequence
from itertools import count
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rl.errors import ServiceError
from rl.services.retriever.counts import ChunkCounts, count_chunks
from rl.services.retriever.folder import DocumentReader, DocumentWriter, Hit, find_folder, indexing_bar
from rl.services.retriever.ranking import Postings, find_best
from rl.services.retriever.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

_K1, _B = 0.9, 0.4  # as Anserini and Search-R1 set Lucene's
_SETTINGS = {"backend": "bm25s", "format": 3, "k1": _K1, "b": _B}
_DATA, _ROWS, _STARTS, _VOCABULARY = (
    "data.csc.index.npy",
    "indices.csc.index.npy",
    "indptr.csc.index.npy",
    "vocab.index.json",
)


class Bm25Index:
    """An open index folder."""

    batch_size = 1

    def __init__(self, directory: Path) -> None:
        """Open a folder that `open_index` made."""
        self._tokenizer = Tokenizer()
        self._vocabulary: dict[str, int] = json.loads((directory / _VOCABULARY).read_bytes())
        self._data, self._rows, self._starts = (
            np.asarray(np.load(directory / name, mmap_mode="r")) for name in (_DATA, _ROWS, _STARTS)
        )
        self._documents = DocumentReader(directory)
        self.num_documents: int = len(self._documents)

    def search(self, query: str, topk: int) -> tuple[Hit, ...]:
        """Find at most `topk` documents that share a word with the query, best first.

        Documents with equal scores keep the order of the corpus.
        """
        postings = {}
        words = [
            number for word in self._tokenizer.tokenize(query) if (number := self._vocabulary.get(word)) is not None
        ]
        for number in words:
            if number not in postings:
                part = slice(self._starts[number], self._starts[number + 1])
                postings[number] = Postings(self._rows[part], self._data[part])
        rows, scores = find_best([postings[number] for number in words], topk, self.num_documents)
        return tuple(map(Hit, rows.tolist(), scores.tolist()))

    def search_batch(self, queries: Sequence[str], topk: int) -> list[tuple[Hit, ...]]:
        """Search for each of several queries; see `search`."""
        return [self.search(query, topk) for query in queries]

    def has_words(self, query: str) -> bool:
        """Whether a query has any word to search for."""
        return bool(self._tokenizer.tokenize(query))

    def document(self, row: int) -> bytes:
        """The JSON object of a document."""
        return self._documents[row]


def open_index(corpus: Path | Sequence[Path], directory: Path | None = None) -> Bm25Index:
    """Open the index of a corpus. Builds it first if it is missing or the corpus has changed.

    Args:
        corpus: .jsonl or .parquet, see `read_chunk`; several files form one corpus.
        directory: Folder of the index; by default next to the corpus, with the suffix `.bm25s`.

    Raises:
        ServiceError: The corpus is missing or malformed, or the folder cannot be written or has other content.
    """
    return Bm25Index(find_folder(corpus, directory, _SETTINGS, _build))


def _build(corpus: Sequence[Path], directory: Path) -> None:
    logger.info("retriever: building the index of %s", ", ".join(map(str, corpus)))
    vocabulary: defaultdict[str, int] = defaultdict(count().__next__)  # numbers the words in the order of appearance
    chunks, numbers = [], []
    with indexing_bar(corpus) as advance, DocumentWriter(directory) as writer:
        for chunk in count_chunks(corpus):
            writer.write(chunk.take_documents())
            numbers.append(np.fromiter(map(vocabulary.__getitem__, chunk.words), np.int64, len(chunk.words)))
            chunks.append(chunk)
            advance(len(chunk.lengths))
    if not vocabulary:
        raise ServiceError(f"{corpus[0]}: has no word to search for. Give a corpus with text.")
    frequencies = np.zeros(len(vocabulary), dtype=np.int64)
    for chunk, words in zip(chunks, numbers, strict=True):
        frequencies[words] += chunk.frequencies
    _save(directory, dict(vocabulary), *_score(chunks, numbers, frequencies), writer.num_documents)


def _score(
    chunks: list[ChunkCounts], numbers: list[NDArray[np.int64]], frequencies: NDArray[np.int64]
) -> tuple[NDArray[np.float32], NDArray[np.int32], NDArray[np.int64]]:
    """Compute the score of each word in each document, with the rounding of bm25s.

    Args:
        chunks: The chunks of the corpus.
        numbers: For each chunk [W], the position of its words in the vocabulary.
        frequencies: [V] number of documents with the word.

    Returns:
        Scores and rows, both [P], sorted by word and then by row, and [V + 1] the start of each word.
    """
    lengths = np.concatenate([chunk.lengths for chunk in chunks])
    total, average = len(lengths), lengths.mean() or 1.0  # 0 if all documents have only names
    norms = _K1 * ((1 - _B) + _B * lengths / average)
    idf = np.array([math.log(1 + (total - df + 0.5) / (df + 0.5)) for df in frequencies.tolist()], dtype=np.float32)
    starts = np.concatenate(([0], np.cumsum(frequencies)))
    data, rows = np.empty(starts[-1], dtype=np.float32), np.empty(starts[-1], dtype=np.int32)
    heads, first_row = starts[:-1].copy(), 0
    for chunk, words in zip(chunks, numbers, strict=True):
        of_chunk = np.cumsum(chunk.frequencies) - chunk.frequencies
        places = np.repeat(heads[words] - of_chunk, chunk.frequencies) + np.arange(len(chunk.rows))
        heads[words] += chunk.frequencies
        rows[places] = chunk.rows + first_row
        tf = chunk.counts.astype(np.float64)
        data[places] = np.repeat(idf[words], chunk.frequencies) * (tf / (norms[first_row:][chunk.rows] + tf))
        first_row += len(chunk.lengths)
    return data, rows, starts


def _save(
    directory: Path,
    vocabulary: dict[str, int],
    data: NDArray[np.float32],
    rows: NDArray[np.int32],
    starts: NDArray[np.int64],
    num_documents: int,
) -> None:
    """Write the files with bm25s."""
    import bm25s  # imports numba if it is installed, which takes longer than opening an index

    retriever = bm25s.BM25(k1=_K1, b=_B, method="lucene")
    retriever.scores = {"data": data, "indices": rows, "indptr": starts, "num_docs": num_documents}
    retriever.nonoccurrence_array = None  # for other variants of BM25
    retriever.vocab_dict = vocabulary | {"": len(vocabulary)}  # bm25s looks it up for a query without words
    retriever.save(directory)
