"""vLLM's API of token ids in and out, `/inference/v1/generate`.

Source: vLLM 0.32, `GenerateRequest` and `GenerateTokensResponse`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from rl.serving.chat_answer import Answer
from rl.serving.completions_api import CompletionRequest, check_completion_request, completion_usage
from rl.serving.errors import bad_request
from rl.serving.sample_request import NEUTRAL
from rl.serving.values import json_objects, neutral

_FIELDS = frozenset(("model", "token_ids", "sampling_params", "return_token_ids"))
_WITHOUT_EFFECT = frozenset(("request_id", "cache_salt", "priority", "stream_options", "metadata", "user"))
_NEUTRAL: dict[str, tuple[Any, ...]] = {"stream": (False,), "output_mode": ("tokens",)}
_SAMPLING = frozenset(
    ("n", "max_tokens", "temperature", "top_p", "top_k", "min_p", "stop", "stop_token_ids", "seed", "logprobs")
)
_SAMPLING_WITHOUT_EFFECT = frozenset(
    ("detokenize", "include_stop_str_in_output", "output_kind", "skip_special_tokens", "spaces_between_special_tokens")
)  # the answer has no text
_SAMPLING_NEUTRAL = NEUTRAL | {"bad_words": ([],), "extra_args": ({},)}


def read_generate_request(given: Mapping[str, Any]) -> CompletionRequest:
    """Translate a request.

    Raises:
        ApiError: A key is unknown, wrong, or has an effect that is not supported. Names the key.
    """
    given = neutral(given, _FIELDS, _WITHOUT_EFFECT, _NEUTRAL)
    for key in ("token_ids", "sampling_params"):
        if key not in given:
            raise bad_request(key, "is missing.")
    if not isinstance(given["token_ids"], list) or not given["token_ids"]:
        raise bad_request("token_ids", f"must be a list of token ids, got {given['token_ids']!r:.80}.")
    (sampling,) = json_objects("sampling_params", [given["sampling_params"]])
    sampling = neutral(sampling, _SAMPLING, _SAMPLING_WITHOUT_EFFECT, _SAMPLING_NEUTRAL)
    kept = {"prompts": [given["token_ids"]]} | {
        key: given[key] for key in ("model", "return_token_ids") if key in given
    }
    return check_completion_request({**kept, **sampling})


def generate_answer(request: CompletionRequest, answer: Answer) -> dict[str, Any]:
    """The JSON object of a whole answer."""
    body = {
        "request_id": answer.id,
        "output_mode": "tokens",
        "model": answer.model,
        "created": int(time.time()),
        "choices": [_choice(request, answer, number) for number in range(len(answer.replies))],
        "usage": completion_usage(request, answer),
    }
    if request.return_token_ids:
        body["prompt_token_ids"] = answer.replies[0].sampled.prompt_ids.tolist()
    return body


def _choice(request: CompletionRequest, answer: Answer, number: int) -> dict[str, Any]:
    reply = answer.replies[number]
    ids = reply.sampled.token_ids.tolist()
    logprobs = None
    if request.logprobs is not None:
        found = zip(ids, reply.sampled.logprobs.tolist(), strict=True)
        logprobs = {"content": [_logprob(token, value) for token, value in found]}
    return {
        "index": number,
        "token_ids": ids,
        "finish_reason": "length" if reply.is_cut else "stop",
        "stop_reason": reply.stop_sequence,
        "logprobs": logprobs,
    }


def _logprob(token: int, value: float) -> dict[str, Any]:
    """One token's; `token` is for clients of vLLM before 0.32."""
    return {"token_id": token, "token": f"token_id:{token}", "logprob": value, "rank": None, "top_logprobs": []}
