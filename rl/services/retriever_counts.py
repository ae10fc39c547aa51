"""Counts the words of a corpus chunk by chunk, on all cores."""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import threading
from array import array
from collections import defaultdict, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import numpy as np
import Stemmer
from numpy.typing import NDArray

from rl.errors import ServiceError
from rl.services.retriever_corpus import CHUNK_BYTES, Chunk, iter_chunks, read_chunk

LANGUAGE = "english"
"""Of the stemmer."""
WORD = re.compile(r"\w\w+")
"""Two letters at least; finds what bm25s finds by `\\b\\w\\w+\\b`, sooner."""
# fmt: off
STOP_WORDS = frozenset((
    "a", "an", "and", "are", "as", "at", "be", "but", "by", "for", "if", "in", "into", "is", "it", "no", "not", "of",
    "on", "or", "such", "that", "the", "their", "then", "there", "these", "they", "this", "to", "was", "will", "with",
))
# fmt: on
"""Lucene's of English, which bm25s has too."""

_MAX_PROCESSES = 16


@dataclass(slots=True)
class ChunkCounts:
    """How often each word stands in each document of a chunk: W words, D documents, P pairs of them."""

    documents: list[bytes]
    """Encoded."""
    words: list[str]
    """[W] stemmed, none twice."""
    lengths: NDArray[np.int64]
    """[D] words of a document."""
    frequencies: NDArray[np.int64]
    """[W] documents that have the word."""
    rows: NDArray[np.int32]
    """[P] documents in which a word stands, from 0, by word and then by row."""
    counts: NDArray[np.int32]
    """[P] how often."""

    def take_documents(self) -> list[bytes]:
        """Hand over the documents, which are not kept."""
        documents, self.documents = self.documents, []
        return documents


def count_chunks(corpus: Sequence[Path]) -> Iterator[ChunkCounts]:
    """Count the words of a corpus, in as many processes as there are cores; a small corpus in this one.

    Args:
        corpus: Files of the corpus.

    Yields:
        The counts of its chunks, in order.

    Raises:
        ServiceError: The corpus is malformed, or a process was killed.
    """
    chunks = iter_chunks(corpus)
    if sum(path.stat().st_size for path in corpus) <= CHUNK_BYTES:
        yield from map(count_words, chunks)
        return
    num_processes = min(len(os.sched_getaffinity(0)), _MAX_PROCESSES)
    waiting: deque[Future[ChunkCounts]] = deque()
    with ProcessPoolExecutor(num_processes, multiprocessing.get_context("spawn"), initializer=_end_with_parent) as pool:
        try:
            for chunk in chunks:
                waiting.append(pool.submit(count_words, chunk))
                if len(waiting) > 2 * num_processes:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BrokenProcessPool as error:
            raise ServiceError(
                f"{corpus[0]}: a process that counts words was killed. Free memory, and start again."
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


def count_words(chunk: Chunk) -> ChunkCounts:
    """Count the words of a chunk.

    Args:
        chunk: Of `iter_chunks`.

    Returns:
        The counts.

    Raises:
        ServiceError: A row is malformed.
    """
    forms: defaultdict[str, int] = defaultdict(count().__next__)  # numbers the forms of words as they come
    found, ends, documents = array("i"), [0], []
    for document in read_chunk(chunk):
        found.extend(map(forms.__getitem__, WORD.findall(document.contents.lower())))
        ends.append(len(found))
        documents.append(document.encoded)
    words: defaultdict[str, int] = defaultdict(count().__next__)
    stems = zip(forms, Stemmer.Stemmer(LANGUAGE, 0).stemWords(list(forms)), strict=True)
    of_form = np.array([-1 if form in STOP_WORDS else words[stem] for form, stem in stems], dtype=np.int64)
    numbers = of_form[np.asarray(found)]
    rows = np.repeat(np.arange(len(documents)), np.diff(ends))[numbers >= 0]
    pairs, counts = np.unique(numbers[numbers >= 0] * len(documents) + rows, return_counts=True)
    frequencies = np.bincount(pairs // len(documents), minlength=len(words))
    lengths = np.bincount(rows, minlength=len(documents))
    in_chunk = (pairs % len(documents)).astype(np.int32)
    return ChunkCounts(documents, list(words), lengths, frequencies, in_chunk, counts.astype(np.int32))


def _end_with_parent() -> None:
    """Leave Ctrl-C to the parent, and end when it ends, however that happens."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None, "runs in a child"

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
