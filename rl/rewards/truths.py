"""Parsing of the accepted answers of a row from the different forms of a ground truth."""

from __future__ import annotations

import json
import re
from typing import Any

from rl.errors import RewardError
from rl.rewards.answers import boxed_answers

_KEYS = ("target", "ground_truth")
"""Fields of a record that may contain the answers, from Search-R1 and verl."""
_FOREIGN_LIST = re.compile(
    r"\s*(?:[\[{]\s*(?:'[^']*'|\"[^\"]*\")\s*[,\]}:'\"]|(?:\(|array\(\[)\s*(?:'[^']*'|\"[^\"]*\")\s*,)"
)
"""A list, record, tuple or array of texts as printed by Python or numpy."""


def accepted_answers(ground_truth: str, *, is_math: bool = False) -> list[str]:
    r"""Parse the accepted answers from a ground truth.

    Args:
        ground_truth: One answer, a JSON list of answers, or a JSON record with either under `target` or `ground_truth`.
        is_math: Treat a JSON list of several numbers, such as `[1, 2]`, as one answer (an interval, a vector). Reduce a
            solution to its answer: the last `\boxed{...}`, or the text after `####` as in GSM8K.

    Returns:
        At least one stripped answer. An empty one matches nothing.

    Raises:
        RewardError: The text is JSON of another form, or looks like a list but is not JSON.
    """
    value = _value(ground_truth)
    if isinstance(value, dict):
        key = next((key for key in _KEYS if key in value), None)
        if key is None:
            fields = ", ".join(map(str, value)) or "none"
            raise RewardError(
                f"the ground truth is a record without {' or '.join(_KEYS)}, got fields {fields}. Write the answer, "
                "or a list of answers."
            )
        value = value[key]
    values = value if isinstance(value, list) else [value]
    if is_math and len(values) > 1 and all(_is_number(item) for item in values):
        values = [ground_truth]
    answers = [_answer(item, is_math=is_math) for item in values]
    if not answers:
        raise RewardError("the ground truth is an empty list. Write at least one answer.")
    return answers


def _value(ground_truth: str) -> Any:
    """Decode JSON lists and records; any other text is returned as it is."""
    if ground_truth.lstrip()[:1] not in ("[", "{", "(", "a"):
        return ground_truth
    try:
        return json.loads(ground_truth)
    except (ValueError, RecursionError) as error:
        if _FOREIGN_LIST.match(ground_truth):
            raise RewardError(
                f"the ground truth looks like a list or a record, but is not JSON ({error}). Write it as JSON."
            ) from error
        return ground_truth


def _answer(value: Any, *, is_math: bool) -> str:
    if not isinstance(value, str) and not _is_number(value):
        got = json.dumps(value, ensure_ascii=False)[:80]
        raise RewardError(f"an answer of the ground truth must be a text or a number, got {got}. Correct the row.")
    text = value if isinstance(value, str) else json.dumps(value)
    if is_math:
        text = text.rpartition("####")[2]
        text = ([*boxed_answers(text)] or [text])[-1]
    return text.strip()


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float)
