"""Make the data: questions with their answers, and demonstrations for the cold start.

A row has `messages`, `ground_truth` and `data_source`. Other columns reach the reward in `trajectory.prompt.extra`.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

CONSONANTS, VOWELS = "bcdfghklmnprstvwz", "aeio"
CALL_EVERY = 2
"""One of this many demonstrations calls the tool. The others answer at once; rewards teach which way pays off."""


def make_row(rng: random.Random) -> dict[str, Any]:
    """A question about a word that does not exist, so that nobody knows the answer by heart."""
    word = "".join(rng.choice(CONSONANTS) + rng.choice(VOWELS) for _ in range(rng.randint(6, 9)))
    letter = rng.choice(VOWELS)
    question = f"How often does the letter {letter} occur in {word}?"
    columns = {"word": word, "letter": letter}
    messages = [{"role": "user", "content": question}]
    return {"messages": messages, "ground_truth": str(word.count(letter)), "data_source": "letters", **columns}


def demonstrate(row: dict[str, Any], *, calls: bool) -> dict[str, Any]:
    """A conversation that answers a row, with the tool or at once."""
    answer = {"role": "assistant", "content": f"\\boxed{{{row['ground_truth']}}}"}
    turns: list[dict[str, Any]] = [answer]
    if calls:
        arguments = {"word": row["word"], "letter": row["letter"]}
        call = {"type": "function", "function": {"name": "count_letter", "arguments": arguments}}
        turns = [
            {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "content": row["ground_truth"]},
            answer,
        ]
    return {**row, "messages": json.dumps([*row["messages"], *turns])}  # messages may be JSON text


def main() -> None:
    """Write data/{train,eval,demonstrations}.parquet; no question occurs in two of them."""
    rng = random.Random(1)
    rows: dict[str, dict[str, Any]] = {}
    while len(rows) < 512 + 64 + 128:
        row = make_row(rng)
        rows.setdefault(row["messages"][0]["content"], row)
    drawn = list(rows.values())
    files = {
        "train": drawn[:512],
        "eval": drawn[512:576],
        "demonstrations": [demonstrate(row, calls=i % CALL_EVERY == 0) for i, row in enumerate(drawn[576:])],
    }
    Path("data").mkdir(exist_ok=True)
    for name, part in files.items():
        pq.write_table(pa.Table.from_pylist(part), f"data/{name}.parquet")


if __name__ == "__main__":
    main()
