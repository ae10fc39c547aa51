"""Make the quickstart's data: questions of eight reasoning-gym tasks, and demonstrations of how to answer with a tool.

    <output>/train.parquet            training prompts
    <output>/eval.parquet             evaluation prompts; their questions occur in no other file
    <output>/demonstrations.parquet   conversations with a call and its real output, and direct answers

Demonstrations of two tasks always call the code interpreter. Of four tasks a third of the demonstrations call it; the
rest answer directly and correctly, which so small a model cannot do with other numbers: it has to learn from rewards
that a call pays off. Two tasks are never demonstrated.

Usage: python -m examples.quickstart.make_data [--demonstrations 288] ...
"""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import reasoning_gym

from examples.data_files import make_from_command_line, write_rows

UNDEMONSTRATED = ("basic_arithmetic", "decimal_chain_sum")
HEADER = "from math import gcd, lcm\n"
PROGRAMS: dict[str, str] = {
    "chain_sum": "print(round({expression}, 6))",
    "products": "print({0} * {1})",
    "gcd": "print(gcd({0}, {1}))",
    "lcm": "print(lcm({0}, {1}))",
    "count_bits": "print(bin({1}).count('1'))",
    "spell_backward": "print('{word}'[::-1])",
}
"""Program of each demonstrated task, after `HEADER`: {0}, {1} are the question's numbers, {expression} its arithmetic
expression, {word} its last word."""
FINAL_ANSWER = "\\boxed{%s}"
ALWAYS_CALLED = ("chain_sum", "spell_backward")
CALL_EVERY = 3
"""One of this many demonstrations of each other task calls the tool."""


def make_rows(task: str, num: int, seed: int, taken: set[str]) -> list[dict[str, Any]]:
    """Draw questions that are not in use yet.

    Args:
        task: Name of a reasoning-gym task.
        num: Number of rows.
        seed: Seed of the questions.
        taken: Questions in use; the new ones are added.

    Returns:
        Rows of messages, ground truth and data source, plus `task` and `entry` for the scorer.
    """
    rows: list[dict[str, Any]] = []
    for entry in reasoning_gym.create_dataset(task, size=20 * num, seed=seed):
        question = entry["question"].strip()
        if question in taken:
            continue
        taken.add(question)
        metadata = {k: v for k, v in entry["metadata"].items() if k not in ("primes", "difficulty")}
        rows.append({
            "messages": [{"role": "user", "content": question}],
            "ground_truth": entry["answer"],
            "data_source": task,
            "task": task,
            "entry": json.dumps({"question": question, "answer": entry["answer"], "metadata": metadata}),
        })  # fmt: skip
        if len(rows) == num:
            return rows
    raise SystemExit(f"{task}: only {len(rows)} different questions with seed {seed}, wanted {num}. Ask for fewer.")


def demonstrate(row: dict[str, Any], *, with_call: bool) -> dict[str, Any]:
    """Answer a row's question.

    Args:
        row: A row of `make_rows`.
        with_call: Answer with a program and its real output; otherwise directly.

    Returns:
        The row with the whole conversation as its messages.
    """
    turns = _compute(row) if with_call else [_say(FINAL_ANSWER % row["ground_truth"])]
    return {**row, "messages": [*row["messages"], *turns]}


def _compute(row: dict[str, Any]) -> list[dict[str, Any]]:
    task, question = row["task"], row["messages"][0]["content"]
    numbers, word = re.findall(r"\d+", question), re.findall(r"\w+", question)[-1]
    code = HEADER + PROGRAMS[task].format(*numbers, expression=_expression(question), word=word)
    run = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, timeout=30, check=True)
    output = run.stdout.rstrip("\n")
    assert reasoning_gym.get_score_answer_fn(task)(output, json.loads(row["entry"])) == 1.0, (
        f"{task}: {code!r} printed {output!r}"
    )
    call = {"type": "function", "function": {"name": "code_interpreter", "arguments": {"code": code}}}
    return [_say("", tool_calls=[call]), {"role": "tool", "content": output}, _say(FINAL_ANSWER % output)]


def _say(text: str, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **more}


def make_data(output: Path, num_train: int, num_eval: int, num_demonstrations: int, seed: int) -> None:
    """Write the three files.

    Args:
        output: Folder to write to.
        num_train: Training prompts of each task.
        num_eval: Evaluation prompts of each task.
        num_demonstrations: Demonstrations in total.
        seed: Seed of all questions.
    """
    taken: set[str] = set()
    tasks = (*PROGRAMS, *UNDEMONSTRATED)
    evaluation = [row for i, task in enumerate(tasks) for row in make_rows(task, num_eval, seed * 1000 + i, taken)]
    train = [row for i, task in enumerate(tasks) for row in make_rows(task, num_train, seed * 1000 + 100 + i, taken)]
    share = -(-num_demonstrations // len(PROGRAMS))
    pools = [make_rows(task, share, seed * 1000 + 200 + i, taken) for i, task in enumerate(PROGRAMS)] if share else []
    demonstrations = [
        demonstrate(row, with_call=row["task"] in ALWAYS_CALLED or number % CALL_EVERY == 0)
        for rows in pools
        for number, row in enumerate(rows)
    ]
    random.Random(seed).shuffle(demonstrations)
    for name, rows in (("eval", evaluation), ("train", train), ("demonstrations", demonstrations[:num_demonstrations])):
        write_rows(output / f"{name}.parquet", rows)


def _expression(question: str) -> str:
    """The arithmetic expression before the question's `=`; empty if there is none."""
    return "".join(re.findall(r"([-\d.()][-+*/\d.() ]*?) *= *\??$", question))


if __name__ == "__main__":
    make_from_command_line(
        make_data, __doc__, Path("data/quickstart"), train=(128, "training prompts of each task"),
        eval=(25, "evaluation prompts of each task"), demonstrations=(288, "in total; two tasks have none"),
    )  # fmt: skip
