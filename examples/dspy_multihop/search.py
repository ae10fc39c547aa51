"""BM25 search in the corpus, with the tutorial's settings."""

from __future__ import annotations

import json
from pathlib import Path

import bm25s
import Stemmer

K1, B = 0.9, 0.4


class Index:
    """A BM25 index of documents of the form `title | text`."""

    def __init__(self, documents: list[str], retriever: bm25s.BM25 | None = None):
        """Index documents.

        Args:
            documents: Texts that begin with their title and ` | `.
            retriever: An index of the same documents; built if None.
        """
        self.documents = documents
        self._stemmer = Stemmer.Stemmer("english")
        if retriever is None:
            retriever = bm25s.BM25(k1=K1, b=B)
            retriever.index(self._tokenize(documents), show_progress=False)
        self.retriever = retriever

    def search(self, query: str, k: int) -> list[str]:
        """Find the `k` best documents, the best first; none for a query without a word of its own."""
        tokens = self._tokenize([query])
        if not tokens.ids[0]:
            return []
        results, _ = self.retriever.retrieve(tokens, k=k, n_threads=1, show_progress=False)
        return list(dict.fromkeys(self.documents[row] for row in results[0]))

    def _tokenize(self, texts: list[str]) -> bm25s.tokenization.Tokenized:
        return bm25s.tokenize(texts, stopwords="en", stemmer=self._stemmer, show_progress=False)


def open_index(corpus: Path) -> Index:
    """Read a corpus and its index beside it; build the index on first use.

    Args:
        corpus: A jsonl file of rows with `title` and `text`; the text may be a list of sentences.
    """
    with corpus.open(encoding="utf-8") as lines:
        documents = [_document(json.loads(line)) for line in lines]
    folder = corpus.with_suffix(".bm25s")
    if folder.is_dir():
        return Index(documents, bm25s.BM25.load(folder))
    index = Index(documents)
    index.retriever.save(folder)
    return index


def title_of(document: str) -> str:
    """The title of a document that `Index` holds."""
    return document.split(" | ", 1)[0]


def _document(row: dict[str, str | list[str]]) -> str:
    text = row["text"] if isinstance(row["text"], str) else " ".join(row["text"])
    return f"{row['title']} | {text}"
