"""Chat messages in OpenAI's form: read in one form, written for a sampled turn, and recognized when they come back."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from rl.chat.parsers.base import Parser
from rl.errors import DataError
from rl.thoughts import CLOSE, OPEN, said, thought_spans, turn_thoughts, without_thoughts
from rl.types import Message, ToolCall, Turn

_REASONING = ("reasoning_content", "reasoning")
"""Where clients and servers put thoughts: DeepSeek's name, and vLLM's newer one."""


def normalized(message: Message) -> Message:
    """Bring a message into the one form that templates read.

    Text parts are joined, no content is the empty text, the arguments of calls are objects where they are JSON text of
    one, and fields without a value are left out. Clients write all of these in several ways.

    Raises:
        DataError: The message has no role, or its content is no text.
    """
    role, content = message.get("role"), message.get("content")
    if not isinstance(role, str):
        raise DataError(f"messages: each needs a role, got {message!r:.80}. Write system, user, assistant or tool.")
    kept = {key: value for key, value in message.items() if value is not None and value != []}
    kept["content"] = _text_of(content)
    if "tool_calls" in kept:
        kept["tool_calls"] = [_read_call(call) for call in kept["tool_calls"]]
    return kept


def reply_to(turn: Turn, text: str, parser: Parser, call_ids: str) -> Message:
    """Write a sampled turn as a server of OpenAI's form would.

    Args:
        turn: The turn, with its calls.
        text: Its text without the token that ends it.
        parser: Wrote the calls' tags.
        call_ids: The calls are named after it, as `<call_ids>-0`.

    Returns:
        A message with `content`, with `reasoning_content` where the turn has a thought, and with `tool_calls` where it
        has calls. A call that cannot be read stays in the content.
    """
    turn = replace(turn, text=text)
    calls = [call for call in turn.calls if call.error is None]
    spoken = said(turn)
    if calls and len(calls) == len(turn.calls):
        spoken = _before_call(spoken, calls[0], parser)
    message: Message = {"role": "assistant", "content": spoken.strip()}
    if thought := "\n".join(_untagged(text[start:end]) for start, end in turn_thoughts(turn)).strip():
        message["reasoning_content"] = thought
    if calls:
        message["tool_calls"] = [
            {
                "id": f"{call_ids}-{number}",
                "type": "function",
                "function": {"name": call.name, "arguments": json.dumps(call.arguments, ensure_ascii=False)},
            }
            for number, call in enumerate(calls)
        ]
    return message


def is_echo(given: Message, own: Message) -> bool:
    """Whether a caller's assistant message is one that was returned to it.

    It is when it says the same and makes the same calls. Its thoughts may be missing, since many clients drop them, and
    with the same calls under the same ids its text too; space around the text, other ids of the calls and other fields
    do not count.

    Args:
        given: The caller's message, `normalized`.
        own: What was returned, `normalized`.
    """
    thought, text, calls = _meaning(given)
    own_thought, own_text, own_calls = _meaning(own)
    is_named = bool(calls) and _call_ids(given) == _call_ids(own)
    return calls == own_calls and thought in ("", own_thought) and (text == own_text or (is_named and not text))


def _call_ids(message: Message) -> list[Any]:
    return [call.get("id") for call in message.get("tool_calls", [])]


def _meaning(message: Message) -> tuple[str, str, list[tuple[str, Any]]]:
    """Thought, text, and calls of an assistant message."""
    content = message["content"]
    parts = [message[key] for key in _REASONING if isinstance(message.get(key), str)]
    parts += [_untagged(content[start:end]) for start, end in thought_spans(content)]
    calls = [(call["function"]["name"], call["function"]["arguments"]) for call in message.get("tool_calls", [])]
    return "\n".join(part.strip() for part in parts).strip(), without_thoughts(content).strip(), calls


def _untagged(thought: str) -> str:
    return thought.removeprefix(OPEN).removesuffix(CLOSE).strip()


def _text_of(content: Any) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else [content]
    if not all(isinstance(part, dict) and isinstance(part.get("text"), str) for part in parts):
        raise DataError(f"messages: content must be text, got {content!r:.80}. Images and sounds are not supported.")
    return "".join(part["text"] for part in parts)


def _read_call(call: Any) -> dict[str, Any]:
    function = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise DataError(f"messages: a tool call needs function.name and function.arguments, got {call!r:.80}.")
    arguments = function.get("arguments", {})
    if isinstance(arguments, str):
        try:
            read = json.loads(arguments)
        except (ValueError, RecursionError):
            read = None  # a template shows what is no JSON as it is
        arguments = read if isinstance(read, dict) else arguments
    outer = {key: value for key, value in call.items() if key in ("id", "type")}
    return {"type": "function", **outer, "function": {"name": function["name"], "arguments": arguments}}


def _before_call(text: str, call: ToolCall, parser: Parser) -> str:
    """The text before a call and before the tag that opens it."""
    before, found, _ = text.partition(call.raw)
    if not call.raw or not found:
        return text
    written = parser.render(call) or ""
    for length in range(len(written), 0, -1):
        if before.endswith(written[:length]):
            return before[:-length]
    return before
