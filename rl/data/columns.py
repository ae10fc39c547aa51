"""Finds the prompt and the answer in a row of one of the usual schemas, or where a mapping says."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from rl.data.json_text import shorten
from rl.data.messages import read_messages
from rl.errors import DataError
from rl.types import Message

PROMPTS = ("messages", "prompt", "question", "problem")
"""Names of columns that hold prompts, in any case."""
ANSWERS = ("ground_truth", "answer", "solution", "label", "labels", "golden_answers", "response")
"""Names of columns that hold ground truths, in any case."""


def complete_map(
    where: str, row: dict[str, Any], given: Mapping[str, str], *, needs_answer: bool = True
) -> dict[str, str]:
    """Add the columns of prompt and answer to a mapping that does not name them.

    `messages` with `ground_truth` is this project's own schema, and a record `reward_model` with a `ground_truth` is
    verl's, whatever other columns there are. Otherwise just one column may have a usual name.

    Args:
        where: File and row, for errors.
        row: The row.
        given: As `DatasetConfig.map_keys`.
        needs_answer: Without it a row of another schema has no answer, as demonstrations.

    Returns:
        `given` with `prompt` and `response`, which is empty without an answer.

    Raises:
        DataError: No column, or more than one, has a usual name.
    """
    is_own = "messages" in row and "ground_truth" in row
    record = row.get("reward_model")
    is_of_verl = not is_own and isinstance(record, dict) and "ground_truth" in record
    columns = dict(given)
    if "prompt" not in columns:
        known = "messages" if is_own else "prompt" if is_of_verl and "prompt" in row else ""
        columns["prompt"] = known or _only(where, row, PROMPTS, "prompt", "prompt")
    if "response" not in columns:
        known = "ground_truth" if is_own else "reward_model.ground_truth" if is_of_verl else ""
        columns["response"] = known or (_only(where, row, ANSWERS, "answer", "response") if needs_answer else "")
    return columns


def prompt_messages(where: str, row: dict[str, Any], column: str, *, has_filler: bool) -> list[Message]:
    """Read a prompt: messages, their JSON text, or the text of one user message; `messages` is never mere text.

    Args:
        where: File and row, for errors.
        row: The row.
        column: Its column, as for `look_up`.
        has_filler: See `read_messages`.

    Raises:
        DataError: It is something else.
    """
    prompt = look_up(where, row, column)
    if column == "messages":
        return read_messages(where, prompt, has_filler=has_filler)
    if not isinstance(prompt, str | list) or not prompt:
        raise DataError(f"{where}: '{column}' must be text or messages, got {prompt!r}. Correct the row.")
    if isinstance(prompt, str) and not _looks_like_messages(prompt):
        prompt = [{"role": "user", "content": prompt}]
    return read_messages(where, prompt, has_filler=has_filler)


def answer_value(where: str, row: dict[str, Any], column: str) -> Any:
    """Read an answer. Of a record, such as DAPO-Math-17k's `reward_model`, it is the field `ground_truth`.

    Args:
        where: File and row, for errors.
        row: The row.
        column: Its column, as for `look_up`; empty: there is no answer.

    Raises:
        DataError: There is no value, or a record without that field.
    """
    answer = look_up(where, row, column) if column else ""
    if not isinstance(answer, dict) or column.rpartition(".")[2] == "ground_truth":
        return answer
    if answer.get("ground_truth") is None:
        raise DataError(
            f"{where}: the answer '{column}' is a record without 'ground_truth', got fields {', '.join(answer)}. Name "
            f"the right field: map_keys.response={column}.FIELD."
        )
    return answer["ground_truth"]


def look_up(where: str, row: dict[str, Any], column: str) -> Any:
    """Look up a column. Dots select fields of records, unless a column has exactly that name.

    Raises:
        DataError: There is none, or it is null.
    """
    value: Any = row
    for part in [column] if column in row else column.split("."):
        if not isinstance(value, dict) or value.get(part) is None:
            got = "null" if column in row else f"columns {', '.join(row) or 'none'}"
            raise DataError(f"{where}: no value for '{column}', got {got}. Correct map_keys or the row.")
        value = value[part]
    return value


def column_text(where: str, column: str, value: Any) -> str:
    """Convert an optional part of a row to text; empty if missing. Raises DataError."""
    if value is None:
        return ""
    if not isinstance(value, str | int | float):
        raise DataError(f"{where}: '{column}' must be text, got {shorten(value)}. Correct the row.")
    return str(value)


def _only(where: str, row: dict[str, Any], names: Sequence[str], what: str, key: str) -> str:
    found = [column for column in row if column.lower() in names]
    if len(found) == 1:
        return found[0]
    choose = f"Choose it: `python -m rl preprocess` with map_keys.{key}=COLUMN."
    if found:
        either = " or ".join(f"'{column}'" for column in found)
        raise DataError(f"{where}: the {what} could be {either}. {choose}")
    raise DataError(
        f"{where}: no column with the {what}, got {', '.join(row) or 'none'}. Usual names are {', '.join(names)}. "
        f"{choose}"
    )


def _looks_like_messages(prompt: str) -> bool:
    """Whether a text is a JSON list of messages, as `rl.data.preprocess` writes it."""
    if not prompt.lstrip().startswith("["):
        return False
    try:
        value = json.loads(prompt)
    except (ValueError, RecursionError):
        return False
    return isinstance(value, list) and bool(value) and all(isinstance(m, dict) and "role" in m for m in value)
