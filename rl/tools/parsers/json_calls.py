"""Calls that are JSON objects: a strict decoder, and what is wrong with an object in words for the model."""

from __future__ import annotations

import json
import re
from typing import Any, NoReturn

from rl.tools.parsers.base import failed_call
from rl.types import ToolCall

_SURROGATE = re.compile(r"[\ud800-\udfff]|\\u[dD][89a-fA-F]")
"""What an unpaired surrogate can come from: itself, or its escape."""


def decode_json(text: str, start: int = 0) -> tuple[Any, int]:
    """Decode the JSON value that begins at `start`.

    Returns:
        The value, and where it ends.

    Raises:
        ValueError: It is not valid JSON, or holds an unpaired surrogate, which is no text.
        RecursionError: It is nested too deeply.
    """
    value, end = _DECODER.raw_decode(text, start)
    if _SURROGATE.search(text, start, end):
        encode_json(value).encode()
    return value, end


def encode_json(value: Any) -> str:
    """The value as chat templates write it."""
    return json.dumps(value, ensure_ascii=False)


def json_problem(error: Exception, start: int) -> str:
    """Say in words what `decode_json` raised, with places counted from `start`."""
    if isinstance(error, json.JSONDecodeError):
        reason = f"{error.msg} at character {max(error.pos - start, 0)}"
        if error.msg.startswith("Invalid control character"):
            reason += r" (write a line break inside a string as \n)"
        return reason
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if isinstance(error, UnicodeEncodeError):
        return "it contains an unpaired surrogate"
    return str(error)


def checked_call(value: Any, raw: str, example: str, arguments_keys: tuple[str, ...] = ("arguments",)) -> ToolCall:
    """Make a call of a decoded object, or say what it lacks.

    Args:
        value: As decoded.
        raw: The text of the call.
        example: What to write, for the error.
        arguments_keys: Keys that may hold the arguments; the first is the one to write.

    Returns:
        The call, with its `error` where it is none.
    """
    if not isinstance(value, dict):
        return failed_call(raw, f"the tool call must be a JSON object, got {_kind(value)}. Write {example}")
    name = value.get("name")
    if not isinstance(name, str) or not name:
        problem = "has no 'name'" if "name" not in value else f"needs a text as 'name', got {_kind(name)}"
        return failed_call(raw, f"the tool call {problem}. Write {example}")
    key = next((key for key in arguments_keys if key in value), arguments_keys[0])
    arguments = value.get(key)
    if not isinstance(arguments, dict):
        problem = f"no '{key}'" if key not in value else f"{_kind(arguments)} as '{key}', not an object"
        return failed_call(raw, f"the call of '{name}' has {problem}. Write {example}", name)
    return ToolCall(name, arguments, raw)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON value")


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant)


def _kind(value: Any) -> str:
    kinds = {dict: "an object", list: "an array", str: "an empty text" if value == "" else "a text", bool: "a boolean"}
    return "null" if value is None else kinds.get(type(value), "a number")
