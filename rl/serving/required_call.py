"""`tool_choice: required`: the engine may only write calls of the offered tools, in the parser's format.

Source: xgrammar's structural tags, as vLLM uses them for `required`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from rl.chat.parsers import Parser
from rl.serving.errors import bad_request
from rl.thoughts import CLOSE
from rl.types import ToolCall

_MARK = {"arguments": 0}
"""Arguments of a call that is rendered to see what stands around them."""


def required_call(
    tools: Sequence[dict[str, Any]], parser: Parser, *, is_single: bool, begins_in_thought: bool = False
) -> str:
    """The structural tag of an answer that is one or more calls and nothing else.

    Args:
        tools: The tools that may be called, in OpenAI's form.
        parser: Its format must write arguments as a JSON object.
        is_single: Exactly one call.
        begins_in_thought: The turn's header has opened a thought: it comes before the calls.

    Raises:
        ApiError: The format does not.
    """
    tags = [_tag(tool["function"], parser) for tool in tools]
    calls = {
        "type": "tags_with_separator",
        "tags": tags,
        "separator": "\n",
        "at_least_one": True,
        "stop_after_first": is_single,
    }
    thought = {"type": "tag", "begin": "", "content": {"type": "any_text"}, "end": CLOSE}
    parts = [thought, {"type": "const_string", "value": "\n\n"}, calls]
    whole = {"type": "sequence", "elements": parts} if begins_in_thought else calls
    return json.dumps({"type": "structural_tag", "format": whole})


def _tag(function: dict[str, Any], parser: Parser) -> dict[str, Any]:
    written = parser.render(ToolCall(function["name"], _MARK)) or ""
    begin, found, end = written.partition(json.dumps(_MARK))
    if not found:
        message = "only auto and none are supported: this run's format of calls does not write arguments as JSON."
        raise bad_request("tool_choice", message)
    schema = {"type": "object", **(function.get("parameters") or {})}
    return {"type": "tag", "begin": begin, "content": {"type": "json_schema", "json_schema": schema}, "end": end}
