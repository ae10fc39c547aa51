from __future__ import annotations

import json
from pathlib import Path

import pytest

from rl.services.retriever.index import open_index
from rl.services.retriever.server import open_backend
from rl.services.retriever.tokenizer import Tokenizer, split

DOCUMENTS = [
    "東京に住んでいます。犬が好きです。",  # 0
    "我爱北京天安门，天安门上太阳升。",  # 1
    "서울은 대한민국의 수도이다.",  # 2
    "แมวกินปลาในบ้าน",  # 3
    "हिन्दी भाषा भारत में बोली जाती है।",  # 4
    "C++ templates for beginners.",  # 5
    "The C language, plainly.",  # 6
    "Statistics with R: a primer",  # 7
    "F# and C# on .NET 8",  # 8
    "The U.S. economy, said AT&T.",  # 9
    "Python 3.5 came in 2015, 1,000 changes.",  # 10
    "Rock'n'roll was O'Brien's well-known hobby; don't stop.",  # 11
    "ｶﾞﾗｽ と Ｃａｆｅ\u0301",  # 12
    "شَجَرَة خضراء",  # 13
]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("words") / "c.jsonl"
    path.write_text("".join(json.dumps({"contents": text}) + "\n" for text in DOCUMENTS))
    return path


@pytest.mark.parametrize("backend", ["bm25s", "tantivy"])
@pytest.mark.parametrize(
    ("query", "best"),
    [
        ("東京", [0]),
        ("犬", [0]),
        ("好き", [0]),
        ("どこに住んでいますか", [0]),
        ("北京", [1]),
        ("太阳", [1]),
        ("대한민국", [2]),
        ("서울", [2]),
        ("แมว", [3]),
        ("हिन्दी", [4]),
        ("भाषा", [4]),
        ("C++", [5]),
        ("learn c++ quickly", [5]),
        ("C", [6]),
        ("R", [7]),
        ("r programming", [7]),
        ("C#", [8]),
        ("f#", [8]),
        (".NET", [8]),
        ("U.S.", [9]),
        ("u.s", [9]),
        ("AT&T", [9]),
        ("3.5", [10]),
        ("1,000", [10]),
        ("O'Brien", [11]),
        ("O\u2019Brien", [11]),
        ("well known", [11]),
        ("ガラス", [12]),
        ("café", [12]),
        ("شجرة", [13]),
        ("the of a", []),
        ("I", []),
        ("!? ++", []),
        ("火", []),
    ],
)
def test_a_query_finds_the_document(corpus: Path, backend: str, query: str, best: list[int]) -> None:
    if backend == "tantivy":
        pytest.importorskip("tantivy")
    index = open_backend(backend, corpus)
    assert [hit.row for hit in index.search_batch([query], 1)[0]] == best
    assert index.has_words(query) is (query not in ("the of a", "I", "!? ++"))


@pytest.mark.parametrize(
    ("text", "words", "names"),
    [
        ("Plan B is R.", ["plan", "is"], ["b", "r"]),
        ("I'm a dog's", ["dog"], []),
        ("C++, (C#) c+ #c", [], ["c++", "c#", "c", "c"]),
        ("notepad++ node.js", ["notepad", "node", "js"], ["notepad++"]),
        ("ASP.NET .NET", ["asp", "net", "net"], [".net"]),
        ("v1.2.3 10.25 3.5% 2,5", ["v1", "10", "25"], ["v1.2.3", "3.5", "2,5"]),
        ("U.S.A., Ph.D. R&D", ["ph"], ["u.s.a", "ph.d", "r&d"]),
        ("e-mail X-ray", ["mail", "ray"], ["e", "x"]),
        ("end.Next", ["end", "next"], []),
        ("日本2024年 猫 カー", ["日本", "年", "猫", "カー", "2024"], ["日", "本"]),
        ("물은 iPhone手机", ["물은", "手机", "iphone"], ["물", "은", "手", "机"]),
        ("กา", ["กา"], []),
        ("שָׁלוֹם", ["שלום"], []),
    ],
)
def test_split_gives_words_and_names(text: str, words: list[str], names: list[str]) -> None:
    assert split(text) == (words, names)


def test_find_stems_words_and_leaves_names() -> None:
    assert Tokenizer().tokenize("The running dogs of the U.S.") == ["run", "dog", "u.s"]


def test_lengths_do_not_count_names(tmp_path: Path) -> None:
    """So that English has the same scores as without them."""
    scores = []
    for number, text in enumerate(["cat dog", "cat dog R C++ U.S. 3.5"]):
        corpus = tmp_path / f"{number}.jsonl"
        corpus.write_text(json.dumps({"contents": text}) + "\n" + json.dumps({"contents": "bird"}) + "\n")
        scores.append(open_index(corpus).search("cat", 1)[0].score)
    assert scores[0] == scores[1]
