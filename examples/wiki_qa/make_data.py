"""Make the data of the Wiki recipe: articles, and questions about films behind TRL's worked examples.

    <output>/corpus.jsonl            17,472 films, and about a hundred Wikipedia articles
    <output>/train.parquet           training questions
    <output>/eval.parquet            evaluation questions about films that occur in no other file, then those of
                                     wikipedia.json about the Wikipedia articles
    <output>/demonstrations.parquet  conversations whose query is the film's title, or sometimes its title and year

Usage: python -m examples.wiki_qa.make_data [--output data/wiki_qa] ...
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from examples.data_files import make_from_command_line, write_rows
from examples.search.sources import load_articles
from examples.wiki_qa.films import Film, describe, load_films
from examples.wiki_qa.task import PROMPT
from rl.services.retriever.index import Bm25Index, open_index

ASKED = {"directed": "director", "wrote": "writer"}
"""Verbs of the questions, and the fact of a film that is the answer."""
YEAR_EVERY = 4
"""One of this many demonstrations has the film's year in its query, so that the model sometimes samples it."""
WIKIPEDIA = Path(__file__).with_name("wikipedia.json")
"""Questions about the Wikipedia articles, and their answers."""


def keep_paragraphs(article: dict[str, str]) -> dict[str, str]:
    """Leave out an article's captions of pictures and its headings: lines of fewer than eight words."""
    lines = [line for line in article["text"].splitlines() if len(line.split()) >= 8 and "|" not in line[:60]]
    return {**article, "text": "\n".join(lines)}


def ask(film: Film, index: Bm25Index) -> Iterator[dict[str, Any]]:
    """Make the questions about a film that one search can answer.

    Yields:
        Rows of messages, ground truth and data source: `title` if the title finds the article, `title_and_year` if
        only title and year find it.
    """
    article = describe(film)
    finds = [query for query in (film.title, f"{film.title} {film.year}") if _best(index, query) == article["id"]]
    for verb, fact in ASKED.items():
        answer = getattr(film, fact)
        is_single = answer and "," not in answer and answer not in film.title
        if is_single and film.director != film.writer and finds:
            source = "title" if finds[0] == film.title else "title_and_year"
            yield make_row(f"Who {verb} the {film.year} film {film.title}?", answer, source)


def make_row(question: str, answer: str, source: str) -> dict[str, Any]:
    """Write a row; the prompt ends with the question."""
    return {"messages": [{"role": "user", "content": PROMPT + question}], "ground_truth": answer, "data_source": source}


def demonstrate(row: dict[str, Any], film: Film, query: str, guess: str) -> dict[str, Any]:
    """Answer a question whose article the film's title finds.

    Args:
        row: A row of `ask`, of the data source `title`.
        film: Its film.
        query: Of the request.
        guess: Written before the request. It is wrong, as so small a model's guesses are.
    """
    call = {"type": "function", "function": {"name": "Wiki", "arguments": {"query_list": [query]}}}
    turns = [
        {"role": "assistant", "content": f"\nA: {guess}\nA2: ", "tool_calls": [call]},
        {"role": "tool", "content": describe(film)["text"].splitlines()[0]},
        {"role": "assistant", "content": f"\nResult={row['ground_truth']}<submit>"},
    ]
    return {**row, "messages": row["messages"] + turns}


def _best(index: Bm25Index, query: str) -> str | None:
    hits = index.search(query, 1)
    return json.loads(index.document(hits[0].row))["id"] if hits else None


def make_data(
    output: Path, films: list[Film], articles: list[dict[str, str]], wanted: dict[str, int], seed: int
) -> None:
    """Write the corpus and the questions.

    Args:
        output: Folder to write to.
        films: Films to describe; those that are known are asked about, each once.
        articles: Further documents of the corpus.
        wanted: Number of rows of `train`, `eval` and `demonstrations`. Those of `train` and `eval` are of both data
            sources in turn.
        seed: Seed of all random choices.
    """
    write_rows(output / "corpus.jsonl", [*map(describe, films), *map(keep_paragraphs, articles)])
    index, rng = open_index(output / "corpus.jsonl"), random.Random(seed)
    known = [film for film in films if film.is_known]
    kinds: dict[str, list[tuple[dict[str, Any], Film]]] = {"title": [], "title_and_year": []}
    for film in rng.sample(known, len(known)):
        if rows := list(ask(film, index)):
            row = rng.choice(rows)
            kinds[row["data_source"]].append((row, film))
    num_shown = wanted["demonstrations"]
    shown, kinds["title"] = kinds["title"][:num_shown], kinds["title"][num_shown:]
    demonstrations = [
        demonstrate(row, film, film.title if number % YEAR_EVERY else f"{film.title} {film.year}", other.director)
        for number, ((row, film), (_, other)) in enumerate(zip(shown, shown[1:] + shown[:1], strict=True))
    ]
    drawn = [row for pairs in zip(*kinds.values(), strict=False) for row, _ in pairs]
    others = [make_row(*pair, "wikipedia") for pair in json.loads(WIKIPEDIA.read_text("utf-8")).items()]
    write_rows(output / "demonstrations.parquet", demonstrations)
    write_rows(output / "eval.parquet", drawn[: wanted["eval"]] + others)
    write_rows(output / "train.parquet", drawn[wanted["eval"] :][: wanted["train"]])


def make_all(output: Path, *, seed: int, **numbers: int) -> None:
    """Load the sources, then `make_data`; `numbers` are `num_train`, `num_eval` and `num_demonstrations`."""
    wanted = {name.removeprefix("num_"): number for name, number in numbers.items()}
    make_data(output, load_films(), load_articles(), wanted, seed)


if __name__ == "__main__":
    make_from_command_line(
        make_all, __doc__, Path("data/wiki_qa"), train=(600, "training questions"),
        eval=(160, "evaluation questions about films"), demonstrations=(96, "conversations for the cold start"),
    )  # fmt: skip
