"""The format of Qwen3-Coder: `<function=...>` and `<parameter=...>` elements, values as plain text."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rl.tools.parsers.base import call_ends, failed_call, opening_tags, read_calls, until_end
from rl.tools.parsers.plain_text import parameters_of, to_text, to_value
from rl.types import ToolCall

_EXAMPLE = (
    "<tool_call>\n<function=FUNCTION-NAME>\n<parameter=PARAMETER-NAME>\nVALUE\n</parameter>\n</function>\n</tool_call>"
)
_TAGS = opening_tags("<tool_call>|<function=")
_ENDS = call_ends("<tool_call>", "</tool_call>")
_NEXT_CALL = re.compile(r"<tool_call>\s*<function=")
_FUNCTION = re.compile(r"\s*<function=([^>\n]+)>")
_PARAMETER = re.compile(r"\s*<parameter=([^>\n]+)>")
_VALUE_END = re.compile(r"</parameter>(?=\s*(?:<parameter=|</function>))")
_CALL_END = re.compile(r"\s*</function>\s*</tool_call>")


@dataclass(slots=True, frozen=True)
class Qwen3CoderParser:
    r"""Reads `<tool_call>\n<function=name>\n<parameter=key>\nvalue\n</parameter>\n</function>\n</tool_call>`.

    Nothing is escaped in this format, so a value ends at the `</parameter>` that another parameter or the function's
    end follows; any other tag in it belongs to it, but for a `<tool_call>` with a `<function=` behind it.

    Source: the chat template of Qwen3-Coder (Qwen/Qwen3-Coder-30B-A3B-Instruct, tokenizer_config.json).
    """

    schemas: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Schemas of parameters, by the tool's name and their own."""
    stop: tuple[str, ...] = ()
    result_format: str | None = None
    instructions: str | None = None

    def for_tools(self, tools: Sequence[dict[str, Any]]) -> Qwen3CoderParser:
        """Takes the types of parameters from their schemas; a parameter without one is text."""
        return Qwen3CoderParser({tool["function"]["name"]: parameters_of(tool) for tool in tools})

    def parse(self, text: str) -> list[ToolCall]:
        """The calls of a turn, in order; malformed and unclosed ones carry an `error` and leave the others alone."""
        return read_calls(text, _TAGS, self._read_call)

    def render(self, call: ToolCall) -> str:
        """The call as the chat template of Qwen3-Coder writes it."""
        parameters = "".join(f"<parameter={k}>\n{to_text(v)}\n</parameter>\n" for k, v in call.arguments.items())
        return f"<tool_call>\n<function={call.name}>\n{parameters}</function>\n</tool_call>"

    def _read_call(self, text: str, tag: re.Match[str]) -> tuple[ToolCall, int]:
        start = tag.end()
        if tag.group() != "<tool_call>":
            raw, after, _ = until_end(text, tag.start(), _ENDS)
            return failed_call(raw, f"<function=...> stands outside <tool_call>. Write {_EXAMPLE}"), after
        function = _FUNCTION.match(text, start)
        if function is None:
            return _malformed(text, start, f"the tool call does not begin with <function=NAME>. Write {_EXAMPLE}")
        following = _NEXT_CALL.search(text, start)
        limit = following.start() if following else len(text)
        name = function[1].strip()
        arguments: dict[str, Any] = {}
        position = function.end()
        while (parameter := _PARAMETER.match(text, position, limit)) is not None:
            end = _VALUE_END.search(text, parameter.end(), limit)
            key = parameter[1].strip()
            if end is None:
                return _malformed(text, start, f"parameter '{key}' is not closed. Write {_EXAMPLE}", name)
            if key in arguments:
                return _malformed(text, start, f"parameter '{key}' is given twice. Write it once", name)
            value = text[parameter.end() : end.start()].removeprefix("\n").removesuffix("\n")
            arguments[key] = to_value(value, self.schemas.get(name, {}).get(key, {}))
            position = end.end()
        closing = _CALL_END.match(text, position, limit)
        if closing is None:
            return _malformed(text, start, f"</function> and </tool_call> do not follow. Write {_EXAMPLE}", name)
        raw = text[start : closing.end() - len("</tool_call>")]
        if not name:
            return failed_call(raw, f"the function has no name. Write {_EXAMPLE}"), closing.end()
        return ToolCall(name, arguments, raw), closing.end()


def _malformed(text: str, start: int, problem: str, name: str = "") -> tuple[ToolCall, int]:
    raw, after, is_closed = until_end(text, start, _ENDS)
    cut_off = "" if is_closed else "the tool call is cut off or not closed: "
    return failed_call(raw, cut_off + problem, name), after
