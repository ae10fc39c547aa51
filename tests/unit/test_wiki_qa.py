"""TRL's Wiki task: films, questions, the tool as configured, and the reward."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from aiohttp.test_utils import TestServer

from examples.wiki_qa.films import Film, describe, read_films
from examples.wiki_qa.make_data import ask, keep_paragraphs, make_data
from examples.wiki_qa.task import PROMPT, answered
from rl.chat.parsers import PARSERS
from rl.services.retriever.index import open_index
from rl.services.retriever.server import RetrieverServer
from rl.tools.registry import load_toolbox
from rl.types import Prompt, StopReason, ToolCall, ToolResult, ToolStatus, Trajectory, Turn

TOOLS = Path(__file__).resolve().parents[2] / "configs/tools/wiki.yaml"
ARTICLE = {
    "id": "wiki-1",
    "title": "Ballet",
    "text": "thumb|A dancer on a stage in Paris in 1890\nHistory\n" + "word " * 8,
}
ROCKY = Film(1, "Rocky", 1976, "John G. Avildsen", "Sylvester Stallone", "Burt Young", "Drama, Sport", "France", True)


def film(number: int, title: str, year: int, cast: str = "", is_known: bool = True) -> Film:
    return Film(number, title, year, f"Director {number}", f"Writer {number}", cast, "", "", is_known)


def write(path: Path, films: list[Film]) -> None:
    make_data(path, films, [ARTICLE], {"train": 2, "eval": 2, "demonstrations": 2}, seed=1)


def test_read_films_keeps_those_with_title_and_year(tmp_path: Path) -> None:
    columns = 'ID, Title, Year, Director, Writer, "Cast", Genre, Country'
    with sqlite3.connect(tmp_path / "movies.db") as connection:
        connection.execute(f"CREATE TABLE omdb ({columns})")
        connection.execute("CREATE TABLE tomatoes (ID, Reviews)")
        facts = [(1, "Rocky", 1976, "A", None, "B, C", "Drama", "France"), (2, "Jaws", None, *[None] * 5)]
        connection.executemany(f"INSERT INTO omdb ({columns}) VALUES ({', '.join('?' * 8)})", facts)
        connection.executemany("INSERT INTO tomatoes VALUES (?, ?)", [(1, 10), (2, 50)])
    connection.close()
    films = list(read_films((tmp_path / "movies.db").read_bytes()))
    assert films == [Film(1, "Rocky", 1976, "A", "", "B, C", "Drama", "France", True)]


def test_an_article_begins_with_a_paragraph_of_facts() -> None:
    assert describe(ROCKY) == {
        "id": "film-1",
        "title": "Rocky",
        "text": "Rocky is a 1976 drama and sport film from France, directed by John G. Avildsen and written by "
        "Sylvester Stallone.\nThe cast are Burt Young.",
    }
    assert describe(Film(2, "Jaws", 1975, "", "", "", "", "", False))["text"] == "Jaws is a 1975 film."


def test_captions_and_headings_are_no_paragraphs() -> None:
    assert keep_paragraphs(ARTICLE) == {"id": "wiki-1", "title": "Ballet", "text": "word " * 8}


def test_a_question_says_what_finds_its_article(tmp_path: Path) -> None:
    films = [film(1, "Heat", 1986), film(2, "Heat", 1995), film(3, "Juno", 2007, "Ellen Page"), film(4, "Rigor", 2013)]
    write(tmp_path, films)
    index = open_index(tmp_path / "corpus.jsonl")
    first, second, third = (list(ask(of_list, index)) for of_list in films[:3])
    assert [row["data_source"] for row in (*first, *second, *third)] == ["title"] * 2 + ["title_and_year"] * 2 + [
        "title"
    ] * 2
    assert second[1] == {
        "messages": [{"role": "user", "content": f"{PROMPT}Who wrote the 1995 film Heat?"}],
        "ground_truth": "Writer 2",
        "data_source": "title_and_year",
    }


def test_films_of_the_evaluation_are_in_no_other_file(tmp_path: Path) -> None:
    films = [film(number, f"Title{number // 2}", 1950 + number) for number in range(20)]
    write(tmp_path, [*films, film(20, "Unknown", 1950, is_known=False)])
    train, evaluation = (pq.read_table(tmp_path / f"{name}.parquet").to_pylist() for name in ("train", "eval"))
    assert [row["data_source"] for row in evaluation[:2]] == ["title", "title_and_year"]
    assert [row["data_source"] for row in evaluation[2:]] == ["wikipedia"] * 30
    numbers = {row["ground_truth"].split()[1] for row in evaluation[:2] + train}
    assert len(numbers) == 4 and "20" not in numbers


async def test_the_tool_shows_the_first_paragraph_of_the_best_article(tmp_path: Path) -> None:
    write(tmp_path, [ROCKY, film(2, "Rocky Road", 1999)])
    corpus = tmp_path / "corpus.jsonl"
    async with TestServer(RetrieverServer(open_index(corpus), corpus, "bm25s").application()) as server:
        address = {"retrieval_service_url": str(server.make_url("/retrieve")), "corpus_path": ""}
        tools = load_toolbox(TOOLS, overrides={"Wiki": address})
        (call,) = PARSERS["text_environment"].for_tools(tools.schemas).parse("<request><Wiki>Rocky 1976<call>")
        session = tools.open_session("train-1/0")
        found, nothing = await session.execute(call), await session.execute(ToolCall("Wiki", {"query_list": ["zebra"]}))
        await session.close()
        await tools.close()
    assert found.text == describe(ROCKY)["text"].splitlines()[0]
    assert (nothing.status, nothing.text) == (ToolStatus.OK, "No documents were found.")


@pytest.mark.parametrize(
    ("texts", "result", "scores"),
    [
        (["\nA: x\nA2: <request><Wiki>Rocky<call>", "\nResult=John Doe<submit>"], "by John Doe.", (1.0, 1.0, 1.0)),
        (["\nA: x\nA2: <request><Wiki>Rocky<call>", "\nResult=by john doe.<submit>"], "by John Doe.", (1.0, 0.0, 1.0)),
        (["\nA: John Doe\nA2: <request><Wiki>Rocky<call>", "\nResult=x<submit>"], "by John Doe.", (0.0, 0.0, 1.0)),
        (["\nA: x\nA2: <request><Wiki>Rocky<call>", "\nResult=John Doe<submit>"], "Rocky Road.", (1.0, 1.0, 0.0)),
        (["\nA: John Doe\n"], None, (1.0, 0.0, 0.0)),
        ([], None, (0.0, 0.0, 0.0)),
    ],
)
def test_the_reward_reads_the_last_text(texts: list[str], result: str | None, scores: tuple[float, ...]) -> None:
    turns = [Turn(text, 1) for text in texts]
    if result is not None:
        turns[0].results.append(ToolResult("Wiki", result, ToolStatus.OK))
    prompt = Prompt("train-0", [{"role": "user", "content": "Q"}], "John Doe", "title")
    metrics = answered(Trajectory(prompt, 0, [], turns, StopReason.FINISHED))
    assert tuple(metrics.values()) == scores
