"""Requests to `/v1/chat/completions`, read and checked.

A key that changes what is sampled is honoured or refused by name, never ignored. Keys that clients send by habit with a
neutral value (`frequency_penalty: 0`) are accepted.

Source: OpenAI's API reference, "Create chat completion"; vLLM's `ChatCompletionRequest` for `top_k`, `min_p` and
`return_token_ids`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Set
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError
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

StopString = Annotated[str, Field(min_length=1)]
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
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, le=2**31 - 1)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    stop: StopString | list[StopString] | None = None
    seed: Annotated[int, Field(ge=-(2**63), le=2**63 - 1)] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: Literal["auto", "none"] | None = None
    logprobs: bool = False
    stream: bool = False
    stream_options: _Stream = field(default_factory=_Stream)
    return_token_ids: bool = False
    response_format: dict[str, Any] | None = None

    @property
    def json_schema(self) -> str | None:
        """The JSON schema that the answer must follow, as text.

        Raises:
            ApiError: The response format is not text, json_object or json_schema.
        """
        given = self.response_format or {}
        schema = given.get("json_schema")
        if given.get("type", "text") == "text":
            return None
        if given["type"] == "json_object":
            return json.dumps({"type": "object"})
        if given["type"] == "json_schema" and isinstance(schema, dict) and isinstance(schema.get("schema"), dict):
            return json.dumps(schema["schema"])
        raise bad_request(
            "response_format", f"must be of type text, json_object or json_schema, got {json.dumps(given):.80}."
        )

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
            json_schema=self.json_schema,
        )


_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_REQUEST = TypeAdapter(ChatRequest)
_FIELDS = frozenset(ChatRequest.__dataclass_fields__)


def read_body(body: bytes | bytearray) -> Mapping[str, Any]:
    """Decode the body of a request.

    Raises:
        ApiError: It is not a JSON object.
    """
    try:
        given = json.loads(body)
        if _SURROGATE.search(body):  # half a pair has no UTF-8
            given = json.loads(json.dumps(given, ensure_ascii=False).encode("utf-8", "replace"))
    except (ValueError, RecursionError) as error:
        raise ApiError(400, f"The body is not JSON: {error}.") from error
    if not isinstance(given, Mapping):
        raise ApiError(400, f"The body must be a JSON object, got {type(given).__name__}.")
    return given


def read_chat_request(given: Mapping[str, Any]) -> ChatRequest:
    """Read a chat request.

    Raises:
        ApiError: A key is unknown, wrong, or has an effect that is not supported. Names the key.
    """
    return check_request(neutral(given, _FIELDS, _WITHOUT_EFFECT, _NEUTRAL))


def neutral(
    given: Mapping[str, Any], known: Set[str], without_effect: Set[str], accepted: Mapping[str, tuple[Any, ...]]
) -> dict[str, Any]:
    """Leave out keys without effect and keys that are null.

    Args:
        given: The body.
        known: Keys to keep.
        without_effect: Keys that are ignored.
        accepted: Keys that are ignored with these values alone.

    Raises:
        ApiError: There is another key, or another value of such a key.
    """
    kept = {}
    for key, value in given.items():
        if value is None or key in without_effect:
            continue
        if key in known:
            kept[key] = value
        elif key not in accepted:
            raise ApiError(400, unknown_name("request", key, [*known, *accepted]), param=key)
        elif value not in accepted[key]:
            allowed = " or ".join(json.dumps(v) for v in accepted[key])
            raise bad_request(key, f"only {allowed} is supported, got {json.dumps(value):.80}. Remove the key.")
    return kept


def check_request(given: Mapping[str, Any]) -> ChatRequest:
    """Check the fields of a chat request.

    Raises:
        ApiError: A field is missing or wrong. Names it.
    """
    choice = given.get("tool_choice")
    if choice not in (None, "auto", "none"):
        raise bad_request("tool_choice", f"must be auto or none, got {json.dumps(choice):.80}.")
    try:
        request = _REQUEST.validate_python(given)
    except ValidationError as error:
        param = str(error.errors()[0]["loc"][0])
        raise ApiError(400, f"{first_problem(error)}.", param=param) from None
    for number, tool in enumerate(request.tools or []):
        function = tool.get("function")
        name = function.get("name") if isinstance(function, dict) else None
        if tool.get("type") != "function" or not isinstance(name, str):
            got = json.dumps(tool)
            raise bad_request("tools", f"[{number}] must be of type function with function.name, got {got:.80}.")
        _check_schema(number, name, function)
    for message in request.messages:
        if not isinstance(message.get("tool_calls") or [], list):
            raise bad_request("messages", f"tool_calls must be a list, got {json.dumps(message['tool_calls']):.80}.")
    _ = request.json_schema  # so that a wrong format is told now
    return request


def _check_schema(number: int, name: str, function: Any) -> None:
    parameters = function.get("parameters") or {}
    try:
        if not isinstance(parameters, dict):
            raise SchemaError(f"must be an object, got {json.dumps(parameters):.80}")
        Draft202012Validator.check_schema(parameters)
    except SchemaError as error:
        raise bad_request("tools", f"[{number}], parameters of {name}: not a JSON schema: {error.message}.") from None


def json_objects(key: str, values: Any) -> list[Mapping[str, Any]]:
    """A value that must be a list of JSON objects.

    Args:
        key: Where it stands, for the message.
        values: The value.

    Raises:
        ApiError: It is not.
    """
    if not isinstance(values, list) or not all(isinstance(value, Mapping) for value in values):
        raise bad_request(key, f"must be JSON objects, got {json.dumps(values):.80}.")
    return values
