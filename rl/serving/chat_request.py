"""Requests to `/v1/chat/completions`, read and checked.

A key that changes what is sampled is honoured or refused by name, never ignored. Keys that clients send by habit with a
neutral value (`frequency_penalty: 0`) are accepted.

Source: OpenAI's API reference, "Create chat completion"; vLLM's `ChatCompletionRequest` for `top_k`, `min_p` and
`return_token_ids`.
"""

from __future__ import annotations

import json
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal

from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError
from pydantic import Field, TypeAdapter, ValidationError

from rl.rollout.dialog import Dialog
from rl.rollout.rollout_function import Policy, Reply
from rl.serving.errors import bad_request, wrong_field
from rl.serving.required_call import required_call
from rl.serving.sample_request import NEUTRAL, WITHOUT_EFFECT, SampleRequest, Tokens
from rl.serving.values import neutral
from rl.thoughts import OPEN
from rl.types import Message, Sampling

_NEUTRAL = NEUTRAL | {
    "function_call": ("auto", "none"),
    "functions": ([],),
    "modalities": (["text"],),
    "parallel_tool_calls": (True,),
    "top_logprobs": (0,),
}
"""Keys that are accepted with these values alone, which have no effect."""


@dataclass(slots=True, kw_only=True)
class ChatRequest(SampleRequest):
    """A chat request. A field that is None was not given."""

    prompt_key: ClassVar[str] = "messages"

    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: Tokens | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: Literal["auto", "none", "required"] | dict[str, Any] | None = None
    logprobs: bool = False
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

    @property
    def required_tools(self) -> list[dict[str, Any]]:
        """The tools of which one must be called; empty where the model may answer as it likes."""
        if self.tool_choice == "required":
            return self.offered_tools
        if not isinstance(self.tool_choice, dict):
            return []
        function = self.tool_choice.get("function")
        name = function.get("name") if isinstance(function, dict) else None
        return [tool for tool in self.offered_tools if tool["function"]["name"] == name]

    def conversation(self, number: int) -> list[Message]:
        """See `SampleRequest.conversation`."""
        return self.messages

    def sampling(self, own: Sampling) -> Sampling:
        """See `SampleRequest.sampling`."""
        return replace(SampleRequest.sampling(self, own), json_schema=self.json_schema)

    def ask(self, number: int, policy: Policy, own: Sampling, dialog: Dialog) -> Coroutine[Any, Any, Reply]:
        """See `SampleRequest.ask`."""
        sampling = self.sampling(own)
        if required := self.required_tools:
            header = dialog.renderer.decode(dialog.renderer.render_prompt([{"role": "user", "content": ""}]))
            tag = required_call(
                required,
                dialog.parser,
                is_single=self.tool_choice != "required",
                begins_in_thought=header.rstrip().endswith(OPEN),
            )
            sampling = replace(sampling, structural_tag=tag)
        return policy.chat(self.messages, max_tokens=self.limit, sampling=sampling, dialog=dialog)


_REQUEST = TypeAdapter(ChatRequest)
_FIELDS = frozenset(ChatRequest.__dataclass_fields__)


def read_chat_request(given: Mapping[str, Any]) -> ChatRequest:
    """Read a chat request.

    Raises:
        ApiError: A key is unknown, wrong, or has an effect that is not supported. Names the key.
    """
    return check_request(neutral(given, _FIELDS, WITHOUT_EFFECT, _NEUTRAL))


def check_request(given: Mapping[str, Any]) -> ChatRequest:
    """Check the fields of a chat request.

    Raises:
        ApiError: A field is missing or wrong. Names it.
    """
    choice = given.get("tool_choice")
    if choice not in (None, "auto", "none", "required") and not isinstance(choice, dict):
        raise bad_request("tool_choice", f"must be auto, none, required or a function, got {json.dumps(choice):.80}.")
    try:
        request = _REQUEST.validate_python(given)
    except ValidationError as error:
        raise wrong_field(error) from None
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
    schema = request.json_schema  # a wrong format is told now
    if choice not in (None, "auto", "none"):
        if not request.required_tools:
            raise bad_request("tool_choice", f"must be one of the tools of the request, got {json.dumps(choice):.80}.")
        if schema is not None:
            raise bad_request("tool_choice", "a call cannot be required together with a response_format.")
    return request


def _check_schema(number: int, name: str, function: Any) -> None:
    parameters = function.get("parameters") or {}
    try:
        if not isinstance(parameters, dict):
            raise SchemaError(f"must be an object, got {json.dumps(parameters):.80}")
        Draft202012Validator.check_schema(parameters)
    except SchemaError as error:
        raise bad_request("tools", f"[{number}], parameters of {name}: not a JSON schema: {error.message}.") from None
