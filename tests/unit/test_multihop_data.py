"""The multi-hop example's data: claims on literal countries, their documents, splits, and demonstrations."""

from __future__ import annotations

import importlib.util
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from examples.dspy_multihop.claims import (
    Land,
    Place,
    claim_about_one,
    claim_about_two,
    describe,
    draw_claims,
    read_lands,
)
from examples.dspy_multihop.hover import read_hover
from examples.dspy_multihop.make_data import is_two_hops, make_data
from examples.dspy_multihop.report import report
from examples.dspy_multihop.search import Index, open_index, title_of

ROOT = Path(__file__).resolve().parents[2]
DSPY = ROOT / ".venv-dspy/bin/python"
FRANCE = {
    "name": "France",
    "subregion": "Western Europe",
    "currencies": ["EUR"],
    "borders": ["AND", "BEL"],
    "population": 66078000,
    "capital": "Paris",
    "provinces": ["Alsace", "Centre", "Paris", "Ile-de-France", "Nord (59)"],
}
CHAD = {
    **FRANCE,
    "name": "Chad",
    "subregion": "Central Africa",
    "capital": ["N'Djamena"],
    "provinces": ["Batha", "Centre"],
}


def lands(num: int) -> list[Land]:
    """Made-up countries with five provinces each."""
    syllables = ["ba", "de", "fi", "go", "lu", "ma", "ne", "pi", "ro", "su"]
    names = [f"{a}{b}{c}".capitalize() for a in syllables for b in syllables for c in syllables]
    rng = random.Random(3)
    rng.shuffle(names)
    return [
        Land(f"{names[i]}land", f"Region {i % 3}", f"Q{i % 4}", i % 5, 1000 + i,
             [Place(f"{names[num + 5 * i + k]}shire", "province") for k in range(5)])
        for i in range(num)
    ]  # fmt: skip


def test_read_lands_keeps_places_with_names_of_their_own() -> None:
    france, chad = read_lands([FRANCE, CHAD, {**FRANCE, "name": "Nowhere", "currencies": []}])
    assert france == Land(
        "France", "Western Europe", "EUR", 2, 66078000, [Place("Alsace", "province"), Place("Paris", "capital")]
    )
    assert chad.places == [Place("Batha", "province")]


def test_describe_keeps_a_country_and_its_places_apart() -> None:
    country, alsace, _ = describe(read_lands([FRANCE, CHAD])[0])
    assert "Alsace" not in country["text"]
    assert alsace == {"title": "Alsace", "text": "Alsace is a province of France."}


def test_claims_name_places_and_never_their_countries() -> None:
    france, chad = read_lands([FRANCE, CHAD])
    one = claim_about_one(france, france.places[0], "currency", "XAF")
    assert one["claim"] == "The country with the province Alsace has the currency XAF."
    assert (one["titles"], one["query"], one["is_true"]) == (["Alsace", "France"], "France", False)
    two = claim_about_two((france, chad), (france.places[1], chad.places[0]), "neighbours")
    assert two["claim"] == "The countries with the capital Paris and the province Batha have equally many neighbours."
    assert two["titles"] == ["Paris", "Batha", "France", "Chad"]
    assert (two["notes"], two["is_true"]) == ("Paris is in France. Batha is in Chad.", True)


def test_draw_claims_uses_each_place_once_as_the_first() -> None:
    claims = draw_claims(lands(6), random.Random(0))
    assert len({claim["titles"][0] for claim in claims}) == len(claims) == 30
    assert all(land not in claim["claim"] for claim in claims for land in claim["titles"][len(claim["titles"]) // 2 :])


def test_make_data_splits_countries_and_every_claim_needs_two_hops(tmp_path: Path) -> None:
    passages = [{"id": "1", "title": "Albedo", "text": "Light that a country reflects."}]
    wanted = {"train": 12, "dev": 2, "test": 6, "shown": 4}
    make_data(tmp_path, lands(40), passages, wanted, seed=1)
    rows = {name: [json.loads(line) for line in (tmp_path / f"{name}.jsonl").open()] for name in wanted}
    assert {name: len(found) for name, found in rows.items()} == wanted
    countries = {
        name: {title for row in found for title in row["titles"][len(row["titles"]) // 2 :]}
        for name, found in rows.items()
    }
    assert not countries["test"] & (countries["train"] | countries["shown"] | countries["dev"])
    index = open_index(tmp_path / "corpus.jsonl")
    assert all(is_two_hops(row, index) for found in rows.values() for row in found)
    assert [len(row["titles"]) for row in rows["test"]] == [2, 4, 2, 4, 2, 4]


def test_search_finds_the_rare_word_and_nothing_for_stop_words() -> None:
    index = Index([f"{name} | {name} is a province of Chad." for name in ("Batha", "Lac", "Mayo", "Tandjile")])
    assert title_of(index.search("the province Mayo", 2)[0]) == "Mayo"
    assert index.search("of the", 2) == []


def test_read_hover_takes_one_claim_of_three_hops_per_question() -> None:
    facts = [{"key": "B", "value": 0}, {"key": "A", "value": 1}, {"key": "B", "value": 2}]
    row = {"claim": "c", "supporting_facts": facts, "hpqa_id": "q", "num_hops": 3}
    assert read_hover([row, row, {**row, "hpqa_id": "r", "num_hops": 2}]) == [{"claim": "c", "titles": ["A", "B"]}]


def test_report_shows_recalls_and_the_claim_that_gained_most(tmp_path: Path) -> None:
    found = {"claim": "c", "titles": ["A", "B"], "key_facts": ["f"], "query": "q"}
    for name, recall in (("before", 0.5), ("after", 1.0)):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({**found, "recall": recall}) + "\n")
    one = {"mean": 0.5, "low": 0.4, "high": 0.6}
    results = {"claims": 1, "before": one, "after": one, "gain": one, "seconds": {"dspy.GRPO": 60.0}}
    (tmp_path / "results.json").write_text(json.dumps(results))
    text = report(tmp_path)
    assert "before  0.500  (0.400 to 0.600)" in text
    assert "claims of 2 documents: 0.500 -> 1.000" in text


@pytest.mark.skipif(
    not DSPY.is_file() and importlib.util.find_spec("dspy") is None, reason="needs dspy: scripts/dspy_multihop.sh"
)
def test_demonstrations_are_what_dspy_sends_and_parses(tmp_path: Path) -> None:
    make_data(tmp_path, lands(40), [], {"train": 2, "dev": 2, "test": 2, "shown": 2}, seed=1)
    python = DSPY if DSPY.is_file() else Path(sys.executable)
    code = f"""
import json, sys
from pathlib import Path
import dspy
from examples.dspy_multihop.demonstrate import demonstrate
from examples.dspy_multihop.program import ResearchHop, load_claims, make_adapter, recall
from examples.dspy_multihop.search import open_index
data = Path({str(tmp_path)!r})
index, claims = open_index(data / "corpus.jsonl"), load_claims(data / "shown.jsonl")
for claim in claims:
    rows = demonstrate(claim, index)
    answers = [{{"new_key_facts": claim.notes}}, {{"followup_search_query": claim.query}}]
    lm = dspy.utils.DummyLM(answers, adapter=make_adapter())
    program = ResearchHop(index)
    with dspy.context(lm=lm, adapter=make_adapter()):
        assert recall(claim, program(claim=claim.claim)) == 1.0
    for row, call in zip(rows, lm.history, strict=True):
        assert row["messages"][:-1] == call["messages"]
print(len(claims))
"""
    done = subprocess.run(
        [str(python), "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        timeout=120,
    )
    assert done.stdout.strip() == "2", done.stderr[-2000:]
