"""Adapter for vLLM's tool-call parsers (`rl_config.tool_parser_format: vllm:<name>`)."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from itertools import islice
from typing import Any

from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest, ChatCompletionToolsParam
from vllm.parser.engine.parser_engine_config import ParserState
from vllm.tokenizers.hf import get_cached_tokenizer
from vllm.tool_parsers import ToolParser, ToolParserManager

from rl.chat.parsers.base import failed_call, refused_in_thought
from rl.chat.parsers.json_calls import as_arguments, decode_json, json_problem
from rl.errors import ConfigError
from rl.thoughts import OPEN, is_thinking, thought_spans, without_thoughts
from rl.types import ToolCall

logger = logging.getLogger(__name__)
# The parsers log a traceback for every malformed call; here it becomes the error of the call.
logging.getLogger("vllm.tool_parsers").setLevel(logging.CRITICAL)

_TAG_ATTRIBUTES = (
    *("tool_calls_start_token", "tool_call_start_token", "tool_start_token", "bot_token", "bot_string"),
    *("tc_start", "tools_open", "_TOOL_CALLS_START"),
)
"""Attributes in which parsers without a grammar store the tag that opens a call."""
_IN_A_CALL = (ParserState.TOOL_PREAMBLE, ParserState.TOOL_NAME, ParserState.TOOL_ARGS)
_OPEN, _CLOSE = ("<", "["), (">", "]")


class VllmParser:
    """A parser of vLLM that reports malformed calls as errors.

    vLLM treats text that it cannot parse as prose. Here, a turn with a tag that opens a call but without a parsed call
    is an error, for parsers whose tags are known (`opening_tags_of`). A malformed call next to a parsed one is not
    noticed. Thoughts are removed before parsing, closed or not, and so is the text before a `</think>` whose opening
    tag is in the prompt.

    Args:
        name: Name in vLLM's registry.
        parser_class: Class from vLLM's registry.
        tools: Tool schemas in OpenAI's format.
        tokenizer: A tokenizer with a cached vocabulary.
    """

    stop: tuple[str, ...] = ()
    result_format: str | None = None
    instructions: str | None = None

    def __init__(
        self, name: str, parser_class: type[ToolParser], tools: Sequence[dict[str, Any]], tokenizer: Any
    ) -> None:
        self._name, self._class, self._tokenizer = name, parser_class, tokenizer
        self._tools = [ChatCompletionToolsParam.model_validate(tool) for tool in tools]
        self._request = ChatCompletionRequest(messages=[], tools=list(self._tools) or None)
        self.opening_tags = opening_tags_of(self._new_parser())
        """Tags that open a call; empty if unknown."""

    def for_tools(self, tools: Sequence[dict[str, Any]]) -> VllmParser:
        """Return the same parser for other tools."""
        return VllmParser(self._name, self._class, tools, self._tokenizer)

    def parse(self, text: str) -> list[ToolCall]:
        """Parse the calls of a turn; if vLLM's parser fails or misses a call, return one call with an `error`."""
        calls = self._read(without_thoughts(text).strip())
        if is_thinking(text):
            start, _ = thought_spans(text)[-1]
            in_thought = (call for call in self._read(text[start + len(OPEN) :]) if call.error is None)
            calls += [refused_in_thought(call) for call in islice(in_thought, 1)]
        return calls

    def render(self, call: ToolCall) -> None:
        """Return None, because vLLM cannot write calls."""

    def _read(self, said: str) -> list[ToolCall]:
        try:
            found = self._new_parser().extract_tool_calls(said, self._request).tool_calls
        except Exception as error:  # vLLM's parsers may raise anything for unexpected text
            logger.warning("vLLM's parser '%s' failed, got %r.", self._name, error)
            return [failed_call(said, f"the tool call cannot be read: {error}")]
        if not found:
            return self._missed(said)
        return [_as_call(call.function.name, call.function.arguments) for call in found]

    def _missed(self, said: str) -> list[ToolCall]:
        """Return an error for the first opened call, if any."""
        opened = {said.find(tag): tag for tag in self.opening_tags if tag in said}
        if not opened:
            return []
        start = min(opened)
        problem = f"the text after {opened[start]} cannot be read as a tool call. Write it as shown at the beginning"
        return [failed_call(said[start:], problem)]

    def _new_parser(self) -> ToolParser:
        """Create a parser. Parsers are stateful, so each text needs a new one."""
        return self._class(self._tokenizer, self._tools)


def opening_tags_of(parser: ToolParser) -> tuple[str, ...]:
    """Find the tags that open a call in a vLLM parser; empty if it does not expose them.

    Parsers with a grammar have them in the transitions from content to a call; most others have an attribute with one
    of a few names. Only tags in brackets count, because a bare word may occur in prose.
    """
    grammar = getattr(getattr(parser, "_parser_engine", None), "parser_engine_config", None)
    if grammar is None:
        found = [getattr(parser, name, None) for name in _TAG_ATTRIBUTES]
    else:
        openings = {
            terminal
            for (state, terminal), transition in grammar.transitions.items()
            if state is ParserState.CONTENT and transition.next_state in _IN_A_CALL
        }
        found = [grammar.terminal_literal(terminal) for terminal in openings]
    return tuple(sorted({tag for tag in found if isinstance(tag, str) and tag[:1] in _OPEN and tag[-1:] in _CLOSE}))


def adapted_names() -> list[str]:
    """Names in vLLM's registry, as for `vllm serve --tool-call-parser`."""
    return ToolParserManager.list_registered()


def load_adapted(name: str, tools: Sequence[dict[str, Any]], tokenizer: Any) -> VllmParser:
    """Create a vLLM parser for `rl.chat.parsers.load_parser`.

    Args:
        name: One of `adapted_names`.
        tools: Tool schemas in OpenAI's format.
        tokenizer: Tokenizer of the rollouts.

    Raises:
        ConfigError: The parser does not support the tokenizer or the tools.
    """
    try:
        return VllmParser(name, ToolParserManager.get_tool_parser(name), tools, get_cached_tokenizer(tokenizer))
    except Exception as error:  # parsers that look up their tags in the vocabulary may raise anything
        raise ConfigError(
            f"rl_config.tool_parser_format: vLLM's parser '{name}' does not work here, got '{error}'. Set another one."
        ) from error


def _as_call(name: str, arguments: str) -> ToolCall:
    try:
        value, _ = decode_json(arguments)
    except (ValueError, RecursionError) as error:
        return failed_call(arguments, f"the arguments of '{name}' are not valid JSON: {json_problem(error, 0)}", name)
    given = as_arguments(value)
    if given is None:
        return failed_call(arguments, f"the arguments of '{name}' are not a JSON object, got {arguments}", name)
    return ToolCall(name, given, arguments)
