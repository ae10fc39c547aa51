"""OpenAI's Completions API: texts or token ids are continued as they are, without a chat template.

Source: OpenAI's API reference, "Create completion"; vLLM's `CompletionRequest` for token ids.
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Coroutine, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError

from rl.errors import DataError
from rl.rollout.dialog import Dialog
from rl.rollout.rollout_function import Policy, Reply
from rl.serving.chat_answer import Answer, cut
from rl.serving.errors import bad_request, wrong_field
from rl.serving.sample_request import NEUTRAL, WITHOUT_EFFECT, SampleRequest, TokenId
from rl.serving.values import neutral
from rl.types import Message, Sampling

Text = Annotated[str, Field(min_length=1)]
Ids = Annotated[list[TokenId], Field(min_length=1)]

_TEXT = TypeAdapter(Text)
_IDS = TypeAdapter(Ids)
_MOST_PROMPTS = 128


@dataclass(slots=True, kw_only=True)
class CompletionRequest(SampleRequest):
    """A request to continue texts or token ids."""

    prompts: list[str | list[int]]
    logprobs: Annotated[int, Field(ge=0, le=1)] | None = None
    stop_token_ids: list[TokenId] | None = None

    @property
    def num_completions(self) -> int:
        """`n` for each prompt."""
        return len(self.prompts) * self.n

    def conversation(self, number: int) -> list[Message]:
        """See `SampleRequest.conversation`."""
        prompt = self.prompts[number // self.n]
        return [{"role": "user", "content": prompt if isinstance(prompt, str) else ""}]

    def sampling(self, own: Sampling) -> Sampling:
        """See `SampleRequest.sampling`."""
        return replace(SampleRequest.sampling(self, own), stop_token_ids=tuple(self.stop_token_ids or ()))

    def ask(self, number: int, policy: Policy, own: Sampling, dialog: Dialog) -> Coroutine[Any, Any, Reply]:
        """See `SampleRequest.ask`."""
        prompt = self.prompts[number // self.n]
        size = len(dialog.renderer.tokenizer)
        if not isinstance(prompt, str) and max(prompt) >= size:
            raise DataError(f"prompt: token ids must be below {size}, got {max(prompt)}.")
        return policy.complete(prompt, max_tokens=self.limit, sampling=self.sampling(own))


_REQUEST = TypeAdapter(CompletionRequest)
_FIELDS = frozenset(CompletionRequest.__dataclass_fields__) - {"prompts"} | {"prompt"}
_NEUTRAL = NEUTRAL | {"suffix": ("",), "add_special_tokens": (True,), "response_format": ({"type": "text"},)}


def read_completion_request(given: Mapping[str, Any]) -> CompletionRequest:
    """Read a request.

    Raises:
        ApiError: A key is unknown, wrong, or has an effect that is not supported. Names the key.
    """
    kept = neutral(given, _FIELDS, WITHOUT_EFFECT, _NEUTRAL)
    if "prompt" not in kept:
        raise bad_request("prompt", "is missing.")
    kept["prompts"] = _prompts(kept.pop("prompt"))
    return check_completion_request(kept)


def check_completion_request(given: Mapping[str, Any]) -> CompletionRequest:
    """Check the fields of a request.

    Raises:
        ApiError: A field is missing or wrong. Names it.
    """
    try:
        return _REQUEST.validate_python(given)
    except ValidationError as error:
        raise wrong_field(error) from None


def completion_answer(request: CompletionRequest, answer: Answer) -> dict[str, Any]:
    """The JSON object of a whole answer."""
    choices = [_choice(request, answer, number) for number in range(len(answer.replies))]
    return {**_head(answer), "choices": choices, "usage": completion_usage(request, answer)}


def completion_events(request: CompletionRequest, answer: Answer) -> Iterator[str]:
    """The same answer as events: the pieces of each text, the end with the last, and the usage if it was asked for."""
    head = _head(answer)
    for number in range(len(answer.replies)):
        whole = _choice(request, answer, number)
        pieces = cut(whole["text"]) or [""]
        for place, piece in enumerate(pieces):
            is_first, is_last = place == 0, place == len(pieces) - 1
            choice = {**(whole if is_first else {"index": number, "logprobs": None}), "text": piece}
            choice["finish_reason"] = whole["finish_reason"] if is_last else None
            yield _event({**head, "choices": [choice]})
    if request.stream_options.include_usage:
        yield _event({**head, "choices": [], "usage": completion_usage(request, answer)})
    yield "data: [DONE]\n\n"


def _prompts(given: Any) -> list[str | list[int]]:
    """One prompt or several, each a text or token ids."""
    is_one = isinstance(given, str) or (isinstance(given, list) and given and isinstance(given[0], int))
    prompts = [given] if is_one else given
    if not isinstance(prompts, list) or not 1 <= len(prompts) <= _MOST_PROMPTS:
        got = json.dumps(given)
        raise bad_request("prompt", f"must be a text, token ids, or a list of at most {_MOST_PROMPTS}, got {got:.80}.")
    try:
        return [_TEXT.validate_python(p) if isinstance(p, str) else _IDS.validate_python(p) for p in prompts]
    except ValidationError as error:
        raise bad_request("prompt", f"{wrong_field(error).message}") from None


def _choice(request: CompletionRequest, answer: Answer, number: int) -> dict[str, Any]:
    reply = answer.replies[number]
    ids = reply.sampled.token_ids.tolist()
    choice: dict[str, Any] = {"index": number, "text": reply.text, "logprobs": None, "stop_reason": reply.stop_sequence}
    choice["finish_reason"] = "length" if reply.is_cut else "stop"
    if request.logprobs is not None:
        pieces = answer.pieces(ids)
        offsets = list(itertools.accumulate(map(len, pieces[:-1]), initial=0))[: len(pieces)]
        values = reply.sampled.logprobs.tolist()
        choice["logprobs"] = {"tokens": pieces, "token_logprobs": values, "text_offset": offsets, "top_logprobs": None}
    if request.return_token_ids:
        choice |= {"prompt_token_ids": reply.sampled.prompt_ids.tolist(), "token_ids": ids}
    return choice


def _head(answer: Answer) -> dict[str, Any]:
    return {"id": answer.id, "object": "text_completion", "created": int(time.time()), "model": answer.model}


def completion_usage(request: CompletionRequest, answer: Answer) -> dict[str, int]:
    """Tokens of all prompts, each counted once, and of all completions."""
    prompt = sum(len(reply.sampled.prompt_ids) for reply in answer.replies[:: request.n])
    sampled = sum(len(reply.sampled.token_ids) for reply in answer.replies)
    return {"prompt_tokens": prompt, "completion_tokens": sampled, "total_tokens": prompt + sampled}


def _event(value: dict[str, Any]) -> str:
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n"
