"""The APIs that the endpoint speaks, each a translation of the same chat request and the same answer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from rl.serving.chat_answer import Answer, chat_answer, chat_events
from rl.serving.chat_request import ChatRequest, read_chat_request
from rl.serving.errors import ApiError
from rl.serving.messages_api import messages_answer, messages_events, read_messages_request
from rl.serving.responses_api import read_responses_request, responses_answer, responses_events


@dataclass(slots=True, frozen=True)
class Dialect:
    """One API."""

    path: str
    """Behind `/v1/`."""
    id_prefix: str
    """Begins the ids of completions."""
    read: Callable[[Mapping[str, Any]], ChatRequest]
    whole: Callable[[ChatRequest, Answer], dict[str, Any]]
    events: Callable[[ChatRequest, Answer], Iterator[str]]
    error: Callable[[ApiError], dict[str, Any]] = ApiError.body
    """The JSON object of an error."""


def _anthropic_error(error: ApiError) -> dict[str, Any]:
    kinds = {400: "invalid_request_error", 404: "not_found_error", 413: "request_too_large"}
    return {"type": "error", "error": {"type": kinds.get(error.status, "api_error"), "message": error.message}}


DIALECTS = (
    Dialect("chat/completions", "chatcmpl-", read_chat_request, chat_answer, chat_events),
    Dialect("responses", "resp_", read_responses_request, responses_answer, responses_events),
    Dialect("messages", "msg_", read_messages_request, messages_answer, messages_events, _anthropic_error),
)
"""All of them."""
