"""Make the calculator's data: questions behind TRL's worked examples.

    <output>/train.parquet   training prompts
    <output>/eval.parquet    evaluation prompts; their questions occur in no other file

Usage: python -m examples.calculator.make_data [--output data/calculator] ...
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from examples.calculator.task import PROMPT, SimpleCalculatorTool
from examples.data_files import make_from_command_line, write_rows


def _two_numbers(rng: random.Random) -> str:
    """Two integers as TRL's script writes them, `12 * 31`, or two decimals of up to three places, `453.127/88.9`."""
    if rng.random() < 0.5:
        return f"{rng.randrange(50)} {rng.choice('+-*')} {rng.randrange(50)}"
    left, right = (round(rng.uniform(1, 1000), rng.randint(1, 3)) for _ in range(2))
    return f"{left}{rng.choice('+-*/')}{right}"


def _chain(rng: random.Random) -> str:
    """Four or five numbers with one place: `63.6+63.7-47.2*91.8`."""
    numbers = [round(rng.uniform(1, 100), 1) for _ in range(rng.randint(4, 5))]
    return str(numbers[0]) + "".join(f"{rng.choice('+-*')}{number}" for number in numbers[1:])


def _parentheses(rng: random.Random) -> str:
    """An integer times a sum or difference: `3*(41-7)`."""
    return f"{rng.randint(2, 49)}*({rng.randint(2, 49)}{rng.choice('+-')}{rng.randint(2, 49)})"


KINDS: dict[str, Callable[[random.Random], str]] = {
    "two_numbers": _two_numbers,
    "chain": _chain,
    "parentheses": _parentheses,
}
"""Expressions by `data_source`; a third of the rows are of each kind."""


def make_row(kind: str, rng: random.Random) -> dict[str, Any]:
    """Draw a question of a kind. Its answer is what the tool says."""
    expression = KINDS[kind](rng)
    messages = [{"role": "user", "content": f"{PROMPT}\n\nWhat is {expression}?"}]
    return {"messages": messages, "ground_truth": SimpleCalculatorTool(expression), "data_source": kind}


def make_data(output: Path, num_train: int, num_eval: int, seed: int) -> None:
    """Write the two files.

    Args:
        output: Folder to write to.
        num_train: Training prompts.
        num_eval: Evaluation prompts.
        seed: Seed of all questions.
    """
    rng, rows = random.Random(seed), {}
    while len(rows) < num_train + num_eval:
        row = make_row(list(KINDS)[len(rows) % len(KINDS)], rng)
        rows.setdefault(row["messages"][0]["content"], row)
    drawn = list(rows.values())
    write_rows(output / "train.parquet", drawn[:num_train])
    write_rows(output / "eval.parquet", drawn[num_train:])


if __name__ == "__main__":
    make_from_command_line(
        make_data, __doc__, Path("data/calculator"), train=(600, "training prompts"), eval=(150, "evaluation prompts")
    )
