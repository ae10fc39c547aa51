"""Counts the words of a corpus in chunks, on all cores."""

from __future__ import annotations

import multiprocessing
import os
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
from numpy.typing import NDArray

from rl.errors import ServiceError
from rl.services.retriever.corpus import CHUNK_BYTES, Chunk, iter_chunks, read_chunk
from rl.services.retriever.tokenizer import STOP_WORDS, Tokenizer, split

_MAX_PROCESSES = 16


@dataclass(slots=True)
class ChunkCounts:
    """The word counts of each document in a chunk: W words, D documents, P pairs of a word and a document."""

    documents: list[bytes]
    """JSON objects."""
    words: list[str]
    """[W] distinct stems."""
    lengths: NDArray[np.int64]
    """[D] number of words in a document, without names."""
    frequencies: NDArray[np.int64]
    """[W] number of documents with the word."""
    rows: NDArray[np.int32]
    """[P] document of a pair, from 0, sorted by word and then by row."""
    counts: NDArray[np.int32]
    """[P] how often the word occurs in the document."""

    def take_documents(self) -> list[bytes]:
        """Return the documents and forget them."""
        documents, self.documents = self.documents, []
        return documents


def count_chunks(corpus: Sequence[Path]) -> Iterator[ChunkCounts]:
    """Count the words of a corpus chunk by chunk, in one process per core; a small corpus in this process.

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

    Raises:
        ServiceError: A row is malformed.
    """
    forms: defaultdict[str, int] = defaultdict(count().__next__)  # numbers word forms in the order of appearance
    names: defaultdict[str, int] = defaultdict(count().__next__)
    found, found_names, ends, name_ends, documents = array("i"), array("i"), [0], [0], []
    for document in read_chunk(chunk):
        words_of, names_of = split(document.contents)
        found.extend(map(forms.__getitem__, words_of))
        found_names.extend(map(names.__getitem__, names_of))
        ends.append(len(found))
        name_ends.append(len(found_names))
        documents.append(document.encoded)
    words: defaultdict[str, int] = defaultdict(count().__next__)
    stems = zip(forms, Tokenizer().stem(list(forms)), strict=True)
    of_form = np.array([-1 if form in STOP_WORDS else words[stem] for form, stem in stems], dtype=np.int64)
    of_name = np.array([words[name] for name in names], dtype=np.int64)
    numbers, rows = _locate(of_form, found, ends)
    name_numbers, name_rows = _locate(of_name, found_names, name_ends)
    lengths = np.bincount(rows, minlength=len(documents))
    both = np.concatenate((numbers * len(documents) + rows, name_numbers * len(documents) + name_rows))
    pairs, counts = np.unique(both, return_counts=True)
    frequencies = np.bincount(pairs // len(documents), minlength=len(words))
    in_chunk = (pairs % len(documents)).astype(np.int32)
    return ChunkCounts(documents, list(words), lengths, frequencies, in_chunk, counts.astype(np.int32))


def _locate(numbers: NDArray[np.int64], found: array[int], ends: list[int]) -> tuple[NDArray[np.int64], ...]:
    """The number and the document row of each form that was found, without forms that have number -1."""
    of_found = numbers[np.asarray(found)] if len(found) else np.zeros(0, dtype=np.int64)
    rows = np.repeat(np.arange(len(ends) - 1), np.diff(ends))
    return of_found[of_found >= 0], rows[of_found >= 0]


def _end_with_parent() -> None:
    """Ignore Ctrl-C, and end this process when the parent ends in any way."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None, "runs in a child"

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
