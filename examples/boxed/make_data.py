r"""Make word problems in the form of GSM8K, and demonstrations of how to answer them.

    <output>/train.jsonl              rows with `question` and `answer`; the answer ends in `#### 72`, as in GSM8K
    <output>/eval.jsonl               questions that occur in no other file
    <output>/demonstrations.parquet   conversations that end in `\boxed{72}`

Every third demonstration writes the steps down. The others give the right answer at once, which so small a model cannot
do with other numbers. So the model learns to answer either way, and rewards have to teach it which way pays off.

Usage: python -m examples.boxed.make_data [--output data/boxed] ...
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from examples.data_files import make_from_command_line, write_rows

SYSTEM_PROMPT = (
    "You are a helpful assistant that solves problems step-by-step. "
    "Always include the final numeric answer inside \\boxed{}."
)
NAMES = ("Ada", "Ben", "Carla", "David", "Emma", "Felix", "Grace", "Henry", "Iris", "Jonas", "Karin", "Liam")
THINGS = ("apples", "books", "cards", "coins", "eggs", "flowers", "marbles", "pens", "shells", "stamps")
STORIES = (
    # what is asked, the steps of its solution; x, y, z are numbers, and p is the result of the first step
    (
        "{name} has {x} boxes with {y} {things} each, and {z} {things} more. How many {things} are there?",
        "x * y",
        "p + z",
    ),
    ("{name} has {x} boxes with {y} {things} each, and loses {z}. How many {things} are left?", "x * y", "p - z"),
    ("{name} has {z} {things} and finds {x}, then {y} more. How many {things} does {name} have?", "z + x", "p + y"),
    ("{name} sells {x} {things} a day for {y} days, then {z} more. How many {things} is that?", "x * y", "p + z"),
    ("{name} earns {x} dollars an hour. How much are {y} hours on Monday and {z} on Friday?", "y + z", "x * p"),
    ("{name} has {x} {things}. A friend has {y} times as many. How many have both?", "x * y", "x + p"),
    ("{name} pays {x} dollars for a ticket and {y} for food, {z} times. How many dollars is that?", "x + y", "p * z"),
    ("{name} buys {x} {things} for {y} dollars each with {z} dollars off. How many dollars is that?", "x * y", "p - z"),
)
STEPS_EVERY = 3
"""One of this many demonstrations writes the steps down."""


def make_row(rng: random.Random) -> dict[str, str]:
    """Draw a problem of two steps.

    Returns:
        A row of GSM8K's form: `question`, and `answer` with a line for each step and the result behind `####`.
    """
    story, *steps = rng.choice(STORIES)
    x, y, z = rng.randint(3, 9), rng.randint(3, 9), rng.randint(2, 8)
    lines, results = [], []
    for step in steps:
        left, sign, right = (
            str({"x": x, "y": y, "z": z, "p": (results or [0])[-1]}.get(part, part)) for part in step.split()
        )
        results.append({"+": int.__add__, "-": int.__sub__, "*": int.__mul__}[sign](int(left), int(right)))
        lines.append(f"{left} {sign} {right} = {results[-1]}")
    question = story.format(name=rng.choice(NAMES), things=rng.choice(THINGS), x=x, y=y, z=z)
    return {"question": question, "answer": "\n".join([*lines, f"#### {results[-1]}"])}


def demonstrate(row: dict[str, str], *, steps: bool) -> dict[str, Any]:
    """A conversation that answers a row, with its steps or at once."""
    solution, _, result = row["answer"].rpartition("\n#### ")
    answer = f"\\boxed{{{result}}}"
    messages = [
        {"role": "system", "content": SYSTEM_PROMPT},
        {"role": "user", "content": row["question"]},
        {"role": "assistant", "content": f"{solution}\n{answer}" if steps else answer},
    ]
    return {"messages": messages, "ground_truth": result, "data_source": "boxed"}


def make_data(output: Path, num_train: int, num_eval: int, num_demonstrations: int, seed: int) -> None:
    """Write the three files.

    Args:
        output: Folder to write to.
        num_train: Training rows.
        num_eval: Evaluation rows.
        num_demonstrations: Demonstrations.
        seed: Seed of all of them.
    """
    rng, rows = random.Random(seed), {}
    while len(rows) < num_train + num_eval + num_demonstrations:
        row = make_row(rng)
        rows.setdefault(row["question"], row)
    drawn = list(rows.values())
    shown = enumerate(drawn[num_train + num_eval :])
    write_rows(output / "train.jsonl", drawn[:num_train])
    write_rows(output / "eval.jsonl", drawn[num_train : num_train + num_eval])
    write_rows(output / "demonstrations.parquet", [demonstrate(row, steps=i % STEPS_EVERY == 0) for i, row in shown])


if __name__ == "__main__":
    make_from_command_line(
        make_data, __doc__, Path("data/boxed"), train=(100, "training rows, as in the lesson"),
        eval=(200, "evaluation rows"), demonstrations=(192, "conversations for the cold start"),
    )  # fmt: skip
