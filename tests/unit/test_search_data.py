"""The search recipe's data: its readers on literal inputs, and small versions of its files."""

from __future__ import annotations

import bz2
import json
from pathlib import Path

import pytest

from examples.search.make_data import ask, make_data
from examples.search.sources import Country, read_countries, read_passages
from rl.data.prompts import load_prompts
from rl.rewards.search import search_em
from rl.types import Prompt, StopReason, ToolResult, ToolStatus, Trajectory, Turn

KABUL = {
    "name": "Afghanistan",
    "capital": "Kabul",
    "subregion": "Southern Asia",
    "demonym": "Afghan",
    "area": 652230.0,
    "ISO": {"alpha2": "AF", "alpha3": "AFG"},
    "currencies": ["AFN"],
    "callingCodes": ["93"],
    "tld": [".af", "x"],
}
DUMP = """<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.10/">
<page><title>Anarchism</title><ns>0</ns><id>12</id>
<revision><id>99</id>
<text>{{Infobox|x=1}}'''Anarchism''' is a [[political philosophy|philosophy]]&lt;ref&gt;Not this.&lt;/ref&gt; %s.</text>
</revision>
</page>
<page><title>Old</title><ns>0</ns><id>13</id><redirect title="New"/><revision><text>#REDIRECT</text></revision></page>
<page><title>Talk:Anarchism</title><ns>1</ns><id>14</id><revision><text>Talk.</text></revision></page>
</mediawiki>"""


def countries(num: int) -> list[Country]:
    """Made-up countries with names that no other contains."""
    syllables = ["ba", "de", "fi", "go", "lu", "ma", "ne", "pi", "ro", "su"]
    names = [f"{a}{b}".capitalize() for a in syllables for b in syllables]
    return [
        Country(f"C{i}", f"{names[i]}land", f"{names[i]}ville", "Southern Asia", f"{names[i]}ese", str(900 + i),
                f"Q{i}", str(i), f".c{i}")
        for i in range(num)
    ]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("search")
    passages = [{"id": "wiki-1-0", "title": "Capital", "text": "A capital is a city."}]
    make_data(output, countries(20), passages, {"train": 60, "eval": 30, "demonstrations": 12}, seed=1)
    return output


def test_read_countries_keeps_those_with_one_value_of_each_fact() -> None:
    two_codes = {**KABUL, "name": "B", "capital": "b", "callingCodes": ["1", "2"]}
    city_state = {**KABUL, "name": "Singapore", "capital": "Singapore"}
    no_capital = {**KABUL, "name": "C", "capital": ""}
    two_capitals = {**KABUL, "name": "D", "capital": ["d", "e"]}
    (country,) = read_countries([KABUL, two_codes, city_state, no_capital, two_capitals])
    assert country == Country("AFG", "Afghanistan", "Kabul", "Southern Asia", "Afghan", "652230", "AFN", "93", ".af")


def test_read_passages_cuts_the_plain_text_of_articles() -> None:
    dump = bz2.compress((DUMP % " ".join(["word"] * 50)).encode())
    first, second = read_passages(dump)
    assert (first["id"], first["title"], second["id"]) == ("wiki-12-0", "Anarchism", "wiki-12-40")
    assert first["text"] == "Anarchism is a philosophy" + " word" * 36
    assert second["text"] == " ".join(["word"] * 13) + " word."


def test_ask_makes_questions_of_one_and_two_hops() -> None:
    (country,) = read_countries([KABUL])
    rows = {row["messages"][0]["content"]: row for row in ask(country)}
    assert len(rows) == 14
    one = rows["What is the capital of Afghanistan?"]
    assert (one["ground_truth"], one["gold_titles"], one["data_source"]) == ("Kabul", ["Kabul"], "one_hop")
    two = rows["What is the international calling code of the country whose capital is Kabul?"]
    assert (two["ground_truth"], two["gold_titles"]) == ("93", ["Kabul", "Afghanistan"])
    assert (two["data_source"], len(two["searches"])) == ("two_hops", 2)


def test_evaluation_questions_are_about_other_countries(folder: Path) -> None:
    def titles(name: str) -> set[str]:
        return {title for p in load_prompts(folder / f"{name}.parquet") for title in p.extra["gold_titles"]}

    assert titles("eval")
    assert not titles("eval") & (titles("train") | titles("demonstrations"))


def test_no_question_occurs_twice_and_half_have_two_hops(folder: Path) -> None:
    prompts = [p for name in ("train", "eval", "demonstrations") for p in load_prompts(folder / f"{name}.parquet")]
    questions = [p.messages[0]["content"] for p in prompts]
    assert len(questions) == len(set(questions)) == 60 + 30 + 12
    assert sum(p.data_source == "two_hops" for p in prompts) in range(48, 55)


def test_demonstrations_that_search_show_what_the_retriever_answers_and_score_full_marks(folder: Path) -> None:
    prompts = [p for p in load_prompts(folder / "demonstrations.parquet") if len(p.messages) > 2]
    assert {p.data_source for p in prompts} == {"one_hop", "two_hops"}
    for prompt in prompts:
        *searches, answer = prompt.messages[1:]
        assert [m["role"] for m in searches] == ["assistant", "tool"] * len(prompt.extra["gold_titles"])
        assert answer["content"] == f"\\boxed{{{prompt.ground_truth}}}"
        results = [ToolResult("search", m["content"], ToolStatus.OK) for m in searches if m["role"] == "tool"]
        turns = [Turn("", 1, results=results), Turn(answer["content"], 1)]
        made = Trajectory(as_question(prompt), 0, [], turns, StopReason.FINISHED)
        assert search_em(made) == {"score": 1.0, "f1": 1.0, "recall": 1.0}


def test_of_three_demonstrations_two_answer_at_once_unless_they_are_about_capitals(folder: Path) -> None:
    prompts = load_prompts(folder / "demonstrations.parquet")
    at_once = [number for number, p in enumerate(prompts) if len(p.messages) == 2]
    assert all(prompts[n].messages[1]["content"] == f"\\boxed{{{prompts[n].ground_truth}}}" for n in at_once)
    facts = [number for number, p in enumerate(prompts) if p.extra["fact"] != "capital"]
    assert at_once == [number for number in facts if number not in (0, 1, 6, 7)]


def test_questions_whose_document_is_not_found_are_left_out(tmp_path: Path) -> None:
    hidden = {"title": "Badeville", "text": "Badeville is the capital capital of Badeland Badeland."}
    passages = [{"id": str(number), **hidden, "title": f"Badeville {number}"} for number in range(2)]
    wanted = {"train": 100, "eval": 100, "demonstrations": 0}
    make_data(tmp_path, countries(20), passages, wanted, seed=1)
    rows = [p for name in ("train", "eval") for p in load_prompts(tmp_path / f"{name}.parquet")]
    assert not any("Badeville" in p.extra["gold_titles"] for p in rows)


def test_corpus_names_the_capital_in_one_document_alone(folder: Path) -> None:
    rows = [json.loads(line) for line in (folder / "corpus.jsonl").read_text().splitlines()]
    assert len(rows) == 41
    assert sum("Badeville" in row["text"] for row in rows) == 1


def as_question(prompt: Prompt) -> Prompt:
    return Prompt(prompt.id, prompt.messages[:1], prompt.ground_truth, prompt.data_source, prompt.extra)
