"""The vectors of a corpus, compared with a query's one by one by faiss; kept in a folder and memory-mapped."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import faiss
import numpy as np

from rl.services.retriever.corpus import hash_file, iter_chunks, read_chunk
from rl.services.retriever.encoder import Encoder
from rl.services.retriever.folder import DocumentReader, DocumentWriter, Hit, find_folder, indexing_bar

logger = logging.getLogger(__name__)

_VECTORS = "vectors.float32"
_BATCH = 1024


class DenseIndex:
    """An index folder, opened."""

    batch_size = 32

    def __init__(self, directory: Path, encoder: Encoder) -> None:
        """Open a folder that `open_index` made.

        Args:
            directory: The folder.
            encoder: The one that it was made with.
        """
        self._encoder = encoder
        self._documents = DocumentReader(directory)
        vectors = np.memmap(directory / _VECTORS, dtype=np.float32, mode="r")
        self._vectors = np.asarray(vectors).reshape(len(self._documents), -1)
        self.num_documents: int = len(self._documents)

    def search_batch(self, queries: Sequence[str], topk: int) -> list[tuple[Hit, ...]]:
        """Find the documents of the highest scores; see `SearchIndex`. Any document may be found."""
        vectors = self._encoder.encode_queries(queries)
        metric = faiss.METRIC_INNER_PRODUCT
        scores, rows = faiss.knn(vectors, self._vectors, min(topk, self.num_documents), metric=metric)
        pairs = zip(rows.tolist(), scores.tolist(), strict=True)
        return [tuple(map(Hit, of_query, their_scores)) for of_query, their_scores in pairs]

    def has_words(self, query: str) -> bool:
        """Always: a vector stands for any text."""
        return True

    def document(self, row: int) -> bytes:
        """The JSON object of a document, as an answer holds it."""
        return self._documents[row]


def open_index(corpus: Path | Sequence[Path], directory: Path | None, model: Path) -> DenseIndex:
    """Open the index of a corpus; build it first where there is none, or it was made from something else.

    Args:
        corpus: .jsonl or .parquet, see `read_chunk`; several files make up one corpus.
        directory: Where the index lies; by default beside the corpus, under its name with `.dense`.
        model: Folder of a sentence-transformers model.

    Returns:
        The index.

    Raises:
        ServiceError: Corpus or model are missing or malformed, or the folder cannot be written or holds something else.
    """
    encoder = Encoder(model)

    def build(files: Sequence[Path], made: Path) -> None:
        _build(files, made, encoder)

    settings = {"backend": "dense", "format": 1, "model": _describe_model(model)}
    return DenseIndex(find_folder(corpus, directory, settings, build), encoder)


def _describe_model(model: Path) -> list[list[str]]:
    """Its files and their SHA-256, which tell two models apart wherever they lie."""
    files = sorted(path for path in model.rglob("*") if path.suffix in (".json", ".safetensors", ".bin"))
    return [[str(path.relative_to(model)), hash_file(path)] for path in files]


def _build(corpus: Sequence[Path], directory: Path, encoder: Encoder) -> None:
    logger.info("retriever: computing the vectors of %s", ", ".join(map(str, corpus)))
    vectors = directory / _VECTORS
    with indexing_bar(corpus) as advance, DocumentWriter(directory) as writer, vectors.open("wb") as stream:
        for chunk in iter_chunks(corpus):
            documents = list(read_chunk(chunk))
            writer.write(document.encoded for document in documents)
            for start in range(0, len(documents), _BATCH):
                batch = documents[start : start + _BATCH]
                stream.write(encoder.encode_documents([document.contents for document in batch]).tobytes())
                advance(len(batch))
