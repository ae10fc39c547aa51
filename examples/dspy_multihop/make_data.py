"""Make the multi-hop example's data: a corpus, and claims whose documents are known.

    <output>/corpus.jsonl        countries, their provinces and capitals, and passages of Wikipedia articles
    <output>/train.jsonl         claims to train on
    <output>/dev.jsonl           claims about other countries, for the validation of `dspy.GRPO`
    <output>/test.jsonl          claims about further countries, for the recall before and after
    <output>/shown.jsonl         claims for the demonstrations, about countries of the training claims

The first search with a claim finds the places that it names, and none of the countries that they are in. A search with
the countries' names finds these. So a program that searches once has recall 0.5, and one that reads has recall 1.

Usage: python -m examples.dspy_multihop.make_data [--output data/dspy_multihop] ...
"""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

from examples.data_files import make_from_command_line
from examples.dspy_multihop.claims import Land, describe, draw_claims, read_lands
from examples.dspy_multihop.search import Index, open_index, title_of
from examples.search.sources import load_country_records, load_passages

NUM_DOCS = 4
"""Documents per search, as in `ResearchHop`."""
SPLITS = {"train": 0.6, "dev": 0.15, "test": 0.25}
"""Shares of the countries."""


def is_two_hops(claim: dict[str, Any], index: Index) -> bool:
    """Whether the claim finds exactly its places, and its query the countries."""
    places, countries = _halves(claim["titles"])
    first, second = (_titles(index, claim[key]) for key in ("claim", "query"))
    return places <= first and not countries & first and countries <= second


def _halves(titles: list[str]) -> tuple[set[str], set[str]]:
    half = len(titles) // 2
    return set(titles[:half]), set(titles[half:])


def _titles(index: Index, query: str) -> set[str]:
    return {title_of(document) for document in index.search(query, NUM_DOCS)}


def make_data(
    output: Path, lands: list[Land], passages: list[dict[str, str]], wanted: dict[str, int], seed: int
) -> None:
    """Write the corpus, its index and the claims.

    Args:
        output: Folder to write to.
        lands: Countries to make claims about.
        passages: Further documents of the corpus; those with a title of a country or place are left out.
        wanted: Number of claims of `train`, `dev`, `test` and `shown`; half of each need two documents, half four.
        seed: Seed of all random choices.
    """
    output.mkdir(parents=True, exist_ok=True)
    described = [row for land in lands for row in describe(land)]
    titles = {row["title"] for row in described}
    others = [row for row in passages if row["title"] not in titles]
    _write(output / "corpus.jsonl", [{"title": row["title"], "text": row["text"]} for row in described + others])
    shutil.rmtree(output / "corpus.bm25s", ignore_errors=True)
    index, rng = open_index(output / "corpus.jsonl"), random.Random(seed)
    claims = {name: _draw(part, index, rng) for name, part in _split(lands, rng).items()}
    claims["shown"], claims["train"] = claims["train"][: wanted["shown"]], claims["train"][wanted["shown"] :]
    for name, rows in claims.items():
        _write(output / f"{name}.jsonl", rows[: wanted[name]])
        print(f"make_data: {output / name}.jsonl, {len(rows[: wanted[name]])} claims")


def _split(lands: list[Land], rng: random.Random) -> dict[str, list[Land]]:
    shuffled, parts, start = rng.sample(lands, len(lands)), {}, 0.0
    for name, share in SPLITS.items():
        end = start + share * len(lands)
        parts[name] = shuffled[round(start) : round(end)]
        start = end
    return parts


def _draw(lands: list[Land], index: Index, rng: random.Random) -> list[dict[str, Any]]:
    """Claims that pass `is_two_hops`, alternately with two and with four documents."""
    found = [claim for claim in draw_claims(lands, rng) if is_two_hops(claim, index)]
    kinds = [[claim for claim in found if len(claim["titles"]) == number] for number in (2, 4)]
    return [claim for pair in zip(*kinds, strict=False) for claim in pair]


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def make_all(output: Path, *, seed: int, **numbers: int) -> None:
    """Load the sources, then `make_data`; `numbers` are `num_train`, `num_dev`, `num_test` and `num_shown`."""
    wanted = {name.removeprefix("num_"): number for name, number in numbers.items()}
    make_data(output, read_lands(load_country_records()), load_passages(), wanted, seed)


if __name__ == "__main__":
    make_from_command_line(
        make_all, __doc__, Path("data/dspy_multihop"), train=(600, "training claims"), dev=(60, "development claims"),
        test=(200, "held-out claims"), shown=(64, "claims with demonstrations"),
    )  # fmt: skip
