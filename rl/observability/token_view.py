"""`rl view RUN --tokens`: the tokens of one trajectory in color, by author or by a value, with a legend."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from rl.errors import DataError
from rl.observability.terminal import print_table, visible
from rl.observability.token_records import TokenRecord
from rl.types import FloatArray

AUTHORS = {"prompt": "cyan", "tool": "yellow", "model": "green"}
"""Who wrote a token, with its color: the prompt, a tool's result with the headers around it, or the model."""
_SHADES = ("on grey15", "on grey27")
"""Backgrounds of neighboring tokens, so that each can be told from the next."""
_GRAY, _BLUE, _ORANGE = (58, 58, 58), (38, 100, 190), (215, 95, 20)


@dataclass(slots=True, frozen=True)
class Measure:
    """A value of each sampled token."""

    meaning: str
    """For the legend, with what a positive and a negative value mean."""
    of: Callable[[TokenRecord], FloatArray | None]
    """[L] float32, or None if the row was not trained on."""
    neutral: float = 0.0
    """Value without color."""


def _trained(name: str) -> Callable[[TokenRecord], FloatArray | None]:
    return lambda row: None if row.trained is None else getattr(row.trained, name)


def _reference_difference(row: TokenRecord) -> FloatArray | None:
    if row.trained is None or row.trained.ref_logprobs is None:
        return None
    return row.trained.old_logprobs - row.trained.ref_logprobs


MEASURES = {
    "logprob": Measure("log-prob under the engine, nats; blue: unlikely", lambda row: row.rollout_logprobs),
    "difference": Measure("engine's log-prob minus the actor's, nats", lambda row: row.difference),
    "reference": Measure("actor's log-prob minus the reference's, nats", _reference_difference),
    "entropy": Measure("entropy of the next token in the update, nats", _trained("entropy")),
    "advantage": Measure("advantage; orange: reinforced, blue: discouraged", _trained("advantages")),
    "ratio": Measure("policy over old policy in the update; orange: likelier", _trained("ratios"), neutral=1.0),
    "clipped": Measure("1 where the loss clipped the ratio", _trained("is_clipped")),
    "weight": Measure("correction weight; blue: less than 1", _trained("correction_weights"), neutral=1.0),
    "moved": Measure("log-prob after the update minus before, nats; orange: likelier", lambda row: row.change),
}
"""What `--tokens` can color by besides `author`; the columns of the table."""
_LONGEST = 24
"""Characters of a text in the table."""
_LEGEND = (-1.0, -0.5, 0.0, 0.5, 1.0)
"""Parts of the largest value that the legend shows, if such values occur."""
CHOICES = ("author", *MEASURES, "table")


def author_names(row: TokenRecord) -> list[str]:
    """The author of each token, a key of `AUTHORS`."""
    return [
        "model" if sampled else "prompt" if position < row.prompt_length else "tool"
        for position, sampled in enumerate(row.loss_mask.tolist())
    ]


def print_tokens(rows: Sequence[TokenRecord], target: Console, choice: str) -> None:
    """Print the tokens of one trajectory.

    Args:
        rows: Its token sequences.
        target: Output console.
        choice: One of `CHOICES`.

    Raises:
        DataError: The trajectory was not trained on, and only training gives the value.
    """
    for row in rows:
        target.print(Rule(f"sequence {row.sequence} of {len(rows)}, {_summary(row)}"))
        if choice == "table":
            print_table(_table(row), target)
        elif choice == "author":
            _print_runs(row, target, lambda position, author: f"{AUTHORS[author]} {_SHADES[position % 2]}")
        else:
            _print_values(row, target, choice)
    if choice == "author":
        legend = [Text(f"  {name}  ", style=f"{color} {_SHADES[0]}") for name, color in AUTHORS.items()]
        target.print(Text("  ").join(legend))


def _print_values(row: TokenRecord, target: Console, choice: str) -> None:
    measure = MEASURES[choice]
    values = measure.of(row)
    if values is None and row.trained is not None:
        raise DataError(f"--tokens {choice}: the loss has no KL term, so no reference. Choose another value.")
    if values is None:
        raise DataError(
            f"--tokens {choice}: {row.trajectory_id} was not trained on, so there is no value. `rl explain` says why; "
            "--tokens logprob shows what was sampled."
        )
    offsets = np.where(row.loss_mask > 0, values - measure.neutral, 0.0)
    largest = float(np.abs(offsets).max(initial=0.0)) or 1.0

    def style(position: int, author: str) -> str:
        return "dim" if author != "model" else f"white on {_color(offsets[position] / largest)}"

    _print_runs(row, target, style)
    occurring = [part for part in _LEGEND if offsets.min() <= part * largest <= offsets.max() or part == 0]
    steps = [Text(f" {measure.neutral + part * largest:+.3g} ", style=f"white on {_color(part)}") for part in occurring]
    target.print(Text(" ").join([*steps, Text(measure.meaning)]), soft_wrap=True)


def _color(part: float) -> str:
    """Between blue (-1), gray (0) and orange (1)."""
    end = _ORANGE if part > 0 else _BLUE
    mixed = [round(gray + (full - gray) * abs(part)) for gray, full in zip(_GRAY, end, strict=True)]
    return f"rgb({mixed[0]},{mixed[1]},{mixed[2]})"


def _print_runs(row: TokenRecord, target: Console, style: Callable[[int, str], str]) -> None:
    """Print each author's run of tokens below a line that names the author, so that it is readable without color."""
    for author, positions in _runs(row):
        target.print(Text(f"[{author}, tokens {positions[0]} to {positions[-1]}]", style=f"bold {AUTHORS[author]}"))
        text = Text()
        for position in positions:
            text.append(visible(row.pieces[position]), style=style(position, author))
        target.print(text, soft_wrap=True)


def _runs(row: TokenRecord) -> list[tuple[str, list[int]]]:
    authors = author_names(row)
    runs = itertools.groupby(range(len(authors)), key=lambda position: authors[position])
    return [(author, list(positions)) for author, positions in runs]


def _table(row: TokenRecord) -> Table:
    """A line for each sampled token, and one for each run of others, without values that are neutral everywhere."""
    sampled = row.loss_mask > 0
    values = {
        name: found
        for name, measure in MEASURES.items()
        if (found := measure.of(row)) is not None and (found[sampled] != measure.neutral).any()
    }
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for name in ("position", "token", "text"):
        table.add_column(name)
    for name in values:
        table.add_column(name, justify="right")
    for author, positions in _runs(row):
        if author != "model":
            text = "".join(row.pieces[p] for p in positions)
            table.add_row(f"{positions[0]}-{positions[-1]}", author, _cell(text, author))
            continue
        for p in positions:
            numbers = [_number(float(column[p])) for column in values.values()]
            table.add_row(str(p), str(row.token_ids[p]), _cell(row.pieces[p], author), *numbers)
    return table


def _cell(text: str, author: str) -> Text:
    shown = visible(text).replace("\n", "↵").replace("\t", "→")
    return Text(shown if len(shown) <= _LONGEST else f"{shown[:_LONGEST]}…", style=AUTHORS[author])


def _number(value: float) -> str:
    """Four decimals: log-probs of likely tokens differ from 0 by less, and an exponent would hide the large ones."""
    shown = f"{value:.4f}"
    return "0" if float(shown) == 0 else shown


def _summary(row: TokenRecord) -> str:
    sampled = row.loss_mask > 0
    mean, versions = row.rollout_logprobs[sampled].mean(), ", ".join(map(str, np.unique(row.versions[sampled])))
    parts = [f"{len(row)} tokens", f"{int(sampled.sum())} sampled by version {versions}", f"mean log-prob {mean:.3f}"]
    if row.difference is not None and row.change is not None:
        parts.append(f"largest difference {np.abs(row.difference).max():.2g}")
        parts.append(f"mean move {row.change[sampled].mean():+.3g}")
    else:
        parts.append("not trained on")
    return ", ".join(parts)
