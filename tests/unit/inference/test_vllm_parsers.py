"""Every vLLM parser through the adapter: it parses the calls of its format and raises for no text."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from rl.chat.parsers import PARSERS, check_parser_name, load_parser
from rl.chat.renderer import Renderer, load_tokenizer
from rl.chat.self_test import check_renderer
from rl.errors import ConfigError
from rl.inference.vllm_parsers import VllmParser, adapted_names
from rl.types import ToolCall
from tests.tiny import make_tiny_tokenizer

TOOL = {
    "type": "function",
    "function": {"name": "add", "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}}},
}
CALL = ToolCall("add", {"a": 1})
DEEPSEEK = [f"<｜tool▁{part}｜>" for part in ("calls▁begin", "calls▁end", "call▁begin", "call▁end", "sep")]
VOCABULARY = [
    *("<tool_call>", "</tool_call>", "<tool_calls>", "</tool_calls>", "<tool_sep>", "<arg_key>", "</arg_key>"),
    *("<arg_value>", "</arg_value>", "<|tool_call_start|>", "<|tool_call_end|>", "<|python_tag|>", "[TOOL_CALLS]"),
    *DEEPSEEK,
]
"""Tags that parsers look up in the vocabulary."""
TAGS = [*VOCABULARY, "<think>", "</think>", "<function=add>", "[add(a=1)]", '{"name": "add"', "{", "}", "add", "\n"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerFast:
    tokenizer = load_tokenizer(make_tiny_tokenizer(tmp_path_factory.mktemp("tokenizer")))
    tokenizer.add_tokens(VOCABULARY)
    return tokenizer


@pytest.fixture(scope="module")
def parsers(tokenizer: PreTrainedTokenizerFast) -> dict[str, VllmParser]:
    """All vLLM parsers by name."""
    return {name: load_parser(f"vllm:{name}", [TOOL], tokenizer) for name in adapted_names()}  # type: ignore[misc]


def test_vllm_parsers_are_all_listed(parsers: dict[str, VllmParser]):
    assert {"hermes", "qwen3_coder", "pythonic", "glm45", "deepseek_v3", "mistral", "kimi_k2"} <= set(parsers)


def test_vllm_parsers_are_rejected_with_a_tokenizer_of_another_model(tmp_path: Path):
    tokenizer = load_tokenizer(make_tiny_tokenizer(tmp_path))
    with pytest.raises(ConfigError, match="vLLM's parser 'deepseek_v3' does not work here, got 'DeepSeek-V3 Tool"):
        load_parser("vllm:deepseek_v3", [TOOL], tokenizer)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("hermes", PARSERS["hermes"].render(CALL)),
        ("qwen3_coder", PARSERS["qwen3_coder"].render(CALL)),
        ("pythonic", "[add(a=1)]"),
        ("llama3_json", PARSERS["llama3_json"].render(CALL)),
        ("mistral", '[TOOL_CALLS][{"name": "add", "arguments": {"a": 1}}]'),
        ("glm45", "<tool_call>add\n<arg_key>a</arg_key>\n<arg_value>1</arg_value>\n</tool_call>"),
        (
            "deepseek_v3",
            f'{DEEPSEEK[0]}{DEEPSEEK[2]}function{DEEPSEEK[4]}add\n```json\n{{"a": 1}}\n```{DEEPSEEK[3]}{DEEPSEEK[1]}',
        ),
    ],
)
def test_vllm_parsers_read_calls_and_no_thoughts(parsers: dict[str, VllmParser], name: str, text: str):
    read = parsers[name].parse(text)
    assert [(call.name, call.arguments, call.error) for call in read] == [("add", {"a": 1}, None)]
    for thought in (f"<think>{text}</think>", f"{text}</think>"):
        assert [call.name for call in parsers[name].parse(thought + text)] == ["add"]
    (refused,) = parsers[name].parse(f"<think>{text}")
    assert (refused.is_in_thought, refused.arguments) == (True, {})
    assert parsers[name].parse("<think>never closed, without a call") == []


@pytest.mark.parametrize(
    ("name", "tag"),
    [
        ("hermes", "<tool_call>"),
        ("qwen3_coder", "<tool_call>"),
        ("glm45", "<tool_call>"),
        ("deepseek_v3", DEEPSEEK[0]),
        ("mistral", "[TOOL_CALLS]"),
        ("llama3_json", "<|python_tag|>"),
        ("kimi_k2", "<|tool_calls_section_begin|>"),
    ],
)
def test_vllm_parsers_report_a_malformed_call(parsers: dict[str, VllmParser], name: str, tag: str):
    assert tag in parsers[name].opening_tags
    (call,) = parsers[name].parse(f"I add. {tag}{{oops")
    assert call.raw == f"{tag}{{oops"
    assert call.error is not None and call.error.startswith(f"the text after {tag} cannot be read as a tool call.")
    assert parsers[name].parse("I add. {oops") == []
    assert parsers[name].parse(f"<think>{tag}{{oops</think>done") == []


def test_vllm_parsers_of_bare_lists_are_silent(parsers: dict[str, VllmParser]):
    assert parsers["pythonic"].opening_tags == ()
    assert parsers["pythonic"].parse("[add(a=1") == []


@settings(max_examples=150, deadline=None)
@given(st.lists(st.sampled_from(TAGS) | st.text(max_size=3), max_size=12).map("".join))
def test_vllm_parsers_read_any_text_without_raising(parsers: dict[str, VllmParser], text: str):
    for parser in parsers.values():
        assert all(isinstance(call, ToolCall) for call in parser.parse(text))


def test_vllm_parsers_pass_the_self_test_with_their_template(tokenizer: PreTrainedTokenizerFast):
    for name, prompt_type in (("hermes", "qwen"), ("qwen3_coder", "qwen3_coder")):
        parser = load_parser(f"vllm:{name}", [TOOL], tokenizer)
        check_renderer(Renderer(tokenizer, prompt_type, [TOOL], parser), parser)


def test_an_unknown_vllm_parser_gets_a_suggestion():
    check_parser_name("vllm:hermes")
    with pytest.raises(ConfigError, match=r"unknown name 'vllm:herms'\. Did you mean 'vllm:hermes'\?"):
        check_parser_name("vllm:herms")


def test_vllm_parsers_that_fail_give_an_error(parsers: dict[str, VllmParser], monkeypatch: pytest.MonkeyPatch):
    def fail(*_: object) -> None:
        raise LookupError("no such tag")

    monkeypatch.setattr(parsers["hermes"]._class, "extract_tool_calls", fail)
    (call,) = parsers["hermes"].parse("<tool_call>")
    assert call.error == "the tool call cannot be read: no such tag."


def test_vllm_parsers_do_not_log_a_traceback_for_each_malformed_call(parsers: dict[str, VllmParser]):
    records: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = records.append  # type: ignore[method-assign]
    logging.getLogger("vllm").addHandler(handler)
    try:
        (call,) = parsers["hermes"].parse("<tool_call>\n{oops}\n</tool_call>")
    finally:
        logging.getLogger("vllm").removeHandler(handler)
    assert call.error is not None
    assert records == []
