"""Measured figures with their goals, and a table of them."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table


@dataclass(slots=True, frozen=True)
class Figure:
    """One measurement."""

    name: str
    value: float
    unit: str
    goal: float | None = None
    at_least: bool = True
    """The goal is a lower bound; False: an upper bound."""
    detail: str = ""
    """The figures behind a ratio, as text."""

    @property
    def is_reached(self) -> bool | None:
        """None if there is no goal."""
        if self.goal is None:
            return None
        return self.value >= self.goal if self.at_least else self.value <= self.goal


def median_ratio(
    ours: Callable[[int], float], other: Callable[[int], float], rounds: int
) -> tuple[float, float, float]:
    """Measure two things alternately, because a shared machine's speed drifts, and compare within each round.

    Args:
        ours: Round number to units per second.
        other: The baseline, likewise.
        rounds: Pairs of measurements, at least 1; the order alternates.

    Returns:
        The median of the rounds' ratios ours / other, and the medians of each.
    """
    pairs = []
    for i in range(rounds):
        if i % 2:
            b, a = other(i), ours(i)
        else:
            a, b = ours(i), other(i)
        pairs.append((a, b))
    ratio = statistics.median(a / b for a, b in pairs)
    return ratio, statistics.median(a for a, _ in pairs), statistics.median(b for _, b in pairs)


def print_table(figures: Sequence[Figure], console: Console) -> None:
    """Print the figures next to their goals."""
    table = Table("figure", "measured", "goal", "", "detail")
    for f in figures:
        goal = "" if f.goal is None else f"{'≥' if f.at_least else '≤'} {f.goal:g}"
        verdict = {None: "", True: "[green]reached[/]", False: "[red]short[/]"}[f.is_reached]
        table.add_row(f.name, f"{f.value:.3g} {f.unit}", goal, verdict, f.detail)
    console.print(table)


def write_json(figures: Sequence[Figure], path: Path) -> None:
    """Write the figures as a list of objects."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps([asdict(f) | {"is_reached": f.is_reached} for f in figures], indent=1) + "\n")
