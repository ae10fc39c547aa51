"""Every parser of vLLM through the adapter: no text makes it raise, and it reads the calls of its format."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from rl.data.renderer import Renderer, load_tokenizer
from rl.errors import ConfigError
from rl.inference.vllm_parsers import VllmParser, adapted_names
from rl.tools.parsers import PARSERS, check_parser_name, load_parser
from rl.types import ToolCall
from tests.tiny import make_tiny_tokenizer

TOOL = {
    "type": "function",
    "function": {"name": "add", "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}}},
}
CALL = ToolCall("add", {"a": 1})
TAGS = [
    "<tool_call>",
    "</tool_call>",
    "<think>",
    "</think>",
    "<function=add>",
    "[add(a=1)]",
    '{"name": "add"',
    "{",
    "}",
]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerFast:
    return load_tokenizer(make_tiny_tokenizer(tmp_path_factory.mktemp("tokenizer")))


@pytest.fixture(scope="module")
def parsers(tokenizer: PreTrainedTokenizerFast) -> dict[str, VllmParser]:
    """Those that this tokenizer has the tags for."""
    found = {}
    for name in adapted_names():
        try:
            found[name] = load_parser(f"vllm:{name}", [TOOL], tokenizer)
        except ConfigError as error:
            assert f"vLLM's parser '{name}' cannot be used here" in str(error)
    return found


def test_vllm_parsers_are_nearly_all_there(parsers: dict[str, VllmParser]):
    assert {"hermes", "qwen3_coder", "pythonic", "glm45", "internlm"} <= set(parsers)
    assert len(parsers) > 20


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("hermes", PARSERS["hermes"].render(CALL)),
        ("qwen3_coder", PARSERS["qwen3_coder"].render(CALL)),
        ("pythonic", "[add(a=1)]"),
    ],
)
def test_vllm_parsers_read_calls_and_no_thoughts(parsers: dict[str, VllmParser], name: str, text: str):
    read = parsers[name].parse(text)
    assert [(call.name, call.arguments, call.error) for call in read] == [("add", {"a": 1}, None)]
    assert [call.name for call in parsers[name].parse(f"<think>{text}</think>{text}")] == ["add"]
    assert [call.name for call in parsers[name].parse(f"{text}</think>{text}")] == ["add"]
    assert parsers[name].parse(f"<think>{text}") == []


@settings(max_examples=40, deadline=None)
@given(st.lists(st.sampled_from(TAGS) | st.text(max_size=3), max_size=12).map("".join))
def test_vllm_parsers_read_any_text_without_raising(parsers: dict[str, VllmParser], text: str):
    for parser in parsers.values():
        assert all(isinstance(call, ToolCall) for call in parser.parse(text))


def test_vllm_parsers_pass_the_self_test_with_their_template(tokenizer: PreTrainedTokenizerFast):
    for name, prompt_type in (("hermes", "qwen"), ("qwen3_coder", "qwen3_coder")):
        parser = load_parser(f"vllm:{name}", [TOOL], tokenizer)
        Renderer(tokenizer, prompt_type, [TOOL], parser).self_test(parser)


def test_vllm_parsers_are_named_where_one_is_unknown():
    check_parser_name("vllm:hermes")
    with pytest.raises(ConfigError, match=r"unknown name 'vllm:herms'\. Did you mean 'vllm:hermes'\?"):
        check_parser_name("vllm:herms")


def test_vllm_parsers_that_fail_give_an_error(parsers: dict[str, VllmParser], monkeypatch: pytest.MonkeyPatch):
    def fail(*_: object) -> None:
        raise LookupError("no such tag")

    monkeypatch.setattr(parsers["hermes"]._class, "extract_tool_calls", fail)
    (call,) = parsers["hermes"].parse("<tool_call>")
    assert call.error == "the tool call cannot be read: no such tag."
