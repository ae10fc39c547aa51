"""Make word problems behind TRL's worked example of a program, and demonstrations of four of the eight stories.

    <output>/train.parquet            training prompts
    <output>/eval.parquet             evaluation prompts; their questions occur in no other file
    <output>/demonstrations.parquet   conversations with a program and its real output

The problems are those of examples/boxed. Their `data_source` says whether the story is demonstrated or new. For the new
ones the model has to learn from rewards which program is right.

Usage: python -m examples.python_interpreter.make_data [--output data/python_interpreter] ...
"""

from __future__ import annotations

import random
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from examples.boxed.make_data import make_row
from examples.data_files import make_from_command_line, write_rows

PROMPT = """\
Example of using a Python API to solve math questions.

Q: Olivia has $23. She bought five bagels for $3 each. How much money does she have left?

<request><PythonInterpreter>
def solution():
    money_initial = 23
    bagels = 5
    bagel_cost = 3
    money_spent = bagels * bagel_cost
    money_left = money_initial - money_spent
    result = money_left
    return result
print(solution())
<call>8<response>

Result = 8 <submit>

Q: """
"""The worked example of TRL's page "Learning Tools". The prompt ends with the question mark of the next question."""
STORIES = {
    # a word of the story's questions: what their numbers mean, in order, and the two steps
    "are there?": (("boxes", "per_box", "more"), "in_boxes = boxes * per_box", "result = in_boxes + more"),
    "finds": (("initial", "found", "found_later"), "found_all = found + found_later", "result = initial + found_all"),
    "earns": (("wage", "monday", "friday"), "hours = monday + friday", "result = wage * hours"),
    "buys": (("things", "price", "off"), "cost = things * price", "result = cost - off"),
}
"""The demonstrated stories."""


def prompt_row(question: str, answer: str) -> dict[str, Any]:
    """A row of the training and evaluation prompts."""
    source = "demonstrated" if any(word in question for word in STORIES) else "new"
    return {
        "messages": [{"role": "user", "content": PROMPT + question}],
        "ground_truth": answer.rpartition("#### ")[2],
        "data_source": source,
    }


def demonstrate(question: str, answer: str) -> dict[str, Any]:
    """A whole conversation about a demonstrated story: the program, what it prints, and the submission."""
    (names, *steps) = next(program for word, program in STORIES.items() if word in question)
    values = zip(names, re.findall(r"\d+", question), strict=True)
    lines = [*(f"{name} = {value}" for name, value in values), *steps, "return result"]
    code = "\ndef solution():\n" + "".join(f"    {line}\n" for line in lines) + "print(solution())\n"
    run = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, timeout=30, check=True)
    output = run.stdout.rstrip("\n")
    row = prompt_row(question, answer)
    assert output == row["ground_truth"], f"{question}: {code!r} printed {output!r}"
    call = {"type": "function", "function": {"name": "PythonInterpreter", "arguments": {"code": code}}}
    row["messages"] += [
        {"role": "assistant", "content": "\n\n", "tool_calls": [call]},
        {"role": "tool", "content": output},
        {"role": "assistant", "content": f"\n\nResult = {output} <submit>"},
    ]
    return row


def make_data(output: Path, num_train: int, num_eval: int, num_demonstrations: int, seed: int) -> None:
    """Write the three files.

    Args:
        output: Folder to write to.
        num_train: Training prompts, of all stories.
        num_eval: Evaluation prompts, of all stories.
        num_demonstrations: Demonstrations, of the demonstrated stories.
        seed: Seed of all of them.
    """
    rng = random.Random(seed)
    prompts: dict[str, dict[str, Any]] = {}
    demonstrations: dict[str, dict[str, Any]] = {}
    while len(prompts) < num_train + num_eval or len(demonstrations) < num_demonstrations:
        question, answer = (row := make_row(rng))["question"], row["answer"]
        if question in prompts or question in demonstrations:
            continue
        if len(prompts) < num_train + num_eval:
            prompts[question] = prompt_row(question, answer)
        elif any(word in question for word in STORIES):
            demonstrations[question] = demonstrate(question, answer)
    rows = list(prompts.values())
    write_rows(output / "train.parquet", rows[:num_train])
    write_rows(output / "eval.parquet", rows[num_train:])
    write_rows(output / "demonstrations.parquet", list(demonstrations.values()))


if __name__ == "__main__":
    make_from_command_line(
        make_data, __doc__, Path("data/python_interpreter"), train=(200, "training prompts"),
        eval=(200, "evaluation prompts"), demonstrations=(96, "conversations for the cold start"),
    )  # fmt: skip
