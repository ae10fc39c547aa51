"""The format of Hermes and of Qwen's chat templates: a JSON object between `<tool_call>` and `</tool_call>`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from rl.chat.parsers.base import call_ends, failed_call, opening_tags, read_calls, until_end
from rl.chat.parsers.json_calls import JsonText, checked_call, decode_json, encode_json, json_problem
from rl.types import ToolCall

_OPEN, _CLOSE = "<tool_call>", "</tool_call>"
_EXAMPLE = '{"name": <function-name>, "arguments": <args-json-object>}'
_TAGS = opening_tags(_OPEN)
_ENDS = call_ends(_OPEN, _CLOSE)
_SPACE = re.compile(r"[ \t\r\n]*")


@dataclass(slots=True, frozen=True)
class HermesParser:
    r"""Reads `<tool_call>\n{"name": ..., "arguments": {...}}\n</tool_call>`.

    The text between the tags is read by a JSON decoder, so a closing tag inside a string belongs to the string. The
    last call of a turn may lack its closing tag.
    """

    stop: tuple[str, ...] = ()
    result_format: str | None = None
    instructions: str | None = None

    def for_tools(self, tools: Sequence[dict[str, Any]]) -> HermesParser:
        """Itself: JSON has types."""
        return self

    def parse(self, text: str) -> list[ToolCall]:
        """The calls of a turn, in order; malformed ones, and unclosed ones before others, carry an `error`."""
        return read_calls(JsonText(text), _TAGS, _read_call) if _OPEN in text else []

    def render(self, call: ToolCall) -> str:
        """The call between its tags, as the chat templates of the Qwen family write it."""
        return f"{_OPEN}\n{encode_json({'name': call.name, 'arguments': call.arguments})}\n{_CLOSE}"


def _read_call(text: str, tag: re.Match[str]) -> tuple[ToolCall, int]:
    start = tag.end()
    body = _SPACE.match(text, start).end()  # type: ignore[union-attr]  # matches the empty string too
    try:
        value, end = decode_json(text, body)
    except (ValueError, RecursionError) as error:
        return _malformed(text, start, body, error)
    end = _SPACE.match(text, end).end()  # type: ignore[union-attr]
    if text.startswith(_CLOSE, end):
        return checked_call(value, text[start:end], _EXAMPLE), end + len(_CLOSE)
    if end == len(text):
        return replace(checked_call(value, text[start:], _EXAMPLE), lacks_end=True), end
    raw, after, is_closed = until_end(text, start, _ENDS)
    if is_closed:
        return failed_call(raw, f"there is text after the JSON object in {_OPEN}. Write only {_EXAMPLE} in it"), after
    return failed_call(raw, f"the tool call is not closed. End it with {_CLOSE}"), after


def _malformed(text: str, start: int, body: int, error: Exception) -> tuple[ToolCall, int]:
    raw, after, is_closed = until_end(text, start, _ENDS)
    if not is_closed:
        problem = f"the tool call is cut off or not closed. Write {_EXAMPLE} and end it with {_CLOSE}"
        return failed_call(raw, problem), after
    return failed_call(raw, f"the tool call is not valid JSON: {json_problem(error, body)}. Write {_EXAMPLE}"), after
