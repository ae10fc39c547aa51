"""The BM25 index by tantivy, for corpora of many millions of documents: built on all cores, searched on disk.

Tantivy has fixed parameters, k1 = 1.2 and b = 0.75, and rounds document lengths like Lucene, so its scores differ from
those of bm25s. The words are the same (`rl.services.retriever.tokenizer`).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import tantivy

from rl.services.retriever.corpus import iter_chunks, read_chunk
from rl.services.retriever.folder import DocumentReader, DocumentWriter, Hit, find_folder, indexing_bar
from rl.services.retriever.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

_SETTINGS = {"backend": "tantivy", "format": 2}
_INDEX, _CONTENTS, _ROW, _ANALYZER = "tantivy", "contents", "row", "words"
_MAX_WORD_BYTES = 255
_WRITER_BYTES = 512_000_000


class TantivyIndex:
    """An open index folder."""

    batch_size = 1

    def __init__(self, directory: Path) -> None:
        """Open a folder that `open_index` made."""
        self._tokenizer = Tokenizer()
        self._schema = _make_schema()
        self._searcher = tantivy.Index.open(str(directory / _INDEX)).searcher()
        self._documents = DocumentReader(directory)
        self.num_documents: int = len(self._documents)

    def search_batch(self, queries: Sequence[str], topk: int) -> list[tuple[Hit, ...]]:
        """Find the documents with the highest scores that share a word with the query; see `SearchIndex`."""
        return [self._search(query, topk) for query in queries]

    def has_words(self, query: str) -> bool:
        """Whether a query has any word to search for."""
        return bool(self._words(query))

    def document(self, row: int) -> bytes:
        """The JSON object of a document."""
        return self._documents[row]

    def _search(self, query: str, topk: int) -> tuple[Hit, ...]:
        words = [word for word in self._words(query) if len(word.encode()) < _MAX_WORD_BYTES]
        terms = [tantivy.Query.term_query(self._schema, _CONTENTS, word, "freq") for word in words]
        any_of = tantivy.Query.boolean_query([(tantivy.Occur.Should, term) for term in terms])
        found = self._searcher.search(any_of, min(topk, self.num_documents), count=False).hits
        if not found:
            return ()
        rows = self._searcher.fast_field_values(_ROW, [address for _, address in found])
        hits = (Hit(int(row), score) for row, (score, _) in zip(rows, found, strict=True) if row is not None)
        return tuple(sorted(hits, key=lambda hit: (-hit.score, hit.row)))

    def _words(self, query: str) -> list[str]:
        return self._tokenizer.tokenize(query.encode(errors="replace").decode())


def open_index(corpus: Path | Sequence[Path], directory: Path | None = None) -> TantivyIndex:
    """Open the index of a corpus. Builds it first if it is missing or the corpus has changed.

    Args:
        corpus: .jsonl or .parquet, see `read_chunk`; several files form one corpus.
        directory: Folder of the index; by default next to the corpus, with the suffix `.tantivy`.

    Raises:
        ServiceError: The corpus is missing or malformed, or the folder cannot be written or has other content.
    """
    return TantivyIndex(find_folder(corpus, directory, _SETTINGS, _build))


def _make_schema() -> tantivy.Schema:
    builder = tantivy.SchemaBuilder()
    builder.add_text_field(_CONTENTS, tokenizer_name=_ANALYZER, index_option="freq")
    builder.add_integer_field(_ROW, fast=True)
    return builder.build()


def _make_analyzer() -> tantivy.TextAnalyzer:
    """An analyzer for words that are already found and joined by spaces."""
    whole = tantivy.Filter.remove_long(_MAX_WORD_BYTES)
    return tantivy.TextAnalyzerBuilder(tantivy.Tokenizer.whitespace()).filter(whole).build()


def _build(corpus: Sequence[Path], directory: Path) -> None:
    logger.info("retriever: building the index of %s", ", ".join(map(str, corpus)))
    (directory / _INDEX).mkdir()
    index = tantivy.Index(_make_schema(), str(directory / _INDEX))
    index.register_tokenizer(_ANALYZER, _make_analyzer())
    row, tokenizer = 0, Tokenizer()
    with indexing_bar(corpus) as advance, DocumentWriter(directory) as documents:
        writer = index.writer(_WRITER_BYTES)
        for chunk in iter_chunks(corpus):
            for document in read_chunk(chunk):
                documents.write([document.encoded])
                words = " ".join(tokenizer.tokenize(document.contents))
                writer.add_document(tantivy.Document(contents=words, row=row))
                row += 1
            advance(chunk.num_documents)
        writer.commit()
        writer.wait_merging_threads()
