"""Make the data of the guessing game: prompts, and demonstrations of players of whom most count.

    <output>/train.parquet            ranges to train on
    <output>/eval.parquet             ranges that occur in no other file
    <output>/demonstrations.parquet   whole games

Every third player asks for the middle of what is still possible, which finds 15 of 16 numbers. The others count up from
the lowest, which finds 4. So the model learns to play either way, and rewards have to teach it which way pays off.

Usage: python -m examples.environment.make_data [--output data/game] ...
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from examples.data_files import make_from_command_line, write_rows
from examples.environment.game import GuessTheNumber

WIDTH = 16
"""Numbers in a range. Four guesses at the middle find 15 of 16."""
HALVES_EVERY = 3
"""One of this many players asks for the middle."""
NUM_EVAL_RANGES = 15
SYSTEM = {"role": "system", "content": "Find my number. Say one number at a time."}


def make_row(low: int, number: int) -> dict[str, Any]:
    """A prompt; the game adds the range to it."""
    columns = {"low": low, "high": low + WIDTH - 1, "number": number}
    return {"messages": [SYSTEM], "ground_truth": str(number), "data_source": "guess_the_number", **columns}


def demonstrate(row: dict[str, Any], *, halves: bool) -> dict[str, Any]:
    """Play a row's game.

    Args:
        row: From `make_row`.
        halves: Ask for the middle of what is still possible; else for the lowest.

    Returns:
        The row with the whole conversation as its messages.
    """
    game = GuessTheNumber()
    messages = [*row["messages"], {"role": "user", "content": game.reset(**row)}]
    low, high, done = row["low"], row["high"], False
    while not done:
        guess = (low + high) // 2 if halves else low
        hint, _, done = game.step(str(guess))
        messages += [{"role": "assistant", "content": str(guess)}, {"role": "user", "content": hint}]
        low, high = (guess + 1, high) if hint == "Higher." else (low, guess - 1)
    return {**row, "messages": messages[:-1]}


def make_data(output: Path, num_train: int, num_eval: int, num_demonstrations: int, seed: int) -> None:
    """Write the three files.

    Args:
        output: Folder to write to.
        num_train: Training prompts.
        num_eval: Evaluation prompts.
        num_demonstrations: Demonstrations.
        seed: Seed of all of them.
    """
    rng = random.Random(seed)
    lows = list(range(10, 100 - WIDTH + 1))
    rng.shuffle(lows)
    seen = [make_row(low, number) for low in lows[NUM_EVAL_RANGES:] for number in range(low, low + WIDTH)]
    held_out = [make_row(low, number) for low in lows[:NUM_EVAL_RANGES] for number in range(low, low + WIDTH)]
    files = {
        "eval": rng.sample(held_out, num_eval),
        "train": rng.sample(seen, num_train),
        "demonstrations": [
            demonstrate(row, halves=i % HALVES_EVERY == 0) for i, row in enumerate(rng.sample(seen, num_demonstrations))
        ],
    }
    for name, rows in files.items():
        write_rows(output / f"{name}.parquet", rows)


if __name__ == "__main__":
    make_from_command_line(
        make_data, __doc__, Path("data/game"), train=(640, "training prompts"), eval=(200, "evaluation prompts"),
        demonstrations=(384, "whole games"),
    )  # fmt: skip
