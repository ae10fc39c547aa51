from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
from pathlib import Path

import bm25s
import numpy as np
import pytest
import Stemmer
from bm25s.stopwords import STOPWORDS_EN

from rl.errors import ServiceError
from rl.services.owned_folder import owned_folder
from rl.services.retriever.index import open_index
from rl.services.retriever.ranking import Postings, find_best
from rl.services.retriever.tokenizer import STOP_WORDS, split

ROOT = Path(__file__).resolve().parents[4]


def write(path: Path, contents: list[str]) -> Path:
    rows = [{"id": str(number), "contents": text} for number, text in enumerate(contents)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_search_scores_as_computed_by_hand(tmp_path: Path) -> None:
    # avg |d| = 2.5; idf(cat) = ln 1.2, idf(dog) = ln 2; k1 (1 - b + b |d| / avg) = 0.828 for row 0, 0.972 for row 1
    index = open_index(write(tmp_path / "c.jsonl", ["cat\ndogs", "Cats, a cat. The bird"]))
    assert [(h.row, h.score) for h in index.search("dog", 3)] == [(0, pytest.approx(0.693147 / 1.828, abs=1e-6))]
    assert [(h.row, h.score) for h in index.search("the CATS", 3)] == [
        (1, pytest.approx(2 * 0.182322 / 2.972, abs=1e-6)),
        (0, pytest.approx(0.182322 / 1.828, abs=1e-6)),
    ]
    assert index.search("dog cat dog", 1)[0].score == pytest.approx((2 * 0.693147 + 0.182322) / 1.828, abs=1e-6)
    assert json.loads(index.document(1)) == {"id": "1", "contents": "Cats, a cat. The bird"}


def test_search_finds_nothing_that_shares_no_word(tmp_path: Path) -> None:
    index = open_index(write(tmp_path / "c.jsonl", ["cat dog", "bird"]))
    assert index.search("fish", 3) == index.search("the a", 3) == index.search("", 3) == ()


def test_search_puts_the_earlier_of_equals_first(tmp_path: Path) -> None:
    index = open_index(write(tmp_path / "c.jsonl", ["bird", *["cat dog"] * 40, "cat"]))
    assert [hit.row for hit in index.search("dog", 5)] == [1, 2, 3, 4, 5]
    assert [hit.row for hit in index.search("cat", 4)] == [41, 1, 2, 3]


def test_search_ranks_as_bm25s_used_directly(tmp_path: Path) -> None:
    rng = random.Random(0)
    words = [f"{a}{b}{c}" for a in "bdfgklmnprst" for b in ("a", "e", "io") for c in ("ning", "ters", "y", "")]
    plain = words[:]
    words += ["C++", "R", "U.S.", "don't", "3.5", "well-known", "AT&T", ".NET", "(it)", "end."]
    weights = [1 / rank for rank in range(1, len(words) + 1)]
    texts = [" ".join(["the", *rng.choices(words, weights, k=rng.randint(3, 90))]) for _ in range(600)]
    queries = [" ".join(rng.choices(plain, weights[: len(plain)], k=rng.randint(1, 6))) for _ in range(100)]
    stemmer, index = Stemmer.Stemmer("english"), open_index(write(tmp_path / "c.jsonl", texts))
    direct = bm25s.BM25(k1=0.9, b=0.4)
    direct.index(bm25s.tokenize(texts, stopwords="en", stemmer=stemmer, show_progress=False), show_progress=False)
    asked = bm25s.tokenize(queries, stopwords="en", stemmer=stemmer, show_progress=False)
    rows, scores = direct.retrieve(asked, k=10, show_progress=False)
    for query, their_rows, their_scores in zip(queries, rows.tolist(), scores.tolist(), strict=True):
        hits = index.search(query, 10)
        assert [hit.score for hit in hits] == [score for score in their_scores if score > 0]
        for score in set(their_scores[:-1]) - {their_scores[-1], 0.0}:  # bm25s cuts equal scores at the end anywhere
            ours = {hit.row for hit in hits if hit.score == score}
            assert ours == {row for row, theirs in zip(their_rows, their_scores, strict=True) if theirs == score}


def test_search_words_are_those_of_bm25s() -> None:
    assert sorted(STOP_WORDS) == sorted(STOPWORDS_EN)
    text = "a bc d_e f'g h\u00e9 Straße x1 1 ١٢ дом -- a.bc _ __ C++ .NET U.S.A. state-of-the-art don't 3.14 AT&T"
    assert split(text)[0] == re.findall(r"(?u)\b\w\w+\b", text.lower())


def test_bm25s_opens_the_folder_and_finds_the_same(tmp_path: Path) -> None:
    index = open_index(write(tmp_path / "c.jsonl", ["cat\ndogs", "Cats, a cat. The bird", "", "the bird bird"]))
    theirs = bm25s.BM25.load(tmp_path / "c.jsonl.bm25s", mmap=True)
    asked = bm25s.tokenize(["cats", "bird"], stopwords="en", stemmer=Stemmer.Stemmer("english"), show_progress=False)
    rows, scores = theirs.retrieve(asked, k=2, show_progress=False)
    for number, query in enumerate(("cats", "bird")):
        hits = index.search_batch([query, "zebra"], 2)[0]
        assert [(hit.row, hit.score) for hit in hits] == list(zip(rows[number], scores[number], strict=True))
    assert theirs.retrieve([["zebra"]], k=1, show_progress=False)[1].tolist() == [[0.0]]


def test_count_chunks_gives_the_same_index_from_several_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = random.Random(1)
    texts = [" ".join(rng.choices(["cats", "cat", "dogs", "the", "bird", "run", "running"], k=9)) for _ in range(60)]
    whole = open_index(write(tmp_path / "whole.jsonl", texts))
    files = [write(tmp_path / "a.jsonl", texts[:25]), write(tmp_path / "b.jsonl", texts[25:])]
    monkeypatch.setattr("rl.services.retriever.corpus.CHUNK_BYTES", 700)
    monkeypatch.setattr("rl.services.retriever.counts.CHUNK_BYTES", 700)
    parts = open_index(files)
    assert (tmp_path / "a.jsonl+1.bm25s").is_dir()
    for query in ("cat", "dog bird", "runs", "the cat running cat"):
        assert parts.search(query, 20) == whole.search(query, 20)
    assert json.loads(parts.document(25))["contents"] == texts[25]
    (tmp_path / "b.jsonl").write_text('{"contents": "cat"}\n' * 40 + "{\n")
    with pytest.raises(ServiceError, match=r"b\.jsonl: line 41 is not JSON"):
        open_index(files)


def test_open_index_builds_once_and_again_when_the_corpus_changes(tmp_path: Path) -> None:
    corpus, manifest = tmp_path / "c.jsonl", tmp_path / "c.jsonl.bm25s/manifest.json"
    open_index(write(corpus, ["cat"]))
    built = manifest.stat().st_mtime_ns
    open_index(corpus)
    os.utime(corpus, ns=(0, 0))  # a copy of the same corpus
    open_index(corpus)
    assert manifest.stat().st_mtime_ns == built
    assert open_index(write(corpus, ["dog"])).search("dog", 1)[0].row == 0  # the same size
    assert open_index(write(corpus, ["dog", "dog cat"])).num_documents == 2
    manifest.write_text('{"format": 1}')  # of another version
    assert open_index(corpus).num_documents == 2
    assert "settings" in json.loads(manifest.read_text())
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_open_index_keeps_it_where_it_is_told(tmp_path: Path) -> None:
    index = open_index(write(tmp_path / "c.jsonl", ["cat"]), tmp_path / "deep/index")
    assert index.num_documents == 1
    assert {path.name for path in tmp_path.iterdir()} == {"c.jsonl", "deep"}


def test_open_index_leaves_a_folder_that_is_no_index_alone(tmp_path: Path) -> None:
    corpus = write(tmp_path / "c.jsonl", ["cat"])
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.tex").write_text("x")
    with pytest.raises(ServiceError, match=r"mine: is not an index\. Give a new folder with --index"):
        open_index(corpus, tmp_path / "mine")
    assert (tmp_path / "mine/thesis.tex").read_text() == "x"


def test_open_index_leaves_nothing_of_a_malformed_corpus(tmp_path: Path) -> None:
    (tmp_path / "c.jsonl").write_text('{"contents": "a cat"}\n{"contents": \n')
    with pytest.raises(ServiceError, match="line 2 is not JSON"):
        open_index(tmp_path / "c.jsonl")
    assert [path.name for path in tmp_path.iterdir()] == ["c.jsonl"]


def test_open_index_takes_documents_without_words_beside_others(tmp_path: Path) -> None:
    index = open_index(write(tmp_path / "c.jsonl", ["the", "", "cat"]))
    assert [hit.row for hit in index.search("the cat", 3)] == [2]
    with pytest.raises(ServiceError, match="has no word to search for"):
        open_index(write(tmp_path / "empty.jsonl", ["the", "", "a"]))


def test_an_index_of_another_tokenizer_is_built_again(tmp_path: Path) -> None:
    corpus, manifest = write(tmp_path / "c.jsonl", ["東京に住んでいます"]), tmp_path / "c.jsonl.bm25s/manifest.json"
    open_index(corpus)
    made = json.loads(manifest.read_text())
    manifest.write_text(json.dumps(made | {"settings": made["settings"] | {"format": 2}}))
    (tmp_path / "c.jsonl.bm25s/vocab.index.json").write_text("{}")  # as an earlier version left it
    assert [hit.row for hit in open_index(corpus).search("東京", 1)] == [0]
    assert json.loads(manifest.read_text())["settings"]["format"] == 3


def test_names_alone_make_an_index(tmp_path: Path) -> None:
    # lengths are 0: 1 / (1 + 0.9 (1 - 0.4)), times idf ln(1 + 1.5 / 1.5)
    index = open_index(write(tmp_path / "c.jsonl", ["C++", "R"]))
    assert [(hit.row, hit.score) for hit in index.search("c++", 2)] == [(0, pytest.approx(0.693147 / 1.54, abs=1e-6))]


@pytest.mark.parametrize("seed", range(4))
def test_search_is_exact_whatever_the_words_add(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    words = [f"w{number}" for number in range(40)]
    weights = [rng.choice([1, 1 / (rank + 1) ** 2, 0.01]) for rank in range(40)]
    texts = [" ".join(rng.choices(words, weights, k=rng.randint(1, 12))) for _ in range(400)]
    index = open_index(write(tmp_path / "c.jsonl", texts))
    for topk in (1, 3, 10, 500):
        for size in (1, 2, 5, 30, 100):
            query = rng.choices(words, k=size)
            total = np.zeros(len(texts), dtype=np.float32)
            for word in query if size <= 64 else dict.fromkeys(query):
                number = index._vocabulary.get(word)
                if number is not None:
                    part = slice(index._starts[number], index._starts[number + 1])
                    times = 1 if size <= 64 else query.count(word)
                    total[index._rows[part]] += index._data[part] * np.float32(times)
            best = [row for row in np.argsort(-total, kind="stable")[:topk].tolist() if total[row] > 0]
            hits = index.search(" ".join(query), topk)
            assert [hit.row for hit in hits] == best
            assert [hit.score for hit in hits] == total[best].tolist()


def test_find_best_leaves_the_commonest_words_out() -> None:
    # rows 0 to 9 have the rare word, all 1000 the common one, which adds less than the rare one's third best score
    rare = Postings(np.arange(10, dtype=np.int32), np.full(10, 5, dtype=np.float32))
    common = Postings(np.arange(1000, dtype=np.int32), np.linspace(0.1, 1, 1000, dtype=np.float32))
    rows, scores = find_best([common, rare], 3, 1000)
    assert rows.tolist() == [9, 8, 7]
    assert scores.tolist() == [np.float32(5) + common.data[row] for row in (9, 8, 7)]
    rows, _ = find_best([common, rare], 12, 1000)
    assert rows.tolist() == [*range(9, -1, -1), 999, 998]


def test_a_build_that_was_killed_leaves_nothing_behind(tmp_path: Path) -> None:
    corpus = write(tmp_path / "c.jsonl", ["a cat"])
    program = (
        "import os, signal, sys; from pathlib import Path; from rl.services.retriever import index\n"
        "index._save = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        "index.open_index(Path(sys.argv[1]))"
    )
    killed = subprocess.run([sys.executable, "-c", program, str(corpus)], cwd=ROOT, timeout=60)
    assert killed.returncode == -9
    (left,) = [path for path in tmp_path.iterdir() if path.name.startswith(".")]
    assert (left / "index/documents.jsonl").exists()
    with owned_folder(".other.bm25s.building-", tmp_path):
        assert left.exists()  # it belongs to another index
    with owned_folder(".c.jsonl.bm25s.building-", tmp_path) as building:
        assert not left.exists()
        assert open_index(corpus).search("cat", 1)[0].row == 0
        assert building.exists()  # its process is alive
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c.jsonl", "c.jsonl.bm25s"]
