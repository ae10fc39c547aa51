"""Make the calculator's data: questions behind TRL's worked examples.

    <output>/train.parquet            training prompts
    <output>/eval.parquet             evaluation prompts; their questions occur in no other file
    <output>/demonstrations.parquet   questions with a request, its real result and the submitted number

Usage: python -m examples.calculator.make_data [--output data/calculator] ...
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path
from typing import Any

from examples.calculator.task import PROMPT, SimpleCalculatorTool
from examples.data_files import make_once, write_rows


def make_row(rng: random.Random) -> dict[str, Any]:
    """Draw a question about two numbers with at most one place, as in TRL's prompt."""
    left, right = (round(rng.uniform(1, 100), rng.randint(0, 1)) for _ in range(2))
    expression = f"{left:g}{rng.choice('+-*/')}{right:g}"
    messages = [{"role": "user", "content": f"{PROMPT}What is {expression}?\n\n"}]
    return {"messages": messages, "ground_truth": SimpleCalculatorTool(expression), "data_source": "calculator"}


def demonstrate(row: dict[str, Any]) -> dict[str, Any]:
    """A row's question with the turn that answers it."""
    asked = row["messages"][0]["content"].rpartition("What is ")[2].removesuffix("?\n\n")
    call = {"type": "function", "function": {"name": "SimpleCalculatorTool", "arguments": {"expression": asked}}}
    turns = [
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": row["ground_truth"]},
        {"role": "assistant", "content": f"\n\nResult={row['ground_truth']}<submit>"},
    ]
    return {**row, "messages": json.dumps([*row["messages"], *turns])}


def make_data(output: Path, num_train: int, num_eval: int, num_demonstrations: int, seed: int) -> None:
    """Write the three files.

    Args:
        output: Folder to write to.
        num_train: Training prompts.
        num_eval: Evaluation prompts.
        num_demonstrations: Demonstrations.
        seed: Seed of all questions.
    """
    rng = random.Random(seed)
    rows: dict[str, dict[str, Any]] = {}
    while len(rows) < num_train + num_eval + num_demonstrations:
        row = make_row(rng)
        rows.setdefault(row["messages"][0]["content"], row)
    drawn = list(rows.values())
    write_rows(output / "train.parquet", drawn[:num_train])
    write_rows(output / "eval.parquet", drawn[num_train : num_train + num_eval])
    write_rows(output / "demonstrations.parquet", [demonstrate(row) for row in drawn[num_train + num_eval :]])


def main() -> None:
    """Parse the command line and make the data."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("data/calculator"))
    parser.add_argument("--train", type=int, default=640, help="training prompts")
    parser.add_argument("--eval", type=int, default=100, help="evaluation prompts")
    parser.add_argument("--demonstrations", type=int, default=48, help="for the cold start")
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    wanted = (given.train, given.eval, given.demonstrations, given.seed)
    arguments = dict(zip(("train", "eval", "demonstrations", "seed"), wanted, strict=True))
    make_once(given.output, arguments, lambda: make_data(given.output, *wanted))


if __name__ == "__main__":
    main()
