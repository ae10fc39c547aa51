"""Requests to `/v1/chat/completions`, read and checked.

A key that changes what is sampled is honoured or refused by name, never ignored. Keys that clients send by habit with a
neutral value (`frequency_penalty: 0`) are accepted.

Source: OpenAI's API reference, "Create chat completion"; vLLM's `ChatCompletionRequest` for `top_k`, `min_p` and
`return_token_ids`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError

from rl.errors import first_problem, unknown_name
from rl.serving.errors import ApiError, bad_request
from rl.types import Message, Sampling

_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "best_of": (1,),
    "echo": (False,),
    "frequency_penalty": (0,),
    "function_call": ("auto", "none"),
    "functions": ([],),
    "ignore_eos": (False,),
    "length_penalty": (1,),
    "logit_bias": ({},),
    "min_tokens": (0,),
    "modalities": (["text"],),
    "parallel_tool_calls": (True,),
    "presence_penalty": (0,),
    "repetition_penalty": (1,),
    "response_format": ({"type": "text"},),
    "skip_special_tokens": (True,),
    "top_logprobs": (0,),
    "use_beam_search": (False,),
}
"""Keys that are accepted with these values alone, which have no effect."""

_WITHOUT_EFFECT = frozenset(
    (
        "cache_salt",
        "metadata",
        "priority",
        "prompt_cache_key",
        "request_id",
        "safety_identifier",
        "service_tier",
        "store",
        "user",
    )
)
"""Keys that never change what is sampled."""

Tokens = Annotated[int, Field(ge=1, le=10_000_000)]


@dataclass(slots=True)
class _Stream:
    include_usage: bool = False


@dataclass(slots=True)
class ChatRequest:
    """A chat request. A field that is None was not given."""

    messages: Annotated[list[Message], Field(min_length=1)]
    model: str | None = None
    n: Annotated[int, Field(ge=1, le=128)] = 1
    max_tokens: Tokens | None = None
    max_completion_tokens: Tokens | None = None
    temperature: Annotated[float, Field(ge=0, le=100)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    stop: str | list[str] | None = None
    seed: int | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: Literal["auto", "none"] | None = None
    logprobs: bool = False
    stream: bool = False
    stream_options: _Stream = field(default_factory=_Stream)
    return_token_ids: bool = False

    @property
    def limit(self) -> int | None:
        """Tokens of an answer; None: the run's limit."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def offered_tools(self) -> list[dict[str, Any]]:
        """The tools that the model is shown."""
        return [] if self.tool_choice == "none" else self.tools or []

    def sampling(self, own: Sampling) -> Sampling:
        """The sampling that it asks for.

        Args:
            own: The run's, for what it leaves open.
        """
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        return Sampling(
            temperature=own.temperature if self.temperature is None else self.temperature,
            max_tokens=self.limit or own.max_tokens,
            top_p=own.top_p if self.top_p is None else self.top_p,
            top_k=own.top_k if self.top_k is None else self.top_k or -1,
            min_p=own.min_p if self.min_p is None else self.min_p,
            stop=own.stop + stop,
            seed=own.seed if self.seed is None else self.seed,
        )


_REQUEST = TypeAdapter(ChatRequest)
_FIELDS = frozenset(ChatRequest.__dataclass_fields__)


def read_chat_request(body: bytes | bytearray) -> ChatRequest:
    """Read the body of a request.

    Raises:
        ApiError: It is not JSON, or a key is unknown, wrong, or has an effect that is not supported. Names the key.
    """
    try:
        given = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ApiError(400, f"The body is not JSON: {error}.") from error
    if not isinstance(given, Mapping):
        raise ApiError(400, f"The body must be a JSON object, got {type(given).__name__}.")
    given = {key: value for key, value in given.items() if value is not None}
    _check_keys(given)
    try:
        request = _REQUEST.validate_python({key: given[key] for key in given.keys() & _FIELDS})
    except ValidationError as error:
        param = str(error.errors()[0]["loc"][0])
        raise ApiError(400, f"{first_problem(error)}.", param=param) from None
    _check_tools(request)
    return request


def _check_keys(given: Mapping[str, Any]) -> None:
    for key, value in given.items():
        if key in _FIELDS or key in _WITHOUT_EFFECT:
            continue
        if key not in _NEUTRAL:
            raise ApiError(400, unknown_name("request", key, [*_FIELDS, *_NEUTRAL]), param=key)
        if value not in _NEUTRAL[key]:
            allowed = " or ".join(json.dumps(v) for v in _NEUTRAL[key])
            raise bad_request(key, f"only {allowed} is supported, got {json.dumps(value):.80}. Remove the key.")
    choice = given.get("tool_choice")
    if choice not in (None, "auto", "none"):
        raise bad_request("tool_choice", f"must be auto or none, got {json.dumps(choice):.80}.")


def _check_tools(request: ChatRequest) -> None:
    for number, tool in enumerate(request.tools or []):
        function = tool.get("function")
        if (
            tool.get("type") != "function"
            or not isinstance(function, dict)
            or not isinstance(function.get("name"), str)
        ):
            where = f"tools[{number}]"
            raise bad_request(
                "tools", f"{where} must be of type function with function.name, got {json.dumps(tool):.80}."
            )
