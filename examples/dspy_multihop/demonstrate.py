"""Write demonstrations for the cold start: what dspy sends for a claim, and what an expert answers.

Each claim of `shown.jsonl` gives a conversation for each predictor of the program, rendered by its adapter, so that the
model learns the form in which it will be asked and has to answer.

Usage: python -m examples.dspy_multihop.demonstrate [--data data/dspy_multihop]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import dspy

from examples.dspy_multihop.program import NOTES_SIGNATURE, QUERY_SIGNATURE, load_claims, make_adapter
from examples.dspy_multihop.search import Index, open_index

NUM_DOCS = 4


def demonstrate(claim: dspy.Example, index: Index) -> list[dict[str, Any]]:
    """Answer the program's two questions about a claim.

    Args:
        claim: A claim with the expert's `notes` and `query`.
        index: Where the program searches.

    Returns:
        Two rows of `messages`, `ground_truth` and `data_source`: for `append_notes` and for `generate_query`.
    """
    found = index.search(claim.claim, NUM_DOCS)
    asked = [
        (NOTES_SIGNATURE, {"key_facts": [], "new_search_results": found}, {"new_key_facts": claim.notes}),
        (QUERY_SIGNATURE, {"key_facts": [claim.notes]}, {"followup_search_query": claim.query}),
    ]
    return [_render(signature, {"claim": claim.claim, **inputs}, outputs) for signature, inputs, outputs in asked]


def _render(signature: type[dspy.Signature], inputs: dict[str, Any], outputs: dict[str, str]) -> dict[str, Any]:
    row = make_adapter().format_finetune_data(signature=signature, inputs=inputs, outputs=outputs, demos=[])
    (name,) = outputs
    return {"messages": row["messages"], "ground_truth": outputs[name], "data_source": name}


def main() -> None:
    """Parse the command line and write the demonstrations."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("data/dspy_multihop"))
    data = parser.parse_args().data
    index = open_index(data / "corpus.jsonl")
    rows = [row for claim in load_claims(data / "shown.jsonl") for row in demonstrate(claim, index)]
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    (data / "demonstrations.jsonl").write_text("".join(lines), encoding="utf-8")
    print(f"demonstrate: {data / 'demonstrations.jsonl'}, {len(rows)} conversations")


if __name__ == "__main__":
    main()
