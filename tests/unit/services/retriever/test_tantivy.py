from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("tantivy")

from rl.services.retriever.server import open_backend


def write(path: Path, contents: list[str]) -> Path:
    path.write_text("".join(json.dumps({"contents": text}) + "\n" for text in contents))
    return path


def test_search_batch_scores_as_computed_by_hand(tmp_path: Path) -> None:
    # avg |d| = 2; idf(dog) = ln(1 + 1.5 / 1.5) = ln 2; k1 (1 - b + b |d| / avg) = 1.2 for both; tantivy: (k1 + 1) tf
    index = open_backend("tantivy", write(tmp_path / "c.jsonl", ["cat\ndogs", "the Cats, a bird"]))
    ((dog,), cats) = index.search_batch(["dog", "CAT"], 3)
    assert (dog.row, dog.score) == (0, pytest.approx(0.693147, abs=1e-5))
    assert [hit.row for hit in cats] == [0, 1]
    assert cats[0].score == cats[1].score == pytest.approx(0.182322, abs=1e-5)
    assert json.loads(index.document(1)) == {"id": "1", "contents": "the Cats, a bird"}


def test_search_batch_takes_any_text_as_words(tmp_path: Path) -> None:
    index = open_backend("tantivy", write(tmp_path / "c.jsonl", ["a cat", "bird"]))
    assert index.search_batch(['contents:cat AND "', "", "the", "zebra", "\ud800 bird [", "cat" * 100], 5) == [
        index.search_batch(["cat"], 1)[0],
        (),
        (),
        (),
        index.search_batch(["birds"], 1)[0],
        (),
    ]


def test_open_index_keeps_it_beside_the_corpus_and_opens_it_again(tmp_path: Path) -> None:
    files = [write(tmp_path / "a.jsonl", ["cat"]), write(tmp_path / "b.jsonl", ["bird", "cat bird"])]
    first = open_backend("tantivy", files).search_batch(["bird cat"], 1)
    built = (tmp_path / "a.jsonl+1.tantivy/manifest.json").stat().st_mtime_ns
    assert open_backend("tantivy", files).search_batch(["bird cat"], 1) == first
    assert first[0][0].row == 2
    assert (tmp_path / "a.jsonl+1.tantivy/manifest.json").stat().st_mtime_ns == built
