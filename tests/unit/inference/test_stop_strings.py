"""Assumptions of the agent loop: vLLM keeps the tokens of a stop string and does not search the prompt for it."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast
from vllm.v1.engine import EngineCoreRequest
from vllm.v1.engine.detokenizer import FastIncrementalDetokenizer

from rl.chat.renderer import load_tokenizer
from rl.inference.engine import _sampling_params
from rl.types import Sampling
from tests.tiny import make_tiny_tokenizer

STOP = "</search>"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerFast:
    return load_tokenizer(make_tiny_tokenizer(tmp_path_factory.mktemp("tokenizer")))


def detokenizer(tokenizer: PreTrainedTokenizerFast, prompt: str) -> FastIncrementalDetokenizer:
    request = EngineCoreRequest(
        request_id="a",
        prompt_token_ids=tokenizer.encode(prompt),
        mm_features=None,
        sampling_params=_sampling_params(Sampling(1.0, 100, stop=(STOP,)), [2]),
        pooling_params=None,
        arrival_time=0.0,
        lora_request=None,
        cache_salt=None,
        data_parallel_rank=None,
    )
    return FastIncrementalDetokenizer(tokenizer, request)


def first_stop(stream: FastIncrementalDetokenizer, ids: list[int]) -> int | None:
    """Number of sampled tokens when the stop string was found."""
    return next((n for n, token in enumerate(ids, start=1) if stream.update([token], False) is not None), None)


def test_engine_finds_a_stop_string_at_its_last_token_and_keeps_its_tokens(tokenizer: PreTrainedTokenizerFast):
    ids = tokenizer.encode(f"a {STOP}")
    stream = detokenizer(tokenizer, "b")
    assert first_stop(stream, [*ids, 10, 10]) == len(ids)
    assert stream.output_token_ids == ids


def test_engine_does_not_find_a_stop_string_that_begins_in_the_prompt(tokenizer: PreTrainedTokenizerFast):
    ids = tokenizer.encode(STOP)
    for cut in range(1, len(ids)):
        stream = detokenizer(tokenizer, "a " + tokenizer.decode(ids[:cut]))
        assert first_stop(stream, ids[cut:]) is None


def test_engine_finds_a_stop_string_that_is_a_special_token(tmp_path: Path):
    tokenizer = load_tokenizer(make_tiny_tokenizer(tmp_path))
    tokenizer.add_special_tokens({"additional_special_tokens": [STOP]})
    ids = tokenizer.encode(f"a{STOP}")
    assert first_stop(detokenizer(tokenizer, "b"), ids) == len(ids)
