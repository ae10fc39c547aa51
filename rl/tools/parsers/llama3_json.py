"""The format of Llama 3.1 and later: JSON objects with `name` and `parameters`, without tags around them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rl.tools.parsers.base import failed_call, opening_tags, read_calls
from rl.tools.parsers.json_calls import checked_call, decode_json, encode_json, json_problem
from rl.types import ToolCall

_EXAMPLE = '{"name": <function-name>, "parameters": <args-json-object>}'
_TAGS = opening_tags(
    r'(?:<\|python_tag\|>\s*)+\{?|\{\s*"(?:name|parameters|arguments)"\s*:|\{\s*"type"\s*:\s*"function"'
)

_INSIDE = re.compile(r"[:,\[]\s*\Z")
_MAX_SPACE = 100


@dataclass(slots=True, frozen=True)
class Llama3JsonParser:
    """Reads `{"name": ..., "parameters": {...}}`, several of them behind each other or with `;` between.

    An object is a call where `<|python_tag|>` stands before it, or where its first key is `name`, `parameters`,
    `arguments`, or `type` with the value `function`. `arguments` is read for `parameters`.

    Source: the chat template of Llama 3.1 (meta-llama/Llama-3.1-8B-Instruct, tokenizer_config.json).
    """

    stop: tuple[str, ...] = ()
    result_format: str | None = None
    instructions: str | None = None

    def for_tools(self, tools: Sequence[dict[str, Any]]) -> Llama3JsonParser:
        """Itself: JSON has types."""
        return self

    def parse(self, text: str) -> list[ToolCall]:
        """The calls of a turn, in order; malformed and truncated ones carry an `error` and leave the others alone."""
        return read_calls(text, _TAGS, _read_call)

    def render(self, call: ToolCall) -> str:
        """The object as the chat template of Llama 3.1 writes it."""
        return encode_json({"name": call.name, "parameters": call.arguments})


def _read_call(text: str, tag: re.Match[str]) -> tuple[ToolCall, int]:
    start = text.find("{", tag.start(), tag.end())
    if start < 0:
        end = _next_tag(text, tag.end())
        return failed_call(text[tag.end() : end], f"<|python_tag|> needs a JSON object. Write {_EXAMPLE}"), end
    try:
        value, end = decode_json(text, start)
    except (ValueError, RecursionError) as error:
        return _malformed(text, start, error)
    return checked_call(value, text[start:end], _EXAMPLE, ("parameters", "arguments")), end


def _malformed(text: str, start: int, error: Exception) -> tuple[ToolCall, int]:
    failed_at = getattr(error, "pos", start + 1)
    after = len(text) if isinstance(error, RecursionError) else _next_tag(text, max(failed_at, start + 1))
    problem = f"the tool call is not valid JSON, or cut off: {json_problem(error, start)}. Write {_EXAMPLE}"
    return failed_call(text[start:after], problem), after


def _next_tag(text: str, position: int) -> int:
    """Where the next call or thought may begin; not at an object that is a value inside the malformed one."""
    for following in _TAGS.finditer(text, position):
        start = following.start()
        is_thought = following["think"] is not None or following["end"] is not None
        if is_thought or _INSIDE.search(text, max(start - _MAX_SPACE, 0), start) is None:
            return start
    return len(text)
