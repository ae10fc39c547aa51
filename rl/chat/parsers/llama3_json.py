"""The format of Llama 3.1 and later: JSON objects with `name` and `parameters`, without tags around them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rl.chat.parsers.base import failed_call, opening_tags, read_calls
from rl.chat.parsers.json_calls import (
    JsonText,
    JsonValueError,
    checked_call,
    decode_json,
    encode_json,
    json_problem,
)
from rl.types import ToolCall

_EXAMPLE = '{"name": <function-name>, "parameters": <args-json-object>}'
_PYTHON_TAG = "<|python_tag|>"
_ARGUMENTS_KEYS = ("arguments", "parameters")
_TAGS = opening_tags(r'(?:<\|python_tag\|>\s*)+[\[{]?|\{(?=\s*")')
_BEGINS_A_CALL = re.compile(r'\{\s*(?:"name"\s*:|"(?:parameters|arguments)"\s*:|"type"\s*:\s*"function")')
_HAS_A_NAME = re.compile(r'\{\s*"name"\s*:\s*"[^"]*"\s*,\s*"(?!(?:parameters|arguments|type)")')
"""An object that begins with `name` and has a second key that no call has."""
_INSIDE = re.compile(r"[:,\[]\s*\Z")
_MAX_SPACE = 100


@dataclass(slots=True, frozen=True)
class Llama3JsonParser:
    """Reads `{"name": ..., "parameters": {...}}`, several in a row or separated by `;`.

    An object is a call if it has a `name` and `parameters` or `arguments`, or if it follows `<|python_tag|>`; any other
    is part of the answer. One that cannot be decoded is a call if it begins like one.

    Source: the chat template of Llama 3.1 (meta-llama/Llama-3.1-8B-Instruct, tokenizer_config.json), and what vLLM's
    parser of this name reads.
    """

    stop: tuple[str, ...] = ()
    result_format: str | None = None
    instructions: str | None = None

    def for_tools(self, tools: Sequence[dict[str, Any]]) -> Llama3JsonParser:
        """Itself: JSON has types."""
        return self

    def parse(self, text: str) -> list[ToolCall]:
        """The calls of a turn, in order; malformed and truncated ones carry an `error` and do not affect the others."""
        return read_calls(JsonText(text), _TAGS, _read_call) if "{" in text or _PYTHON_TAG in text else []

    def render(self, call: ToolCall) -> str:
        """The object as the chat template of Llama 3.1 writes it."""
        return encode_json({"name": call.name, "parameters": call.arguments})


def _read_call(text: str, tag: re.Match[str]) -> tuple[ToolCall | None, int]:
    is_tagged = tag.group().startswith(_PYTHON_TAG)
    if tag.group().endswith("["):
        return None, tag.end()
    if not tag.group().endswith("{"):
        end = _next_tag(text, tag.end())
        return failed_call(text[tag.end() : end], f"{_PYTHON_TAG} needs a JSON object. Write {_EXAMPLE}"), end
    start = tag.end() - 1
    try:
        value, end = decode_json(text, start)
    except (ValueError, RecursionError) as error:
        return _undecodable(text, start, error, is_call=is_tagged or _begins_a_call(text, start))
    if not is_tagged and not ("name" in value and any(key in value for key in _ARGUMENTS_KEYS)):
        return None, end
    return checked_call(value, text[start:end], _EXAMPLE, _ARGUMENTS_KEYS), end


def _begins_a_call(text: str, start: int) -> bool:
    return _BEGINS_A_CALL.match(text, start) is not None and _HAS_A_NAME.match(text, start) is None


def _undecodable(text: str, start: int, error: Exception, *, is_call: bool) -> tuple[ToolCall | None, int]:
    """A malformed call, or None, and where to go on: never inside an object whose end is unknown."""
    if isinstance(error, RecursionError):
        after = len(text)
    elif isinstance(error, JsonValueError):
        after = error.end
    else:
        after = max(getattr(error, "pos", 0), start + 1)
        after = _next_tag(text, after) if is_call else after
    if not is_call:
        return None, after
    problem = f"the tool call is not valid JSON, or cut off: {json_problem(error, start)}. Write {_EXAMPLE}"
    return failed_call(text[start:after], problem), after


def _next_tag(text: str, position: int) -> int:
    """Where the next call or thought may begin: not at an object nested in the malformed one."""
    for following in _TAGS.finditer(text, position):
        start = following.start()
        is_thought = following["think"] is not None or following["end"] is not None
        if is_thought or _INSIDE.search(text, max(start - _MAX_SPACE, 0), start) is None:
            return start
    return len(text)
