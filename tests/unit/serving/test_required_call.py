"""The form of a required call, checked by the grammar engine that vLLM uses."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import xgrammar

from rl.chat.parsers import PARSERS
from rl.serving.errors import ApiError
from rl.serving.required_call import required_call
from rl.types import FinishReason
from tests.fakes import said
from tests.unit.serving.agents import ADD
from tests.unit.serving.parts import CALL, USER, ids, saying, serving, tokenizer

OTHER = {"type": "function", "function": {"name": "other"}}


@functools.cache
def compiler() -> Any:
    return xgrammar.GrammarCompiler(xgrammar.TokenizerInfo.from_huggingface(tokenizer()))


def is_allowed(form: str, text: str) -> bool:
    """Whether a whole answer follows a form."""
    matcher = xgrammar.GrammarMatcher(compiler().compile_structural_tag(form))
    accepted: bool = matcher.accept_string(text) and matcher.is_completed()
    return accepted


@pytest.mark.parametrize(
    ("text", "is_single", "is_right"),
    [
        (CALL, True, True),
        (CALL, False, True),
        (f"{CALL}\n{CALL}", True, False),
        (f"{CALL}\n{CALL}", False, True),
        (CALL.replace('"a": 1', '"a": "x"'), False, False),
        (CALL.replace('"a"', '"b"'), False, False),
        (CALL.replace("add", "other"), False, True),
        (CALL.replace("add", "third"), False, False),
        ("Hello", False, False),
        (f"Hello {CALL}", False, False),
        (CALL[:-1], False, False),
        ("", False, False),
    ],
)
def test_only_calls_of_the_tools_are_allowed(text: str, is_single: bool, is_right: bool):
    form = required_call([ADD, OTHER], PARSERS["hermes"], is_single=is_single)
    assert is_allowed(form, text) == is_right


def test_an_open_thought_comes_before_the_call():
    form = required_call([ADD], PARSERS["hermes"], is_single=True, begins_in_thought=True)
    assert is_allowed(form, f"I must add.\n</think>\n\n{CALL}")
    assert not is_allowed(form, CALL)
    assert not is_allowed(form, "I must add.\n</think>\n\n3")


def test_a_call_of_llama_is_allowed():
    parser = PARSERS["llama3_json"]
    form = required_call([ADD], parser, is_single=False)
    assert is_allowed(form, '{"name": "add", "parameters": {"a": 1}}')


def test_a_format_without_json_is_refused():
    with pytest.raises(ApiError, match="does not write arguments as JSON"):
        required_call([ADD], PARSERS["qwen3_coder"].for_tools([ADD]), is_single=True)


async def test_a_weight_publish_starts_a_turn_of_a_form_anew():
    script = [said(ids(CALL[:20]), FinishReason.ABORT), saying(CALL)]
    async with serving(script) as (_, client, episode), client.openai() as openai:
        done = await openai.chat.completions.create(
            model="tiny", messages=[USER], tools=[ADD], tool_choice="required"
        )  # fmt: skip
    (call,) = done.choices[0].message.tool_calls or []
    assert call.function.name == "add"
    assert episode.turns[0].text == f"{CALL}<|im_end|>"
