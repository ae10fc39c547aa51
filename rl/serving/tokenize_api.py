"""vLLM's `/tokenize` and `/detokenize`.

Source: vLLM 0.32, `TokenizeCompletionRequest`, `TokenizeChatRequest` and `DetokenizeRequest`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter, ValidationError

from rl.chat.messages import normalized
from rl.chat.renderer import Renderer
from rl.serving.chat_request import ChatRequest, check_request
from rl.serving.errors import ApiError, bad_request, wrong_field
from rl.serving.sample_request import TokenId
from rl.serving.values import neutral

_FIELDS = frozenset(
    ("model", "prompt", "messages", "tools", "add_generation_prompt", "add_special_tokens", "return_token_strs")
)
_NEUTRAL: dict[str, tuple[Any, ...]] = {"continue_final_message": (False,), "chat_template_kwargs": ({},)}


@dataclass(slots=True)
class TokenizeRequest:
    """A text or a chat whose tokens are asked for."""

    model: str | None = None
    prompt: str | None = None
    chat: Any = None
    add_generation_prompt: bool = True
    add_special_tokens: bool = True
    return_token_strs: bool = False

    @property
    def offered_tools(self) -> list[dict[str, Any]]:
        """The tools that the chat shows."""
        return self.chat.offered_tools if self.chat else []


@dataclass(slots=True)
class DetokenizeRequest:
    """Token ids whose text is asked for."""

    tokens: list[TokenId]
    model: str | None = None


_TOKENIZE, _DETOKENIZE = TypeAdapter(TokenizeRequest), TypeAdapter(DetokenizeRequest)


def read_tokenize_request(given: Mapping[str, Any]) -> TokenizeRequest:
    """Read a request.

    Raises:
        ApiError: A key is unknown, wrong, or has an effect that is not supported. Names the key.
    """
    kept = neutral(given, _FIELDS, frozenset(), _NEUTRAL)
    if ("prompt" in kept) == ("messages" in kept):
        raise bad_request("prompt", "give either prompt or messages.")
    if "messages" in kept:
        if kept.pop("add_special_tokens", False):
            raise bad_request("add_special_tokens", "only false is supported for messages. Remove the key.")
        kept["chat"] = check_request({key: kept.pop(key) for key in ("messages", "tools") if key in kept})
    elif "tools" in kept:
        raise bad_request("tools", "only messages have tools.")
    try:
        return _TOKENIZE.validate_python(kept)
    except ValidationError as error:
        raise wrong_field(error) from None


def read_detokenize_request(given: Mapping[str, Any]) -> DetokenizeRequest:
    """Read a request.

    Raises:
        ApiError: A field is missing or wrong. Names it.
    """
    try:
        return _DETOKENIZE.validate_python(neutral(given, {"model", "tokens"}, frozenset(), {}))
    except ValidationError as error:
        raise wrong_field(error) from None


def tokenized(request: TokenizeRequest, renderer: Renderer, max_model_len: int) -> dict[str, Any]:
    """The answer of `/tokenize`: the ids that a completion of this prompt or chat begins with."""
    if isinstance(request.chat, ChatRequest):
        ids = _chat_ids(request, renderer)
    else:
        backend = renderer.tokenizer.backend_tokenizer
        ids = backend.encode(request.prompt, add_special_tokens=request.add_special_tokens).ids
    strings = renderer.tokenizer.convert_ids_to_tokens(ids) if request.return_token_strs else None
    return {"count": len(ids), "max_model_len": max_model_len, "tokens": ids, "token_strs": strings}


def detokenized(request: DetokenizeRequest, renderer: Renderer) -> dict[str, Any]:
    """The answer of `/detokenize`.

    Raises:
        ApiError: There is no such token.
    """
    size = len(renderer.tokenizer)
    if wrong := [token for token in request.tokens if token >= size]:
        raise ApiError(400, f"tokens: must be below {size}, got {wrong[0]}.", param="tokens")
    return {"prompt": renderer.decode(request.tokens)}


def _chat_ids(request: TokenizeRequest, renderer: Renderer) -> list[int]:
    messages = [normalized(message) for message in request.chat.messages]
    if request.add_generation_prompt:
        return renderer.render_prompt(messages)
    return renderer.encoder.encode(renderer.template.render(messages, False))
