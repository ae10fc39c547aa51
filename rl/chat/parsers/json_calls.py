"""Calls that are JSON objects: a strict decoder, and messages for the model about malformed objects."""

from __future__ import annotations

import json
import re
from typing import Any

from rl.chat.parsers.base import failed_call
from rl.types import ToolCall

_SURROGATE = re.compile(r"[\ud800-\udfff]|\\u[dD][89a-fA-F]")
"""What an unpaired surrogate can come from: itself, or its escape."""
_NOT_FINITE = re.compile(r"NaN|Infinity|[eE]\+?\d{3}|\d{300}")
"""What a number that is not finite can come from."""
_DECODER = json.JSONDecoder()


class JsonText(str):
    """A text with many values to decode.

    `json.JSONDecodeError` counts the lines before the mistake, from the beginning of the text. With a mistake in each
    of n calls that is n^2 work for a number that nobody reads, so this text claims that it has no lines.
    """

    __slots__ = ()

    def count(self, *_: Any) -> int:
        """Claim that there are no lines."""
        return 0

    def rfind(self, *_: Any) -> int:
        """Claim that nothing is found."""
        return -1


class JsonValueError(ValueError):
    """A value that decodes but is not valid JSON: NaN, Infinity, an unpaired surrogate."""

    def __init__(self, problem: str, end: int) -> None:
        super().__init__(problem)
        self.end = end
        """Where the value ends."""


def decode_json(text: str, start: int = 0) -> tuple[Any, int]:
    """Decode the JSON value that begins at `start`.

    Args:
        text: A `JsonText` if it holds more than one value.
        start: Where the value begins.

    Returns:
        The value, and where it ends.

    Raises:
        JsonValueError: It holds a number that is not finite, or an unpaired surrogate.
        ValueError: It is not valid JSON.
        RecursionError: It is nested too deeply.
    """
    value, end = _DECODER.raw_decode(text, start)
    try:
        if _SURROGATE.search(text, start, end):
            encode_json(value).encode()
        if _NOT_FINITE.search(text, start, end):
            json.dumps(value, allow_nan=False)
    except UnicodeEncodeError as error:
        raise JsonValueError("it contains an unpaired surrogate", end) from error
    except ValueError as error:
        raise JsonValueError("NaN and Infinity are no JSON values", end) from error
    return value, end


def decode_object(text: str) -> dict[str, Any] | None:
    """The JSON object that a text spells; None if it does not spell one."""
    text = text.strip()
    try:
        value, end = decode_json(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) and end == len(text) else None


def encode_json(value: Any) -> str:
    """The value as chat templates write it."""
    return json.dumps(value, ensure_ascii=False)


def json_problem(error: Exception, start: int) -> str:
    """Describe what `decode_json` raised, with positions counted from `start`."""
    if isinstance(error, json.JSONDecodeError):
        reason = f"{error.msg} at character {max(error.pos - start, 0)}"
        if error.msg.startswith("Invalid control character"):
            reason += r" (write a line break inside a string as \n)"
        return reason
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    return str(error)


def checked_call(value: Any, raw: str, example: str, arguments_keys: tuple[str, ...] = ("arguments",)) -> ToolCall:
    """Turn a decoded object into a call, or say what is missing.

    Args:
        value: As decoded.
        raw: The text of the call.
        example: What to write, for the error.
        arguments_keys: Keys that may hold the arguments, in order of preference; the last is the one to write.

    Returns:
        The call; with an `error` if the object is not one.
    """
    if not isinstance(value, dict):
        return failed_call(raw, f"the tool call must be a JSON object, got {_kind(value)}. Write {example}")
    name = value.get("name")
    if not isinstance(name, str) or not name:
        problem = "has no 'name'" if "name" not in value else f"needs a text as 'name', got {_kind(name)}"
        return failed_call(raw, f"the tool call {problem}. Write {example}")
    key = next((key for key in arguments_keys if key in value), arguments_keys[-1])
    arguments = as_arguments(value.get(key))
    if arguments is None:
        problem = f"no '{key}'" if key not in value else f"{_kind(value[key])} as '{key}', not an object"
        return failed_call(raw, f"the call of '{name}' has {problem}. Write {example}", name)
    return ToolCall(name, arguments, raw)


def as_arguments(value: Any) -> dict[str, Any] | None:
    """The arguments of a call: an object, or a text that spells one, as in OpenAI's messages; otherwise None."""
    return decode_object(value) if isinstance(value, str) else value if isinstance(value, dict) else None


def _kind(value: Any) -> str:
    kinds = {dict: "an object", list: "an array", str: "an empty text" if value == "" else "a text", bool: "a boolean"}
    return "null" if value is None else kinds.get(type(value), "a number")
