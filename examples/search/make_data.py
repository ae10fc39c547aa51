"""Make the search recipe's data: a corpus, questions of one and two hops with exact answers, and demonstrations.

    <output>/corpus.jsonl             countries, their capitals, and passages of Wikipedia articles
    <output>/train.parquet            training questions
    <output>/eval.parquet             evaluation questions about countries that occur in no other file
    <output>/demonstrations.parquet   conversations with searches and their real results, and direct answers

Demonstrations of questions about capitals always search. A third of the others search once per hop. The rest answer
directly and correctly, which so small a model cannot do for other countries: it has to learn from rewards when to
search.

Usage: python -m examples.search.make_data [--output data/search] [--demonstrations 192] ...
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from examples.data_files import make_from_command_line
from examples.search.sources import Country, load_countries, load_passages
from rl.services.retriever.index import Bm25Index, open_index
from rl.tools.search_tool import format_documents

TOPK = 2
"""Documents per search, as in configs/tools/search_embedded_config.yaml."""
FACTS = {
    "currency": "currency code",
    "calling_code": "international calling code",
    "domain": "internet domain",
    "demonym": "demonym",
    "area": "area in square kilometres",
    "subregion": "subregion",
}
"""Facts that questions ask for, and their wording."""
FINAL_ANSWER = "\\boxed{%s}"
SEARCH_EVERY = 3
"""One of this many demonstrations that ask for a fact searches."""


def describe(country: Country) -> list[dict[str, str]]:
    """Write the two documents of a country: one has all facts but the capital, the other has only the capital.

    Returns:
        Rows of the corpus; their titles are the country and its capital.
    """
    text = (
        f"{country.name} is a country in the subregion {country.subregion}. Its demonym is {country.demonym}, "
        f"its area is {country.area} square kilometres, its currency code is {country.currency}, "
        f"its international calling code is {country.calling_code}, and its internet domain is {country.domain}."
    )
    capital = f"{country.capital} is the capital of {country.name}."
    return [
        {"id": country.code, "title": country.name, "text": text},
        {"id": f"{country.code}-capital", "title": country.capital, "text": capital},
    ]


def ask(country: Country) -> list[dict[str, Any]]:
    """Make all questions about a country.

    Returns:
        Rows of messages, ground truth, data source (`one_hop` or `two_hops`), `fact` (a key of `FACTS`, or `capital`),
        the titles of the documents that the question needs, and the searches that find them.
    """
    name, capital = country.name, country.capital
    rows = [
        _row("capital", f"What is the capital of {name}?", capital, [capital], [f"capital of {name}"]),
        _row("capital", f"Of which country is {capital} the capital?", name, [capital], [f"{capital} capital"]),
    ]
    for fact, words in FACTS.items():
        answer, search = getattr(country, fact), f"{name} {words}"
        question = f"What is the {words} of %s?"
        rows += [
            _row(fact, question % name, answer, [name], [search]),
            _row(
                fact,
                question % f"the country whose capital is {capital}",
                answer,
                [capital, name],
                [f"{capital} capital", search],
            ),
        ]
    return rows


def _row(fact: str, question: str, answer: str, titles: list[str], searches: list[str]) -> dict[str, Any]:
    return {
        "messages": [{"role": "user", "content": question}],
        "ground_truth": answer,
        "data_source": "one_hop" if len(titles) == 1 else "two_hops",
        "fact": fact,
        "gold_titles": titles,
        "searches": searches,
    }


def find(row: dict[str, Any], index: Bm25Index) -> list[str] | None:
    """Run the searches of a question.

    Args:
        row: A row of `ask`.
        index: Index of the corpus.

    Returns:
        The search tool's text for each search; None if a search does not find its document.
    """
    results = []
    for search, title in zip(row["searches"], row["gold_titles"], strict=True):
        found = [json.loads(index.document(hit.row)) for hit in index.search(search, TOPK)]
        if title not in [document["title"] for document in found]:
            return None
        results.append(format_documents([document["contents"] for document in found]))
    return results


def demonstrate(row: dict[str, Any], results: list[str]) -> dict[str, Any]:
    """Answer a question.

    Args:
        row: A row of `ask`.
        results: Results of its searches, as `find` returns them; empty for a direct answer.

    Returns:
        The row with the whole conversation as its messages.
    """
    messages = list(row["messages"])
    for search, result in zip(row["searches"], results, strict=False):
        call = {"type": "function", "function": {"name": "search", "arguments": {"query_list": [search]}}}
        messages += [
            {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "content": result},
        ]
    messages.append({"role": "assistant", "content": FINAL_ANSWER % row["ground_truth"]})
    return {**row, "messages": messages}


def make_data(
    output: Path, countries: list[Country], passages: list[dict[str, str]], wanted: dict[str, int], seed: int
) -> None:
    """Write the corpus and the three tables.

    Args:
        output: Folder to write to.
        countries: Countries to ask about.
        passages: Further documents of the corpus.
        wanted: Number of rows of `train`, `eval` and `demonstrations`; half of each are two-hop questions.
        seed: Seed of all random choices.
    """
    output.mkdir(parents=True, exist_ok=True)
    documents = [row for country in countries for row in describe(country)] + passages
    (output / "corpus.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in documents))
    index, rng = open_index(output / "corpus.jsonl"), random.Random(seed)
    shuffled = rng.sample(countries, len(countries))
    unknown, known = shuffled[: len(shuffled) // 5], shuffled[len(shuffled) // 5 :]
    evaluation, pool = _draw(unknown, index, rng), _draw(known, index, rng)
    shown, train = pool[: wanted["demonstrations"]], pool[wanted["demonstrations"] :]
    demonstrations = [
        demonstrate(row, results if row["fact"] == "capital" or number // 2 % SEARCH_EVERY == 0 else [])
        for number, (row, results) in enumerate(shown)
    ]
    questions = {
        name: [row for row, _ in rows[: wanted[name]]] for name, rows in (("train", train), ("eval", evaluation))
    }
    for name, rows in {**questions, "demonstrations": demonstrations}.items():
        pq.write_table(pa.Table.from_pylist(rows), output / f"{name}.parquet")
        print(f"make_data: {output / name}.parquet, {len(rows)} rows")


def _draw(countries: list[Country], index: Bm25Index, rng: random.Random) -> list[tuple[dict[str, Any], list[str]]]:
    """Questions whose searches find their documents, and the results: in random order, alternating one and two hops."""
    rows = [row for country in countries for row in ask(country)]
    rng.shuffle(rows)
    found = [(row, results) for row in rows if (results := find(row, index)) is not None]
    hops = [[pair for pair in found if pair[0]["data_source"] == source] for source in ("one_hop", "two_hops")]
    return [pair for pairs in zip(*hops, strict=False) for pair in pairs]


def make_all(output: Path, *, seed: int, **numbers: int) -> None:
    """Load the sources, then `make_data`; `numbers` are `num_train`, `num_eval` and `num_demonstrations`."""
    wanted = {name.removeprefix("num_"): number for name, number in numbers.items()}
    make_data(output, load_countries(), load_passages(), wanted, seed)


if __name__ == "__main__":
    make_from_command_line(
        make_all, __doc__, Path("data/search"), train=(1024, "training questions"), eval=(200, "evaluation questions"),
        demonstrations=(192, "conversations for the cold start"),
    )  # fmt: skip
