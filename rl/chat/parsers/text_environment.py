"""The format of TRL's TextEnvironment: a tool's name and one text, and the result right behind them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rl.chat.parsers.base import call_ends, failed_call, opening_tags, read_calls, until_end
from rl.chat.parsers.plain_text import OneTextArgument, one_text_argument, to_text
from rl.types import ToolCall

_REQUEST, _CALL, _RESPONSE, _SUBMIT = "<request>", "<call>", "<response>", "<submit>"
_TAGS = opening_tags(f"{_REQUEST}|{_SUBMIT}")
_ENDS = call_ends(_REQUEST, _CALL)
_NAMED_QUERY = re.compile(r"\s*<\s*([^<>\s][^<>]*)>(.*)", re.DOTALL)
_EXAMPLE = f"{_REQUEST}<TOOL-NAME>QUERY{_CALL}"
_DEFAULT_ARGUMENT = "query"


@dataclass(slots=True, frozen=True)
class TextEnvironmentParser:
    """Reads `<request><Tool>query<call>`. The model ends with `<submit>`, behind which nothing is a call.

    Source: TRL's TextEnvironment (trl/environment/base_environment.py, TRL 0.11), whose tags and result format these
    are; it leaves the prompt to its user.
    """

    targets: Mapping[str, OneTextArgument] = field(default_factory=dict)
    """By the tool's name."""
    stop: tuple[str, ...] = (_CALL, _SUBMIT)
    result_format: str | None = "{}" + _RESPONSE
    instructions: str | None = None

    def for_tools(self, tools: Sequence[dict[str, Any]]) -> TextEnvironmentParser:
        """Learns which argument of each tool takes the query, and describes the tools in `instructions`."""
        if not tools:
            return self
        targets = {tool["function"]["name"]: one_text_argument(tool, "text_environment") for tool in tools}
        return TextEnvironmentParser(targets, instructions=_instructions(tools, targets))

    def parse(self, text: str) -> list[ToolCall]:
        """The requests of a turn, in order; malformed and unclosed ones carry an `error`."""
        return read_calls(text, _TAGS, self._read_call)

    def render(self, call: ToolCall) -> str:
        """The request with its tags."""
        target = self.targets.get(call.name)
        query = target.to_text(call.arguments) if target else to_text(call.arguments.get(_DEFAULT_ARGUMENT, ""))
        return f"{_REQUEST}<{call.name}>{query}{_CALL}"

    def _read_call(self, text: str, tag: re.Match[str]) -> tuple[ToolCall | None, int]:
        if tag.group() == _SUBMIT:
            return None, len(text)
        raw, after, is_closed = until_end(text, tag.end(), _ENDS)
        named = _NAMED_QUERY.match(raw)
        if not is_closed or named is None:
            problem = "names no tool" if is_closed else "is cut off or not closed"
            return failed_call(raw, f"the request {problem}. Write {_EXAMPLE}"), after
        name, query = named[1].strip(), named[2]
        target = self.targets.get(name, OneTextArgument(name, _DEFAULT_ARGUMENT))
        return ToolCall(name, target.to_arguments(query), raw), after


def _instructions(tools: Sequence[dict[str, Any]], targets: Mapping[str, OneTextArgument]) -> str:
    lines = ["You can use these tools:"]
    for tool in tools:
        function = tool["function"]
        name = function["name"]
        target = targets[name]
        says = " ".join(str(t).strip() for t in (function.get("description"), target.schema.get("description")) if t)
        lines.append(f"- {_REQUEST}<{name}>{target.argument}{_CALL} {says}".rstrip())
    lines.append(f"The result of a request follows behind {_CALL} and ends with {_RESPONSE}.")
    lines.append(f"Write {_SUBMIT} at the end of your answer.")
    return "\n".join(lines) + "\n\n"
