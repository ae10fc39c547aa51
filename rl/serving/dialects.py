"""The APIs that the endpoint speaks, each a translation of the same requests and the same answers."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from rl.serving.chat_answer import Answer, chat_answer, chat_events
from rl.serving.chat_request import read_chat_request
from rl.serving.completions_api import completion_answer, completion_events, read_completion_request
from rl.serving.errors import ApiError
from rl.serving.generate_api import generate_answer, read_generate_request
from rl.serving.messages_api import messages_answer, messages_events, read_messages_request
from rl.serving.responses_api import read_responses_request, responses_answer, responses_events
from rl.serving.sample_request import SampleRequest

R = TypeVar("R", bound=SampleRequest)


def _openai_error_event(error: ApiError) -> str:
    return f"data: {json.dumps(error.body())}\n\ndata: [DONE]\n\n"


@dataclass(slots=True, frozen=True)
class Dialect(Generic[R]):
    """One API."""

    path: str
    id_prefix: str
    """Begins the ids of completions."""
    read: Callable[[Mapping[str, Any]], R]
    whole: Callable[[R, Answer], dict[str, Any]]
    events: Callable[[R, Answer], Iterator[str]] = lambda request, answer: iter(())
    error: Callable[[ApiError], dict[str, Any]] = ApiError.body
    """The JSON object of an error."""
    error_event: Callable[[ApiError], str] = _openai_error_event
    """An error in a stream that has begun."""


def _responses_error_event(error: ApiError) -> str:
    fields = {"code": error.code, "message": error.message, "param": error.param, "sequence_number": 0}
    return f"event: error\ndata: {json.dumps({'type': 'error', **fields, **error.body()})}\n\n"


def _anthropic_error(error: ApiError) -> dict[str, Any]:
    kinds = {
        400: "invalid_request_error",
        401: "authentication_error",
        404: "not_found_error",
        413: "request_too_large",
        429: "rate_limit_error",
    }
    return {"type": "error", "error": {"type": kinds.get(error.status, "api_error"), "message": error.message}}


def _anthropic_error_event(error: ApiError) -> str:
    return f"event: error\ndata: {json.dumps(_anthropic_error(error))}\n\n"


DIALECTS: tuple[Dialect[Any], ...] = (
    Dialect("/v1/chat/completions", "chatcmpl-", read_chat_request, chat_answer, chat_events),
    Dialect("/v1/completions", "cmpl-", read_completion_request, completion_answer, completion_events),
    Dialect(
        "/v1/responses",
        "resp_",
        read_responses_request,
        responses_answer,
        responses_events,
        error_event=_responses_error_event,
    ),
    Dialect(
        "/v1/messages",
        "msg_",
        read_messages_request,
        messages_answer,
        messages_events,
        error=_anthropic_error,
        error_event=_anthropic_error_event,
    ),
    Dialect("/inference/v1/generate", "", read_generate_request, generate_answer),
)
"""All of them."""
