"""Formats that put results into the assistant's own turn as plain text, like Search-R1 and TRL's TextEnvironment.

The chat template is not involved: the parser's instructions describe the tools, and calls and results are text.
"""

from __future__ import annotations

import json
from typing import Any, Protocol

from rl.chat.encoding import Marked, TextEncoder
from rl.types import Message, ToolCall


class Format(Protocol):
    """What rendering needs of a parser of `rl.chat.parsers`."""

    @property
    def stop(self) -> tuple[str, ...]:
        """Strings that end a turn."""
        ...

    @property
    def result_format(self) -> str | None:
        """The text around a result, which replaces `{}`; None: a result is a message of its own."""
        ...

    @property
    def instructions(self) -> str | None:
        """What the prompt must say; None: the chat template shows the tools."""
        ...

    def render(self, call: ToolCall) -> str | None:
        """A call as the model writes it."""
        ...


Piece = tuple[str, bool]
"""A part of an assistant's turn: text that the model says and True, or the bare text of a result and False."""


def tell(messages: list[Message], tool_format: Format) -> list[Message]:
    """Put the instructions before the first user message, unless the conversation names a stop string already."""
    if tool_format.instructions is None:
        return messages
    given = "".join(m["content"] for m in messages if m["role"] != "assistant")
    if any(stop in given for stop in tool_format.stop):
        return messages
    first = next((i for i, m in enumerate(messages) if m["role"] == "user"), 0)
    told = {**messages[first], "content": tool_format.instructions + messages[first]["content"]}
    return [*messages[:first], told, *messages[first + 1 :]]


def merge_turns(messages: list[Message], tool_format: Format) -> list[Message]:
    """Join assistant messages and the tool messages between them into one assistant message, as in a rollout.

    Args:
        messages: A conversation with calls in `tool_calls`, in OpenAI's form, or written out in `content`.
        tool_format: The format, with a `result_format`.

    Returns:
        Messages without `tool` and `tool_calls`; those of the assistant have a list of `Piece` under `pieces`.
    """
    merged: list[Message] = []
    for message in messages:
        if message["role"] == "assistant":
            text = _spoken(message, tool_format)
            piece = (text, True)
        elif message["role"] == "tool":
            text = in_format(tool_format, message["content"])
            piece = (message["content"], False)
        else:
            merged.append(message)
            continue
        if not merged or merged[-1]["role"] != "assistant":
            merged.append({"role": "assistant", "content": "", "pieces": []})
        merged[-1]["content"] += text
        merged[-1]["pieces"].append(piece)
    return merged


def join_turns(messages: list[Message], tool_format: Format, encoder: TextEncoder) -> list[Message]:
    """Join turns of a conversation that a template renders as a whole: marked texts instead of pieces."""
    joined: list[Message] = []
    before = ""
    for message in messages:
        goes_on, before = "tool" in (before, message["role"]), message["role"]
        if message["role"] == "tool":
            result = encoder.break_up(message["content"])
            text = Marked(in_format(tool_format, result))
        elif message["role"] == "assistant":
            text = encoder.break_up(_spoken(message, tool_format), of_tool=False)
        else:
            joined.append(message)
            continue
        if goes_on and joined and joined[-1]["role"] == "assistant":
            joined[-1]["content"] = Marked(joined[-1]["content"] + text)
        else:
            joined.append({"role": "assistant", "content": text})
    return joined


def in_format(tool_format: Format, result: str) -> str:
    """A result as it stands in the assistant's turn."""
    assert tool_format.result_format is not None, "results stand in the assistant's turn"
    return tool_format.result_format.replace("{}", result, 1)


def _spoken(message: Message, tool_format: Format) -> str:
    text = message.get("content") or ""
    for call in message.get("tool_calls") or ():
        function: dict[str, Any] = call.get("function", call)
        arguments = function["arguments"]
        if isinstance(arguments, str):  # as OpenAI writes them
            arguments = json.loads(arguments)
        text += tool_format.render(ToolCall(function["name"], arguments)) or ""
    return text
