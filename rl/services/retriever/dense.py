"""A dense index: the vectors of a corpus, memory-mapped and searched exhaustively by faiss."""

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
    """An open index folder."""

    batch_size = 32

    def __init__(self, directory: Path, encoder: Encoder) -> None:
        """Open a folder that `open_index` made with this encoder."""
        self._encoder = encoder
        self._documents = DocumentReader(directory)
        vectors = np.memmap(directory / _VECTORS, dtype=np.float32, mode="r")
        self._vectors = np.asarray(vectors).reshape(len(self._documents), -1)
        self.num_documents: int = len(self._documents)

    def search_batch(self, queries: Sequence[str], topk: int) -> list[tuple[Hit, ...]]:
        """Find the documents with the highest scores; see `SearchIndex`. Any document may be found."""
        vectors = self._encoder.encode_queries(queries)
        metric = faiss.METRIC_INNER_PRODUCT
        scores, rows = faiss.knn(vectors, self._vectors, min(topk, self.num_documents), metric=metric)
        pairs = zip(rows.tolist(), scores.tolist(), strict=True)
        return [tuple(map(Hit, of_query, their_scores)) for of_query, their_scores in pairs]

    def has_words(self, query: str) -> bool:
        """True: every text has a vector."""
        return True

    def document(self, row: int) -> bytes:
        """The JSON object of a document."""
        return self._documents[row]


def open_index(corpus: Path | Sequence[Path], directory: Path | None, model: Path) -> DenseIndex:
    """Open the index of a corpus. Builds it first if it is missing, or the corpus or the model has changed.

    Args:
        corpus: .jsonl or .parquet, see `read_chunk`; several files form one corpus.
        directory: Folder of the index; by default next to the corpus, with the suffix `.dense`.
        model: Folder of a sentence-transformers model.

    Raises:
        ServiceError: The corpus or the model is missing or malformed, or the folder cannot be written or has other
            content.
    """
    encoder = Encoder(model)

    def build(files: Sequence[Path], made: Path) -> None:
        _build(files, made, encoder)

    settings = {"backend": "dense", "format": 1, "model": _describe_model(model)}
    return DenseIndex(find_folder(corpus, directory, settings, build), encoder)


def _describe_model(model: Path) -> list[list[str]]:
    """The model's files and their SHA-256, which identify it independent of its path."""
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
