"""Loading of prompts from a data file."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from rl.data.rows import decode_json, iter_rows, shorten
from rl.errors import DataError, ModelError
from rl.types import Message, Prompt

logger = logging.getLogger(__name__)

COLUMNS = ("messages", "ground_truth", "data_source")
"""Required columns."""
ROLES = ("system", "user", "assistant", "tool")
"""Roles of messages."""


class _PromptRenderer(Protocol):
    def render_prompt(self, messages: list[Message]) -> list[int]: ...


def load_prompts(
    path: str | Path, additional_keys: Sequence[str] = (), evaluation_set: str | None = None
) -> list[Prompt]:
    """Read rows written by `rl.data.preprocess`.

    `messages` may be a list of records or JSON text. A ground truth that is not text becomes JSON text. Columns other
    than `COLUMNS` go to `Prompt.extra`.

    Args:
        path: A .parquet, .jsonl or .json file.
        additional_keys: Extra required columns. `labels`, MindSpeed-RL's name for the ground truth, is ignored.
        evaluation_set: Name of the set that the file is; it takes the place of the file's stem in ids.

    Returns:
        At least one prompt, in the order of the file.

    Raises:
        DataError: The file is missing, empty or of another type, or a row is malformed; the message has the row number,
            from 1.
    """
    path = Path(path)
    required = [key for key in additional_keys if key != "labels"]
    return [_to_prompt(path, number, row, required, evaluation_set) for number, row in iter_rows(path)]


def id_in_epoch(row_id: str, epoch: int) -> str:
    """Id of a row in one epoch (from 0): `train-7` in the first, `train-7@2` in the third.

    A batch across the end of an epoch may contain a row twice. Their ids differ, and so do the ids derived from them
    (trajectories, groups, sessions) and the sampling seeds.
    """
    return f"{row_id}@{epoch}" if epoch else row_id


def row_of(name: str) -> str:
    """Reverse `id_in_epoch`: `train-7@2` becomes `train-7`. Plain row ids end in a row number, never in `@`."""
    return re.sub(r"@\d+$", "", name)


def read_messages(where: str, value: Any, *, has_filler: bool = False) -> list[Message]:
    """Validate a list of messages.

    Null fields of messages and calls are removed. Nulls in the arguments of a call are values and stay.

    Args:
        where: File and row, for errors.
        value: A list of messages, or its JSON text.
        has_filler: The messages are records of a columnar file, which fills in null for each field that another row
            has. Then nulls in arguments are removed too.

    Returns:
        The messages.

    Raises:
        DataError: The value is not a non-empty list of messages with known roles, text content and well-formed calls.
    """
    if isinstance(value, str):
        value, has_filler = decode_json(where, value, what="`messages` is text but "), False
    if not isinstance(value, list) or not value:
        raise DataError(f"{where}: `messages` must be a non-empty list, got {shorten(value)}. Correct the row.")
    return [_checked_message(where, index, message, has_filler) for index, message in enumerate(value)]


def _checked_message(where: str, index: int, message: Any, has_filler: bool) -> Message:
    if not isinstance(message, dict):
        raise DataError(f"{where}: message {index} must be an object, got {shorten(message)}. Correct the row.")
    message = _without_nulls(message)
    role, content, calls = (message.get(key) for key in ("role", "content", "tool_calls"))
    if role not in ROLES:
        raise DataError(
            f"{where}: message {index} must have one of the roles {', '.join(ROLES)}, got {role!r}. Correct the row."
        )
    has_calls = role == "assistant" and bool(calls)
    if not isinstance(content, str) and not (content is None and has_calls):
        raise DataError(f"{where}: message {index} must have text content, got {shorten(content)}. Correct it.")
    if has_calls:
        if not (isinstance(calls, list) and all(_is_call(where, call) for call in calls)):
            raise DataError(
                f"{where}: message {index} must have tool_calls in OpenAI's format, got {shorten(calls)}. Write a list "
                'of {"type": "function", "function": {"name": TEXT, "arguments": OBJECT}}.'
            )
        message["tool_calls"] = [_without_filler(call, has_filler) for call in calls]
    return message


def ground_truth_text(value: Any) -> str:
    """Convert a ground truth to text: texts are unchanged, everything else becomes JSON.

    Numbers in a list become texts. So the list `[1, 2]` (two accepted answers) differs from the text `[1, 2]` (an
    interval).
    """
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        is_number = [isinstance(item, int | float) and not isinstance(item, bool) for item in value]
        value = [str(item) if number else item for item, number in zip(value, is_number, strict=True)]
    return json.dumps(value, ensure_ascii=False, default=str)


def drop_long_prompts(
    prompts: Sequence[Prompt], renderer: _PromptRenderer, max_prompt_length: int
) -> tuple[list[Prompt], int]:
    """Drop prompts that are too long.

    Args:
        prompts: All prompts of a file.
        renderer: Renders prompts to tokens, with tool schemas and generation header.
        max_prompt_length: Tokens, inclusive.

    Returns:
        The prompts of at most `max_prompt_length` tokens, in order, and the number of dropped prompts.

    Raises:
        DataError: No prompt is left, or the chat template rejects one.
    """
    lengths = [_length(prompt, renderer) for prompt in prompts]
    kept = [prompt for prompt, length in zip(prompts, lengths, strict=True) if length <= max_prompt_length]
    num_dropped = len(prompts) - len(kept)
    if not kept:
        shortest = f"the shortest has {min(lengths)} tokens" if lengths else "there are none"
        raise DataError(
            f"rl_config.max_prompt_length: no prompt has at most {max_prompt_length} tokens, {shortest}. "
            "Raise the limit, or check data_path and prompt_type."
        )
    if num_dropped:
        logger.warning(
            "dropped %d of %d prompts with more than rl_config.max_prompt_length = %d tokens.",
            num_dropped, len(prompts), max_prompt_length,
        )  # fmt: skip
    return kept, num_dropped


def _length(prompt: Prompt, renderer: _PromptRenderer) -> int:
    try:
        return len(renderer.render_prompt(prompt.messages))
    except ModelError as error:
        raise DataError(f"row {prompt.id}: {error}") from error


def _to_prompt(
    path: Path, number: int, row: dict[str, Any], required: Sequence[str], evaluation_set: str | None
) -> Prompt:
    where = f"{path}, row {number}"
    for key in (*COLUMNS, *required):
        if row.get(key) is None:
            got = "null" if key in row else f"columns {', '.join(row) or 'none'}"
            raise DataError(f"{where}: column '{key}' must have a value, got {got}. Run `python -m rl preprocess`.")
    truth = row["ground_truth"]
    return Prompt(
        id=f"{evaluation_set or path.stem}-{number}",
        messages=read_messages(where, row["messages"], has_filler=path.suffix == ".parquet"),
        ground_truth=ground_truth_text(truth),
        data_source=str(row["data_source"]),
        extra={key: value for key, value in row.items() if key not in COLUMNS},
        evaluation_set=evaluation_set,
    )


def _is_call(where: str, call: Any) -> bool:
    """Whether a call is well-formed; arguments may be an object or its JSON text."""
    function = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        return False
    arguments = function.get("arguments")
    try:
        arguments = decode_json(where, arguments) if isinstance(arguments, str) else arguments
        json.dumps(arguments)
    except (DataError, TypeError):  # JSON has no dates or bytes, which columnar files may contain
        return False
    return isinstance(arguments, dict)


def _without_filler(call: dict[str, Any], has_filler: bool) -> dict[str, Any]:
    """Remove null fields of a call, and with `has_filler` also those in its arguments."""
    call = _without_nulls(call)
    if isinstance(call.get("function"), dict):
        return {**call, "function": _without_filler(call["function"], has_filler)}
    return {key: _without_nulls_inside(value) if has_filler else value for key, value in call.items()}


def _without_nulls(record: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in record.items() if value is not None}


def _without_nulls_inside(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls_inside(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_without_nulls_inside(item) for item in value]
    return value
