"""Reads tool calls out of a turn's text, and writes them. Every parser is total: no text makes it raise."""

from __future__ import annotations

import json
import re
from typing import Any, NoReturn, Protocol

from rl.types import ToolCall


class Parser(Protocol):
    """One way to write tool calls as text."""

    stop: tuple[str, ...]
    """Strings that end a turn, beside the end-of-turn token."""

    def parse(self, text: str) -> list[ToolCall]:
        """The calls of a turn, in order; one that cannot be read is there with its `error`."""
        ...

    def render(self, call: ToolCall) -> str:
        """The call as the model is expected to write it; `parse` reads it back."""
        ...


_OPEN, _CLOSE = "<tool_call>", "</tool_call>"
_EXAMPLE = '{"name": <function-name>, "arguments": <args-json-object>}'
_TAG = re.compile(r"<tool_call>|<think>|</think>")
_CALL_END = re.compile(r"</tool_call>|<tool_call>|</think>")
_SPACE = re.compile(r"[ \t\r\n]*")


class HermesParser:
    r"""The format of Hermes and Qwen: `<tool_call>\n{"name": ..., "arguments": {...}}\n</tool_call>`.

    The text between the tags is read by a JSON decoder, so a closing tag inside a string belongs to the string. Calls
    between `<think>` and `</think>` are thoughts, not calls; so is all before a `</think>` that the prompt opened.
    """

    stop: tuple[str, ...] = ()

    def parse(self, text: str) -> list[ToolCall]:
        """The calls of a turn, in order; malformed and unclosed ones carry an `error` and leave the others alone."""
        calls: list[ToolCall] = []
        position = 0
        while (tag := _TAG.search(text, position)) is not None:
            position = tag.end()
            if tag.group() == "</think>":
                calls.clear()
            elif tag.group() == "<think>":
                end = text.find("</think>", position)
                if end < 0:
                    break
                position = end + len("</think>")
            else:
                call, position = _read_call(text, position)
                calls.append(call)
        return calls

    def render(self, call: ToolCall) -> str:
        """The call between its tags, as the chat templates of the Qwen family write it."""
        body = json.dumps({"name": call.name, "arguments": call.arguments}, ensure_ascii=False)
        return f"{_OPEN}\n{body}\n{_CLOSE}"


PARSERS: dict[str, Parser] = {"hermes": HermesParser()}
"""Parsers by `rl_config.tool_parser_format`."""


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON value")


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant)


def _read_call(text: str, start: int) -> tuple[ToolCall, int]:
    """Read the call whose opening tag ends at `start`. Returns it and where to go on."""
    body = _SPACE.match(text, start).end()  # type: ignore[union-attr]  # matches the empty string too
    try:
        value, end = _DECODER.raw_decode(text, body)
        json.dumps(value, ensure_ascii=False).encode()  # an unpaired surrogate is no text
    except (ValueError, RecursionError) as error:
        return _malformed(text, start, body, error)
    end = _SPACE.match(text, end).end()  # type: ignore[union-attr]
    if text.startswith(_CLOSE, end):
        return _checked_call(value, text[start:end]), end + len(_CLOSE)
    raw, after, is_closed = _until_end(text, start)
    if is_closed:
        return _failed(raw, f"there is text after the JSON object in {_OPEN}. Write only {_EXAMPLE} in it"), after
    return _failed(raw, f"the tool call is not closed. End it with {_CLOSE}"), after


def _malformed(text: str, start: int, body: int, error: Exception) -> tuple[ToolCall, int]:
    raw, after, is_closed = _until_end(text, start)
    if not is_closed:
        return _failed(raw, f"the tool call is cut off or not closed. Write {_EXAMPLE} and end it with {_CLOSE}"), after
    reason = str(error)
    if isinstance(error, json.JSONDecodeError):
        reason = f"{error.msg} at character {max(error.pos - body, 0)}"
        if error.msg.startswith("Invalid control character"):
            reason += r" (write a line break inside a string as \n)"
    elif isinstance(error, RecursionError):
        reason = "it is nested too deeply"
    elif isinstance(error, UnicodeEncodeError):
        reason = "it contains an unpaired surrogate"
    return _failed(raw, f"the tool call is not valid JSON: {reason}. Write {_EXAMPLE}"), after


def _until_end(text: str, start: int) -> tuple[str, int, bool]:
    """The text of a call that cannot be read, where to go on after it, and whether it has a closing tag."""
    end = _CALL_END.search(text, start)
    if end is None:
        return text[start:], len(text), False
    is_closed = end.group() == _CLOSE
    return text[start : end.start()], end.end() if is_closed else end.start(), is_closed


def _checked_call(value: Any, raw: str) -> ToolCall:
    if not isinstance(value, dict):
        return _failed(raw, f"the tool call must be a JSON object, got {_kind(value)}. Write {_EXAMPLE}")
    name, arguments = value.get("name"), value.get("arguments")
    if not isinstance(name, str) or not name:
        problem = "has no 'name'" if "name" not in value else f"needs a text as 'name', got {_kind(name)}"
        return _failed(raw, f"the tool call {problem}. Write {_EXAMPLE}")
    if not isinstance(arguments, dict):
        problem = "no 'arguments'" if "arguments" not in value else f"{_kind(arguments)} as 'arguments', not an object"
        return _failed(raw, f"the call of '{name}' has {problem}. Write {_EXAMPLE}", name)
    return ToolCall(name, arguments, raw)


def _failed(raw: str, error: str, name: str = "") -> ToolCall:
    return ToolCall(name, {}, raw, f"{error}.")


def _kind(value: Any) -> str:
    kinds = {dict: "an object", list: "an array", str: "an empty text" if value == "" else "a text", bool: "a boolean"}
    return "null" if value is None else kinds.get(type(value), "a number")
