"""Answers of `/v1/chat/completions`, whole or as a stream of server-sent events."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from rl.rollout.rollout_function import Reply
from rl.serving.chat_request import ChatRequest
from rl.types import Message

_PIECE = re.compile(r"\s*\S{1,16}|\s+")


@dataclass(slots=True, frozen=True)
class Answer:
    """What was sampled for one request."""

    id: str
    model: str
    replies: list[Reply]
    pieces: Callable[[list[int]], list[str]]
    """The text of each token."""


def chat_answer(request: ChatRequest, answer: Answer) -> dict[str, Any]:
    """The JSON object of a whole answer."""
    body = _head(answer, "chat.completion")
    body["choices"] = [_choice(request, answer, number) for number in range(len(answer.replies))]
    body["usage"] = usage_of(answer.replies)
    if request.return_token_ids:
        body["prompt_token_ids"] = answer.replies[0].sampled.prompt_ids.tolist()
    return body


def chat_events(request: ChatRequest, answer: Answer) -> Iterator[str]:
    """The same answer as events: pieces of each message, its end, and the usage if it was asked for."""
    head = _head(answer, "chat.completion.chunk")
    for number in range(len(answer.replies)):
        whole = _choice(request, answer, number)
        deltas = _deltas(whole.pop("message"))
        end = {"index": number, "delta": {}, "logprobs": None, "finish_reason": whole["finish_reason"]}
        yield _event({**head, "choices": [{**whole, "delta": next(deltas), "finish_reason": None}]})
        for delta in deltas:
            part = {"index": number, "delta": delta, "logprobs": None, "finish_reason": None}
            yield _event({**head, "choices": [part]})
        yield _event({**head, "choices": [end]})
    if request.stream_options.include_usage:
        yield _event({**head, "choices": [], "usage": usage_of(answer.replies)})
    yield "data: [DONE]\n\n"


def cut(text: str) -> list[str]:
    """The pieces in which a text is streamed, about a word each; together they are the text."""
    return _PIECE.findall(text)


def usage_of(replies: Sequence[Reply]) -> dict[str, int]:
    """Tokens of the prompt and of all answers."""
    prompt = len(replies[0].sampled.prompt_ids)
    sampled = sum(len(reply.sampled.token_ids) for reply in replies)
    return {"prompt_tokens": prompt, "completion_tokens": sampled, "total_tokens": prompt + sampled}


def _head(answer: Answer, kind: str) -> dict[str, Any]:
    return {"id": answer.id, "object": kind, "created": int(time.time()), "model": answer.model}


def _choice(request: ChatRequest, answer: Answer, number: int) -> dict[str, Any]:
    reply = answer.replies[number]
    message = dict(reply.message)
    if message.get("tool_calls"):
        message["content"] = message["content"] or None
    logprobs = None
    if request.logprobs:
        sampled = reply.sampled
        tokens = zip(answer.pieces(sampled.token_ids.tolist()), sampled.logprobs.tolist(), strict=True)
        logprobs = {
            "content": [
                {"token": piece, "logprob": value, "bytes": list(piece.encode()), "top_logprobs": []}
                for piece, value in tokens
            ]
        }
    found = {"index": number, "message": message, "logprobs": logprobs, "finish_reason": _finish_reason(reply)}
    return {**found, "token_ids": reply.sampled.token_ids.tolist()} if request.return_token_ids else found


def _deltas(message: Message) -> Iterator[dict[str, Any]]:
    """A message in pieces: thoughts, text, then of each call its name and its arguments."""
    yield {"role": message["role"], "content": ""}
    for key in ("reasoning_content", "content"):
        for piece in cut(message.get(key) or ""):
            yield {key: piece}
    for index, call in enumerate(message.get("tool_calls", [])):
        function = call["function"]
        named = {"name": function["name"], "arguments": ""}
        yield {"tool_calls": [{"index": index, "id": call["id"], "type": "function", "function": named}]}
        for piece in cut(function["arguments"]):
            yield {"tool_calls": [{"index": index, "function": {"arguments": piece}}]}


def _finish_reason(reply: Reply) -> str:
    """OpenAI's word for how a turn ended."""
    if reply.is_cut:
        return "length"
    return "tool_calls" if reply.message.get("tool_calls") else "stop"


def _event(value: dict[str, Any]) -> str:
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n"
