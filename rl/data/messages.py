"""Checks the messages of a row, and brings ground truths into text."""

from __future__ import annotations

import json
from typing import Any

from rl.data.json_text import decode_json, shorten
from rl.errors import DataError
from rl.types import Message

ROLES = ("system", "user", "assistant", "tool")
"""Roles of messages."""


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
