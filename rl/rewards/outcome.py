"""The result of a reward function as plain numbers and texts, to send between processes and to log."""

from __future__ import annotations

import json
import numbers
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

LARGEST_SCORE = 1e18
"""The square, needed for the standard deviation of a group, is still finite in float32."""
_LONGEST_TEXT = 2000
"""Longer texts are cut, in characters."""


@dataclass(slots=True)
class Outcome:
    """Result of one reward for one trajectory."""

    score: float
    """NaN, which no function may return: the reward does not apply to this trajectory."""
    metrics: dict[str, float] = field(default_factory=dict)
    """Other numbers that the function returned."""
    texts: dict[str, str] = field(default_factory=dict)
    """All other values that the function returned."""
    turn_scores: list[float] = field(default_factory=list)
    """One per turn, or empty."""


def read_outcome(value: Any, num_turns: int) -> Outcome | str:
    """Convert the return value of a reward function.

    Numbers may be Python numbers, `Fraction`, `Decimal`, or have `item()` (numpy scalars, tensors with one element).

    Args:
        value: A number, or a mapping with `score` and optionally `turn_scores` and other values. Other values that are
            not numbers become texts.
        num_turns: Number of turns of the trajectory.

    Returns:
        The outcome, or a description of what is wrong with the value. An `Outcome` is returned as it is.
    """
    if isinstance(value, Outcome):
        return value
    given = dict(value) if isinstance(value, Mapping) else {"score": value}
    if "score" not in given:
        return f"returned a dict without 'score', with {', '.join(map(str, given)) or 'nothing'}"
    turn_scores = as_list(given.pop("turn_scores", None))
    if turn_scores is None or len(turn_scores) not in (0, num_turns):
        got = turn_scores if turn_scores is not None else value["turn_scores"]
        return f"returned {_shown(got)} as turn_scores, not a list with a number for each of the {num_turns} turns"
    read = [(str(key), item, _as_number(item)) for key, item in given.items()]
    turns = [("turn_scores", item, _as_number(item)) for item in turn_scores]
    for key, item, number in [*read, *turns]:
        is_text = number is None and key not in ("score", "turn_scores")
        if not is_text and (number is None or not abs(number) <= LARGEST_SCORE):
            return f"returned {_shown(item)} as {key}, not a finite number"
    metrics = {key: number for key, _, number in read if number is not None}
    texts = {key: _as_text(item) for key, item, number in read if number is None}
    return Outcome(metrics.pop("score"), metrics, texts, [number for _, _, number in turns if number is not None])


def _as_number(value: Any) -> float | None:
    """Convert to float, infinite on overflow; None if the value is not a number."""
    if callable(item := getattr(value, "item", None)):
        try:
            value = item()
        except (TypeError, ValueError, RuntimeError):  # an array or a tensor of several elements
            return None
    if not isinstance(value, numbers.Real | Decimal):
        return None
    try:
        return float(value)
    except OverflowError:
        return float("inf")
    except (TypeError, ValueError):  # a signalling NaN of Decimal
        return float("nan")


def as_list(value: Any) -> list[Any] | None:
    """Convert a sequence, array or one-dimensional tensor to a list; None for other values."""
    if value is None:
        return []
    value = value.tolist() if callable(getattr(value, "tolist", None)) else value
    return list(value) if isinstance(value, Sequence) and not isinstance(value, str | bytes) else None


def _as_text(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str, skipkeys=True)
    return text[:_LONGEST_TEXT].encode("utf-8", "replace").decode("utf-8")


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
