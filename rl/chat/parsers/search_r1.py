"""The format of Search-R1: a query between tags, and what was found put behind it in the same assistant turn."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rl.chat.parsers.base import call_ends, failed_call, opening_tags, read_calls, until_end
from rl.chat.parsers.plain_text import OneTextArgument, one_text_argument
from rl.errors import ConfigError
from rl.types import ToolCall

_OPEN, _CLOSE = "<search>", "</search>"
_TAGS = opening_tags("<search>|<answer>")
_ENDS = call_ends(_OPEN, _CLOSE)
_EXAMPLE = f"{_OPEN} query {_CLOSE}"
_TOOL_NAME = "search"
_INSTRUCTIONS = (
    "Answer the given question. You must conduct reasoning inside <think> and </think> first every time you get new "
    "information. After reasoning, if you find you lack some knowledge, you can call a search engine by <search> query "
    "</search> and it will return the top searched results between <information> and </information>. You can search as "
    "many times as your want. If you find no further external knowledge needed, you can directly provide the answer "
    "inside <answer> and </answer>, without detailed illustrations. For example, <answer> Beijing </answer>. Question: "
)


@dataclass(slots=True, frozen=True)
class SearchR1Parser:
    """Reads `<search> query </search>`. The model ends with `<answer> ... </answer>`, behind which nothing is a call.

    Source: Search-R1 (arXiv:2503.09516), whose prompt, tags and result format these are word for word, so that its
    models and its data, which hold the instructions already, can be used.
    """

    target: OneTextArgument = OneTextArgument(_TOOL_NAME, "query_list", {"type": "array"})  # noqa: RUF009  # frozen
    stop: tuple[str, ...] = (_CLOSE, "</answer>")
    result_format: str | None = "\n\n<information>{}</information>\n\n"
    instructions: str | None = _INSTRUCTIONS

    def for_tools(self, tools: Sequence[dict[str, Any]]) -> SearchR1Parser:
        """Searches with the tool named `search`, or with the only one there is."""
        if not tools:
            return self
        named = [tool for tool in tools if tool["function"]["name"] == _TOOL_NAME]
        candidates = named or list(tools)
        if len(candidates) > 1:
            names = ", ".join(tool["function"]["name"] for tool in tools)
            raise ConfigError(
                f"rl_config.tool_parser_format: search_r1 calls one tool, got {names}. "
                f"Name one of them '{_TOOL_NAME}', or set another format."
            )
        return SearchR1Parser(one_text_argument(candidates[0], "search_r1"))

    def parse(self, text: str) -> list[ToolCall]:
        """The searches of a turn, in order; empty and unclosed ones carry an `error`."""
        return read_calls(text, _TAGS, self._read_call)

    def render(self, call: ToolCall) -> str:
        """The query between its tags."""
        return f"{_OPEN} {self.target.to_text(call.arguments)} {_CLOSE}"

    def _read_call(self, text: str, tag: re.Match[str]) -> tuple[ToolCall | None, int]:
        if tag.group() != _OPEN:
            return None, len(text)
        raw, after, is_closed = until_end(text, tag.end(), _ENDS)
        query = raw.strip()
        if not is_closed or not query:
            problem = "has no query" if is_closed else "is cut off or not closed"
            return failed_call(raw, f"the search {problem}. Write {_EXAMPLE}", self.target.tool), after
        return ToolCall(self.target.tool, self.target.to_arguments(query), raw), after
