"""OpenAI's Responses API, translated to chat requests and back: texts and functions, without stored conversations.

Source: OpenAI's API reference, "Create a model response" and "Streaming events".
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from typing import Any

from rl.rollout.rollout_function import Reply
from rl.serving.chat_answer import Answer, cut, usage_of
from rl.serving.chat_request import ChatRequest, check_request
from rl.serving.errors import bad_request
from rl.serving.values import json_objects, neutral
from rl.types import Message

_SAME = ("model", "temperature", "top_p", "tool_choice", "stream")
_TRANSLATED = frozenset((*_SAME, "input", "instructions", "max_output_tokens", "tools", "text"))
_WITHOUT_EFFECT = frozenset(
    (
        *("include", "max_tool_calls", "metadata", "prompt_cache_key", "prompt_cache_retention"),
        *("safety_identifier", "service_tier", "store", "stream_options", "user"),
    )
)
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "background": (False,),
    "parallel_tool_calls": (True,),
    "reasoning": ({},),
    "top_logprobs": (0,),
    "truncation": ("disabled",),
}


def read_responses_request(given: Mapping[str, Any]) -> ChatRequest:
    """Translate a request.

    Raises:
        ApiError: A key is unknown, wrong, or has an effect that is not supported. Names the key.
    """
    given = neutral(given, _TRANSLATED, _WITHOUT_EFFECT, _NEUTRAL)
    chat = {key: given[key] for key in _SAME if key in given}
    if "max_output_tokens" in given:
        chat["max_tokens"] = given["max_output_tokens"]
    if "tools" in given:
        chat["tools"] = [_tool(tool) for tool in json_objects("tools", given["tools"])]
    if isinstance(choice := given.get("tool_choice"), Mapping):
        chat["tool_choice"] = {"type": "function", "function": {"name": choice.get("name")}}
    if "text" in given:
        (text,) = json_objects("text", [given["text"]])
        chat["response_format"] = _format(text.get("format") or {"type": "text"})
    if "input" not in given:
        raise bad_request("input", "is missing.")
    items = given["input"]
    items = [{"role": "user", "content": items}] if isinstance(items, str) else json_objects("input", items)
    begin = [{"role": "system", "content": given["instructions"]}] if given.get("instructions") else []
    chat["messages"] = begin + _messages_of(items)
    return check_request(chat)


def responses_answer(request: ChatRequest, answer: Answer) -> dict[str, Any]:
    """The JSON object of a whole answer."""
    (reply,) = answer.replies
    usage = usage_of(answer.replies)
    return {
        **_head(request, answer),
        "status": "incomplete" if reply.is_cut else "completed",
        "incomplete_details": {"reason": "max_output_tokens"} if reply.is_cut else None,
        "output": _items(reply, answer.id),
        "usage": {
            "input_tokens": usage["prompt_tokens"],
            "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
            "output_tokens": usage["completion_tokens"],
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": usage["total_tokens"],
        },
    }


def responses_events(request: ChatRequest, answer: Answer) -> Iterator[str]:
    """The same answer as events."""
    whole = responses_answer(request, answer)
    numbers = iter(range(1_000_000))

    def event(kind: str, **fields: Any) -> str:
        value = {"type": kind, "sequence_number": next(numbers), **fields}
        return f"event: {kind}\ndata: {json.dumps(value, ensure_ascii=False)}\n\n"

    begun = {**whole, "status": "in_progress", "output": [], "usage": None, "incomplete_details": None}
    yield event("response.created", response=begun)
    for index, item in enumerate(whole["output"]):
        place = {"output_index": index, "item_id": item["id"]}
        empty = {**item, "status": "in_progress"}
        empty |= {"content": []} if item["type"] == "message" else {}
        empty |= {"arguments": ""} if item["type"] == "function_call" else {}
        yield event("response.output_item.added", output_index=index, item=empty)
        if item["type"] == "message":
            (part,) = item["content"]
            place["content_index"] = 0
            yield event("response.content_part.added", **place, part={**part, "text": ""})
            for piece in cut(part["text"]):
                yield event("response.output_text.delta", **place, delta=piece, logprobs=[])
            yield event("response.output_text.done", **place, text=part["text"], logprobs=[])
            yield event("response.content_part.done", **place, part=part)
        elif item["type"] == "function_call":
            for piece in cut(item["arguments"]):
                yield event("response.function_call_arguments.delta", **place, delta=piece)
            told = {"arguments": item["arguments"], "name": item["name"]}
            yield event("response.function_call_arguments.done", **place, **told)
        yield event("response.output_item.done", output_index=index, item=item)
    yield event(f"response.{whole['status']}", response=whole)


def _messages_of(items: list[Mapping[str, Any]]) -> list[Message]:
    """Items as messages in OpenAI's chat form. Thought, text and calls of one turn become one message."""
    messages: list[Message] = []
    for item in items:
        kind = item.get("type", "message")
        if kind == "function_call_output":
            messages.append({"role": "tool", "tool_call_id": item.get("call_id"), "content": item.get("output")})
        elif kind == "message" and item.get("role") != "assistant":
            role = "system" if item.get("role") == "developer" else item.get("role")
            messages.append({"role": role, "content": item.get("content")})
        elif kind in ("message", "function_call", "reasoning"):
            _add_to_turn(messages, kind, item)
        else:
            raise bad_request("input", f"items of type {kind!r:.40} are not supported. Send texts and functions.")
    return messages


def _add_to_turn(messages: list[Message], kind: str, item: Mapping[str, Any]) -> None:
    if not messages or messages[-1]["role"] != "assistant":
        messages.append({"role": "assistant", "content": []})
    turn = messages[-1]
    if kind == "message":
        content = item.get("content")
        turn["content"] += [{"text": content}] if isinstance(content, str) else json_objects("input", content or [])
    elif kind == "reasoning":
        parts = item.get("content") or item.get("summary") or []
        turn["reasoning_content"] = "\n".join(str(part.get("text", "")) for part in json_objects("input", parts))
    else:
        function = {"name": item.get("name"), "arguments": item.get("arguments")}
        turn.setdefault("tool_calls", []).append({"id": item.get("call_id"), "type": "function", "function": function})


def _tool(tool: Mapping[str, Any]) -> dict[str, Any]:
    if tool.get("type") != "function":
        raise bad_request("tools", f"only functions are supported, got {json.dumps(tool):.80}.")
    function = {key: tool.get(key) for key in ("name", "description", "parameters")}
    return {"type": "function", "function": {key: value for key, value in function.items() if value is not None}}


def _format(given: Any) -> dict[str, Any]:
    (given,) = json_objects("text", [given])
    return {"type": given.get("type"), "json_schema": {"schema": given.get("schema")}}


def _items(reply: Reply, answer_id: str) -> list[dict[str, Any]]:
    message, items = reply.message, []
    if thought := message.get("reasoning_content"):
        content = [{"type": "reasoning_text", "text": thought}]
        items.append({"type": "reasoning", "id": f"rs-{answer_id}", "summary": [], "content": content})
    calls = message.get("tool_calls", [])
    if message["content"] or not calls:
        text = {"type": "output_text", "text": message["content"], "annotations": [], "logprobs": []}
        items.append({"type": "message", "id": f"msg-{answer_id}", "role": "assistant", "content": [text]})
    for call in calls:
        found = {"type": "function_call", "id": f"fc-{call['id']}", "call_id": call["id"], **call["function"]}
        items.append(found)
    return [{**item, "status": "completed"} for item in items]


def _head(request: ChatRequest, answer: Answer) -> dict[str, Any]:
    return {
        "id": answer.id,
        "object": "response",
        "created_at": time.time(),
        "model": answer.model,
        "error": None,
        "instructions": None,
        "metadata": {},
        "parallel_tool_calls": True,
        "temperature": request.temperature,
        "top_p": request.top_p,
        "tool_choice": request.tool_choice or "auto",
        "tools": [],
    }
