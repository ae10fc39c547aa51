"""Make the search recipe's data: a corpus, questions of one and two hops with exact answers, and demonstrations.

    <output>/corpus.jsonl             countries, their capitals, and passages of Wikipedia articles
    <output>/train.parquet            questions to learn from
    <output>/test.parquet             questions about countries that occur nowhere else
    <output>/demonstrations.parquet   conversations with searches and what the retriever really answered

Usage: python -m examples.search.make_data [--output data/search] [--demonstrations 64] ...
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from examples.search.sources import Country, load_countries, load_passages
from rl.services.retriever_index import Bm25Index, open_index
from rl.tools.search_tool import format_documents

TOPK = 2
"""Documents of a search, as in configs/tools/search_embedded_config.yaml."""
FACTS = {
    "currency": "currency code",
    "calling_code": "international calling code",
    "domain": "internet domain",
    "demonym": "demonym",
    "area": "area in square kilometres",
    "subregion": "subregion",
}
"""Facts of a country that are asked for, and how."""
FINAL_ANSWERS = ("\\boxed{%s}", "The answer is \\boxed{%s}.")


def describe(country: Country, names: dict[str, str]) -> list[dict[str, str]]:
    """Write the documents of a country: one does not name the capital, the other knows nothing else.

    Args:
        country: With all facts.
        names: Names of countries by ISO code, for the borders.

    Returns:
        Rows of the corpus; their titles are the country and its capital.
    """
    borders = [names[code] for code in country.borders if code in names]
    text = (
        f"{country.name} is a country in the subregion {country.subregion} of {country.region}. "
        f"Its demonym is {country.demonym}. It has an area of {country.area} square kilometres. "
        f"Its currency code is {country.currency}, its international calling code is {country.calling_code}, "
        f"and its internet domain is {country.domain}."
    )
    if borders:
        text += f" It borders {', '.join(borders)}."
    capital = f"{country.capital} is the capital of {country.name}."
    return [
        {"id": country.code, "title": country.name, "text": text},
        {"id": f"{country.code}-capital", "title": country.capital, "text": capital},
    ]


def ask(country: Country) -> list[dict[str, Any]]:
    """Make all questions about a country.

    Args:
        country: With all facts.

    Returns:
        Rows of messages, ground truth, data source (`one_hop` or `two_hops`), the titles of the documents it needs,
        and the searches that find them.
    """
    name, capital = country.name, country.capital
    rows = [
        _row(f"What is the capital of {name}?", capital, [capital], [f"capital of {name}"]),
        _row(f"Of which country is {capital} the capital?", name, [capital], [f"{capital} capital"]),
    ]
    for fact, words in FACTS.items():
        answer, search = getattr(country, fact), f"{name} {words}"
        rows += [
            _row(f"What is the {words} of {name}?", answer, [name], [search]),
            _row(
                f"What is the {words} of the country whose capital is {capital}?",
                answer,
                [capital, name],
                [f"{capital} capital", search],
            ),
        ]
    return rows


def _row(question: str, answer: str, titles: list[str], searches: list[str]) -> dict[str, Any]:
    return {
        "messages": [{"role": "user", "content": question}],
        "ground_truth": answer,
        "data_source": "one_hop" if len(titles) == 1 else "two_hops",
        "gold_titles": titles,
        "searches": searches,
    }


def demonstrate(row: dict[str, Any], number: int, index: Bm25Index) -> dict[str, Any] | None:
    """Answer a question by its searches, with what the retriever answers.

    Args:
        row: A row of `ask`.
        number: Chooses the wording of the answer.
        index: Of the corpus.

    Returns:
        The row with the whole conversation as its messages; None where a search does not find its document.
    """
    messages = list(row["messages"])
    for search, title in zip(row["searches"], row["gold_titles"], strict=True):
        found = [json.loads(index.document(hit.row)) for hit in index.search(search, TOPK)]
        if title not in [document["title"] for document in found]:
            return None
        call = {"type": "function", "function": {"name": "search", "arguments": {"query_list": [search]}}}
        result = format_documents([document["contents"] for document in found])
        messages += [
            {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "content": result},
        ]
    answer = FINAL_ANSWERS[number % len(FINAL_ANSWERS)] % row["ground_truth"]
    return {**row, "messages": [*messages, {"role": "assistant", "content": answer}]}


def make_data(
    output: Path, countries: list[Country], passages: list[dict[str, str]], wanted: dict[str, int], seed: int
) -> None:
    """Write the corpus and the three tables.

    Args:
        output: Folder to write to.
        countries: What is asked about.
        passages: Further documents.
        wanted: Rows of `train`, `test` and `demonstrations`, each with half its questions of two hops.
        seed: Of all choices.
    """
    output.mkdir(parents=True, exist_ok=True)
    names = {country.code: country.name for country in countries}
    documents = [row for country in countries for row in describe(country, names)] + passages
    (output / "corpus.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in documents))
    index, rng = open_index(output / "corpus.jsonl"), random.Random(seed)
    shuffled = rng.sample(countries, len(countries))
    held_out, known = shuffled[: len(shuffled) // 5], shuffled[len(shuffled) // 5 :]
    test, pool = _draw(held_out, rng), _draw(known, rng)
    shown = [made for n, row in enumerate(pool) if (made := demonstrate(row, n // 2, index)) is not None]
    shown = shown[: wanted["demonstrations"]]
    asked = {row["messages"][0]["content"] for row in shown}
    train = [row for row in pool if row["messages"][0]["content"] not in asked]
    for name, rows in (("train", train), ("test", test), ("demonstrations", shown)):
        pq.write_table(pa.Table.from_pylist(rows[: wanted[name]]), output / f"{name}.parquet")
        print(f"make_data: {output / name}.parquet, {min(len(rows), wanted[name])} rows")


def _draw(countries: list[Country], rng: random.Random) -> list[dict[str, Any]]:
    """All questions in random order, those of one and of two hops by turns."""
    rows = [row for country in countries for row in ask(country)]
    rng.shuffle(rows)
    hops = [[row for row in rows if row["data_source"] == source] for source in ("one_hop", "two_hops")]
    return [row for pair in zip(*hops, strict=False) for row in pair]


def main() -> None:
    """Parse the command line and make the data, unless it was made with these very arguments before."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("data/search"))
    parser.add_argument("--train", type=int, default=1024)
    parser.add_argument("--test", type=int, default=200)
    parser.add_argument("--demonstrations", type=int, default=64)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    wanted = {name: getattr(given, name) for name in ("train", "test", "demonstrations")}
    manifest, made = given.output / "manifest.json", {**wanted, "seed": given.seed}
    if manifest.is_file() and json.loads(manifest.read_text()) == made:
        print(f"make_data: {given.output} is there")
        return
    make_data(given.output, load_countries(), load_passages(), wanted, given.seed)
    manifest.write_text(json.dumps(made) + "\n")


if __name__ == "__main__":
    main()
