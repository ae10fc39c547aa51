"""The tutorial's program: two searches, with notes between them. Runs where dspy is installed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import dspy

from examples.dspy_multihop.search import Index, title_of

WRITE_QUERY = """
Given a claim and some key facts, generate a follow-up search query to find the next most essential clue towards verifying or refuting the claim. The goal ultimately is to find all documents implicated by the claim.
""".strip()  # noqa: E501
TAKE_NOTES = """
Given a claim, some key facts, and new search results, identify any new learnings from the new search results, which will extend the key facts known so far about the whether the claim is true or false. The goal is to ultimately collect all facts that would help us find all documents implicated by the claim.
""".strip()  # noqa: E501
QUERY_SIGNATURE = dspy.Signature("claim, key_facts -> followup_search_query", WRITE_QUERY)
NOTES_SIGNATURE = dspy.Signature("claim, key_facts, new_search_results -> new_key_facts", TAKE_NOTES)


class ResearchHop(dspy.Module):
    """Searches with the claim, takes notes, and searches with a query written from the notes."""

    def __init__(self, index: Index, num_docs: int = 4, num_hops: int = 2, predictor: type = dspy.Predict):
        """Make the program.

        Args:
            index: Where it searches.
            num_docs: Documents per search.
            num_hops: Searches.
            predictor: `dspy.Predict`, or the tutorial's `dspy.ChainOfThought` for a model that can reason.
        """
        super().__init__()
        self.index, self.num_docs, self.num_hops = index, num_docs, num_hops
        self.generate_query = predictor(QUERY_SIGNATURE)
        self.append_notes = predictor(NOTES_SIGNATURE)

    def forward(self, claim: str) -> dspy.Prediction:
        """Research a claim; the prediction has `key_facts`, `retrieved_docs` and the last `query`."""
        key_facts: list[str] = []
        retrieved_docs: list[str] = []
        query = claim
        for hop in range(self.num_hops):
            # dspy keeps a reference to each input: with the list itself, what it trains on would hold later facts too.
            if hop:
                query = self.generate_query(claim=claim, key_facts=list(key_facts)).followup_search_query
            found = self.index.search(query, self.num_docs)
            retrieved_docs.extend(found)
            if hop == self.num_hops - 1:
                break
            notes = self.append_notes(claim=claim, key_facts=list(key_facts), new_search_results=found)
            key_facts.append(notes.new_key_facts)
        return dspy.Prediction(key_facts=key_facts, retrieved_docs=retrieved_docs, query=query)


def recall(example: dspy.Example, prediction: dspy.Prediction, trace: Any = None) -> float:
    """Share of the claim's titles that the program retrieved."""
    retrieved = {title_of(document) for document in prediction.retrieved_docs}
    titles = set(example.titles)
    return len(titles & retrieved) / len(titles)


def load_claims(path: Path) -> list[dspy.Example]:
    """Load claims of a file that `make_data` or `hover` wrote."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [dspy.Example(**row).with_inputs("claim") for row in rows]


def make_adapter() -> dspy.XMLAdapter:
    """The adapter of sampling and training. Without a fallback to JSON, a malformed answer is scored as one."""
    return dspy.XMLAdapter(use_json_adapter_fallback=False)
