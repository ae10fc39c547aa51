"""The format of Qwen3-Coder: `<function=...>` and `<parameter=...>` elements, values as plain text."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rl.chat.parsers.base import failed_call, opening_tags, read_calls
from rl.chat.parsers.plain_text import parameters_of, to_text, to_value
from rl.types import ToolCall

_EXAMPLE = (
    "<tool_call>\n<function=FUNCTION-NAME>\n<parameter=PARAMETER-NAME>\nVALUE\n</parameter>\n</function>\n</tool_call>"
)
_TAGS = opening_tags("<tool_call>|<function=")
_PREAMBLE_END = re.compile("(?P<inside><function=|<think>)|(?P<close></tool_call>)|</think>")
_NAME = re.compile(r"([^<>\n]*)>")
_BODY_END = re.compile(r"(?P<close></function>)|<tool_call>\s*<function=")
_CUT_BODY_END = re.compile("</think>|</tool_call>")
_PARAMETER = "<parameter="
_VALUE_END = re.compile("(?P<close></parameter>)|<parameter=")


@dataclass(slots=True, frozen=True)
class Qwen3CoderParser:
    r"""Reads `<tool_call>\n<function=name>\n<parameter=key>\nvalue\n</parameter>\n</function>\n</tool_call>`.

    The call is what stands between `<function=name>` and `</function>`; `<tool_call>` around it may be missing, and
    `</function>` too where the turn or the `<tool_call>` ends behind a parameter. Nothing is escaped in this format, so
    a value ends at the first `</parameter>`, `<parameter=` or `</function>`; any other tag in it belongs to it, but for
    a `<tool_call>` with a `<function=` behind it.

    Source: the chat template of Qwen3-Coder (Qwen/Qwen3-Coder-30B-A3B-Instruct, tokenizer_config.json), and what vLLM's
    parser of this name reads.
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
        """The calls of a turn, in order; malformed and cut ones carry an `error` and leave the others alone."""
        return read_calls(text, _TAGS, self._read_call)

    def render(self, call: ToolCall) -> str:
        """The call as the chat template of Qwen3-Coder writes it."""
        parameters = "".join(f"<parameter={k}>\n{to_text(v)}\n</parameter>\n" for k, v in call.arguments.items())
        return f"<tool_call>\n<function={call.name}>\n{parameters}</function>\n</tool_call>"

    def _read_call(self, text: str, tag: re.Match[str]) -> tuple[ToolCall | None, int]:
        if tag.group() == "<tool_call>":
            return _read_preamble(text, tag.end())
        end = _BODY_END.search(text, tag.end())
        is_closed = end is not None and end["close"] is not None
        if not is_closed:
            end = _CUT_BODY_END.search(text, tag.end(), len(text) if end is None else end.start()) or end
        limit, after = (end.start(), end.end() if is_closed else end.start()) if end else (len(text), len(text))
        raw = text[tag.start() : after]
        named = _NAME.match(text, tag.end(), limit)
        name = named[1].strip() if named is not None else ""
        if named is None or not name:
            return failed_call(raw, f"the function has no name. Write {_EXAMPLE}"), after
        values, cut = _read_parameters(text[named.end() : limit])
        if cut is not None:
            return failed_call(raw, f"parameter '{cut}' is not closed. Write {_EXAMPLE}", name), after
        if not is_closed and not (values and (end is None or end.group() == "</tool_call>")):
            return failed_call(raw, f"the tool call is cut off or not closed. Write {_EXAMPLE}", name), after
        schemas = self.schemas.get(name, {})
        arguments = {key: to_value(value, schemas.get(key, {})) for key, value in values.items()}
        return ToolCall(name, arguments, raw, lacks_end=end is None), after


def _read_preamble(text: str, start: int) -> tuple[ToolCall | None, int]:
    """What stands between `<tool_call>` and `<function=` or a thought: nothing, or the error that no function comes."""
    end = _PREAMBLE_END.search(text, start)
    if end is not None and end["inside"]:
        return None, end.start()
    limit, after = (len(text), len(text)) if end is None else (end.start(), end.end() if end["close"] else end.start())
    cut_off = "" if end is not None and end["close"] else "the tool call is cut off or not closed: "
    problem = f"{cut_off}the tool call has no <function=NAME>. Write {_EXAMPLE}"
    return failed_call(text[start:limit], problem), after


def _read_parameters(body: str) -> tuple[dict[str, str], str | None]:
    """The values of a call as text, and the name of a parameter that does not end."""
    values: dict[str, str] = {}
    position = 0
    while (start := body.find(_PARAMETER, position)) >= 0:
        begin = body.find(">", start) + 1
        name = body[start + len(_PARAMETER) : begin - 1 if begin else len(body)]
        end = _VALUE_END.search(body, begin) if begin else None
        if end is None:
            return values, name.strip()
        values[name.lstrip()] = body[begin : end.start()].removeprefix("\n").removesuffix("\n")
        position = end.end() if end["close"] else end.start()
    return values, None
