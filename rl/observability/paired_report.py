"""Prints two evaluations compared question by question, from the records of their runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from rl.observability.paired import Change, PairedComparison, paired_comparison
from rl.observability.run_directory import RunDirectory
from rl.observability.terminal import visible
from rl.observability.trajectories import read_records
from rl.observability.viewer import trajectory_file

_SHOWN = 10
"""Questions listed for each side."""


def evaluation_file(source: Path) -> Path:
    """The trajectories of an evaluation.

    Args:
        source: A run directory, for its last evaluation, or a .jsonl file in its `trajectories`.

    Raises:
        DataError: The folder is not a run directory, or the run has no evaluation.
    """
    return trajectory_file(RunDirectory.open(source), "eval", None) if source.is_dir() else source


def compare_files(first: Path, second: Path) -> dict[str, PairedComparison]:
    """Compare the evaluations of two files (`evaluation_file`), the second beside the first.

    Returns:
        With several sets a comparison for each, by name, with one set for each data source, and last `all`.

    Raises:
        DataError: A file cannot be read, or the questions differ.
    """
    records = [read_records(first), read_records(second)]
    whole = paired_comparison(*records)
    common = set.intersection(*({_question(r) for r in side} for side in records))
    records = [[r for r in side if _question(r) in common] for side in records]
    num_sets = len({record.get("evaluation_set") for record in records[1]})
    part_of = {_question(r): str(r["evaluation_set"] if num_sets > 1 else r["data_source"]) for r in records[1]}
    names = list(dict.fromkeys(part_of.values())) if num_sets > 1 else sorted(set(part_of.values()))
    parts = {name: [[r for r in side if part_of[_question(r)] == name] for side in records] for name in names}
    compared = {name: paired_comparison(*part) for name, part in parts.items()} if len(names) > 1 else {}
    return compared | {"all": whole}


def print_comparison(compared: Mapping[str, PairedComparison], first: Path, second: Path, target: Console) -> None:
    """Print the table, the questions that changed sides, and how to read one.

    Args:
        compared: From `compare_files`.
        first: Its first file.
        second: Its second file.
        target: Output console.
    """

    def say(text: str) -> None:
        target.print(visible(text), soft_wrap=True, markup=False)

    say(f"before: {first}")
    say(f"after:  {second}")
    target.print(comparison_table(compared))
    whole = compared["all"]
    say(_changes_text("gained", whole.gained, whole.num_questions))
    say(_changes_text("lost", whole.lost, whole.num_questions))
    if whole.num_left_out:
        say(f"questions left out, since only one of the two has them: {whole.num_left_out}")
    for side, num in zip((first, second), whole.num_unscored, strict=True):
        if num:
            say(f"{num} trajectories of {side} have no score and count as wrong.")
    if changed := [*whole.lost, *whole.gained]:
        say(f"to read one: {_view(second, changed[0])}")
        say(f"and before:  {_view(first, changed[0])}")


def comparison_table(compared: Mapping[str, PairedComparison]) -> Table:
    """A table with a row for each comparison."""
    k = " and ".join(f"mean@{number}" for number in dict.fromkeys(compared["all"].num_samples))
    title = f"Question by question: {k}, difference with 95 % interval"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("questions", overflow="fold")
    for column in ("num", "before", "after", "difference", "changed", "p"):
        table.add_column(column, justify="right", no_wrap=True)
    for name, one in compared.items():
        if name == "all" and len(compared) > 1:
            table.add_section()
        d = one.difference
        table.add_row(
            Text(visible(name)),
            str(one.num_questions),
            f"{one.first.value:.2f}",
            f"{one.second.value:.2f}",
            f"{d.value:+.2f} ({d.low:+.2f}, {d.high:+.2f})",
            f"+{len(one.gained)} -{len(one.lost)}",
            "<0.001" if one.p_value < 0.001 else f"{one.p_value:.3f}",
            style="bold" if name == "all" else None,
        )
    return table


def _changes_text(word: str, changes: Sequence[Change], num_questions: int) -> str:
    names = [change.question for change in changes[:_SHOWN]]
    more = f" and {len(changes) - _SHOWN} more" if len(changes) > _SHOWN else ""
    listed = f": {', '.join(names)}{more}" if names else ""
    return f"{word} {len(changes)} of {num_questions}{listed}"


def _view(file: Path, change: Change) -> str:
    """The command that shows a question's first trajectory."""
    step = int(file.stem.rpartition("_")[2]) if file.stem.rpartition("_")[2].isdecimal() else 0
    return f"python -m rl view {file.parent.parent} --eval --step {step} --id {change.question}/0"


def _question(record: Mapping[str, Any]) -> str:
    return str(record["id"]).rpartition("/")[0]
