"""Evaluations, read from metrics.jsonl."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

_PREFIX, _ACCURACY = "val-core/", "/acc/mean@"


@dataclass(slots=True, frozen=True)
class Accuracy:
    """Accuracy on some questions in one evaluation."""

    mean: float
    low: float
    """Lower end of the 95 % interval."""
    high: float
    num_questions: int


@dataclass(slots=True, frozen=True)
class Evaluation:
    """One evaluation: accuracy by the names of `rl.observability.evaluation_metrics.Figures`, `all` among them."""

    step: int
    accuracy: dict[str, Accuracy]


def read_evaluations(rows: list[dict[str, Any]]) -> list[Evaluation]:
    """Extract the evaluations from the lines of metrics.jsonl, by step; for a repeated step the last line counts."""
    found: dict[int, Evaluation] = {}
    for row in rows:
        accuracy = {}
        for name, value in row.items():
            if not name.startswith(_PREFIX) or _ACCURACY not in name or value is None:
                continue
            source = name[len(_PREFIX) : name.rindex(_ACCURACY)]
            key = f"{_PREFIX}{source}"
            accuracy[source] = Accuracy(
                value, row[f"{key}/acc/ci95_low"], row[f"{key}/acc/ci95_high"], int(row[f"{key}/num_questions"])
            )
        if accuracy:
            found[row["step"]] = Evaluation(row["step"], accuracy)
    return [found[step] for step in sorted(found)]
