"""Reads the answers that a row accepts, whatever shape its ground truth has."""

from __future__ import annotations

import json
import re
from typing import Any

from rl.errors import RewardError
from rl.rewards.answers import boxed_answers

_KEYS = ("target", "ground_truth")
"""Fields of a record that may hold the answers, as Search-R1 and verl write them."""
_FOREIGN_LIST = re.compile(
    r"\s*(?:[\[{]\s*(?:'[^']*'|\"[^\"]*\")\s*[,\]}:'\"]|(?:\(|array\(\[)\s*(?:'[^']*'|\"[^\"]*\")\s*,)"
)
"""A list, record, tuple or array of texts as Python or numpy prints it."""


def accepted_answers(ground_truth: str, *, is_math: bool = False) -> list[str]:
    r"""The answers that a ground truth accepts. A text is a list of one.

    Args:
        ground_truth: The answer; or as JSON a list of answers, or a record with either of them under `target` or
            `ground_truth`.
        is_math: A JSON list of several numbers, such as `[1, 2]`, is one answer (an interval, a vector). Of a solution
            the answer counts: its last `\boxed{...}`, or what follows `####` as in GSM8K.

    Returns:
        At least one, stripped. One may be empty, which no answer equals.

    Raises:
        RewardError: The text is JSON of another shape, or looks like a list and is not JSON.
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
    """What JSON says, for lists and records; everything else is the text itself."""
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
