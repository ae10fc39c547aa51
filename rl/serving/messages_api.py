"""Anthropic's Messages API, translated to chat requests and back.

Source: Anthropic's API reference, "Create a Message" and "Streaming Messages", version 2023-06-01.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from rl.rollout.rollout_function import Reply
from rl.serving.chat_answer import Answer, cut, usage_of
from rl.serving.chat_request import ChatRequest, check_request
from rl.serving.errors import bad_request
from rl.serving.values import json_objects, neutral
from rl.types import Message

_SAME = ("messages", "model", "max_tokens", "temperature", "top_p", "top_k", "stream")
_WITHOUT_EFFECT = frozenset(("metadata", "service_tier", "inference_geo", "container"))
_TRANSLATED = frozenset((*_SAME, "system", "tools", "tool_choice", "stop_sequences", "thinking"))
_CHOICES = {"auto": "auto", "none": "none", "any": "required"}


def read_messages_request(given: Mapping[str, Any]) -> ChatRequest:
    """Translate a request.

    Raises:
        ApiError: A key is unknown, wrong, or has an effect that is not supported. Names the key.
    """
    given = neutral(given, _TRANSLATED, _WITHOUT_EFFECT, {})
    chat = {key: given[key] for key in _SAME if key in given}
    if "max_tokens" not in chat:
        raise bad_request("max_tokens", "is missing.")
    if given.get("thinking", {"type": "disabled"}) != {"type": "disabled"}:
        raise bad_request("thinking", f"only disabled is supported, got {json.dumps(given['thinking']):.80}.")
    if "stop_sequences" in given:
        chat["stop"] = given["stop_sequences"]
    if isinstance(chat.get("messages"), list):
        system = [{"role": "system", "content": given["system"]}] if given.get("system") else []
        chat["messages"] = system + [own for message in chat["messages"] for own in _messages_of(message)]
    if "tools" in given:
        chat["tools"] = [_tool(tool) for tool in json_objects("tools", given["tools"])]
    if "tool_choice" in given:
        (choice,) = json_objects("tool_choice", [given["tool_choice"]])
        named = {"type": "function", "function": {"name": choice.get("name")}}
        chat["tool_choice"] = _CHOICES.get(str(choice.get("type")), named)
    return check_request(chat)


def messages_answer(request: ChatRequest, answer: Answer) -> dict[str, Any]:
    """The JSON object of a whole answer."""
    (reply,) = answer.replies
    usage = usage_of(answer.replies)
    return {
        "id": answer.id,
        "type": "message",
        "role": "assistant",
        "model": answer.model,
        "content": _blocks(reply),
        "stop_reason": _stop_reason(reply),
        "stop_sequence": reply.stop_sequence,
        "usage": {"input_tokens": usage["prompt_tokens"], "output_tokens": usage["completion_tokens"]},
    }


def messages_events(request: ChatRequest, answer: Answer) -> Iterator[str]:
    """The same answer as events."""
    whole = messages_answer(request, answer)
    usage = whole["usage"]
    begun = {**whole, "content": [], "stop_reason": None, "stop_sequence": None, "usage": {**usage, "output_tokens": 0}}
    yield _event("message_start", message=begun)
    for index, block in enumerate(whole["content"]):
        empty, deltas = _as_deltas(block)
        yield _event("content_block_start", index=index, content_block=empty)
        for delta in deltas:
            yield _event("content_block_delta", index=index, delta=delta)
        yield _event("content_block_stop", index=index)
    end = {"stop_reason": whole["stop_reason"], "stop_sequence": whole["stop_sequence"]}
    yield _event("message_delta", delta=end, usage={"output_tokens": usage["output_tokens"]})
    yield _event("message_stop")


def _messages_of(message: Any) -> list[Message]:
    """A message in OpenAI's form; results of tools become messages of their own."""
    (message,) = json_objects("messages", [message])
    content = message.get("content")
    if not isinstance(content, list):
        return [message]
    texts, thoughts, calls, results = [], [], [], []
    for block in json_objects("messages", content):
        kind = block.get("type")
        if kind == "text":
            texts.append(block)
        elif kind == "thinking":
            thoughts.append(str(block.get("thinking", "")))
        elif kind == "tool_use":
            function = {"name": block.get("name"), "arguments": json.dumps(block.get("input"), ensure_ascii=False)}
            calls.append({"id": block.get("id"), "type": "function", "function": function})
        elif kind == "tool_result":
            results.append({"role": "tool", "tool_call_id": block.get("tool_use_id"), "content": block.get("content")})
        else:
            raise bad_request("messages", f"blocks of type {kind!r:.40} are not supported. Send text.")
    own = {"role": message.get("role"), "content": texts, "reasoning_content": "\n".join(thoughts), "tool_calls": calls}
    is_empty = results and not texts and not calls
    return [*results, *([] if is_empty else [{k: v for k, v in own.items() if v or k == "role"}])]


def _tool(tool: Mapping[str, Any]) -> dict[str, Any]:
    if tool.get("type") not in (None, "custom"):
        raise bad_request("tools", f"only tools of the caller's own are supported, got {json.dumps(tool):.80}.")
    function = {
        "name": tool.get("name"),
        "description": tool.get("description"),
        "parameters": tool.get("input_schema"),
    }
    return {"type": "function", "function": {key: value for key, value in function.items() if value is not None}}


def _blocks(reply: Reply) -> list[dict[str, Any]]:
    message = reply.message
    blocks: list[dict[str, Any]] = []
    if thought := message.get("reasoning_content"):
        blocks.append({"type": "thinking", "thinking": thought, "signature": ""})
    if message["content"]:
        blocks.append({"type": "text", "text": message["content"]})
    for call in message.get("tool_calls", []):
        function = call["function"]
        arguments = json.loads(function["arguments"])
        blocks.append({"type": "tool_use", "id": call["id"], "name": function["name"], "input": arguments})
    return blocks


def _stop_reason(reply: Reply) -> str:
    if reply.is_cut:
        return "max_tokens"
    if reply.stop_sequence is not None:
        return "stop_sequence"
    return "tool_use" if reply.message.get("tool_calls") else "end_turn"


def _as_deltas(block: Mapping[str, Any]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A block without its content, and the content in pieces."""
    if block["type"] == "text":
        return {**block, "text": ""}, [{"type": "text_delta", "text": piece} for piece in cut(block["text"])]
    if block["type"] == "thinking":
        thoughts = [{"type": "thinking_delta", "thinking": piece} for piece in cut(block["thinking"])]
        return {**block, "thinking": ""}, thoughts
    text = json.dumps(block["input"], ensure_ascii=False)
    return {**block, "input": {}}, [{"type": "input_json_delta", "partial_json": piece} for piece in cut(text)]


def _event(kind: str, **fields: Any) -> str:
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **fields}, ensure_ascii=False)}\n\n"
