"""vLLM's tool-call parsers as parsers of turns, for `rl_config.tool_parser_format: vllm:<name>`."""

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
# They log a traceback for every call of the model that they cannot read; here it becomes the call's error.
logging.getLogger("vllm.tool_parsers").setLevel(logging.CRITICAL)

_TAG_ATTRIBUTES = (
    *("tool_calls_start_token", "tool_call_start_token", "tool_start_token", "bot_token", "bot_string"),
    *("tc_start", "tools_open", "_TOOL_CALLS_START"),
)
"""Where parsers without a grammar keep the tag that opens their calls."""
_IN_A_CALL = (ParserState.TOOL_PREAMBLE, ParserState.TOOL_NAME, ParserState.TOOL_ARGS)
_OPEN, _CLOSE = ("<", "["), (">", "]")


class VllmParser:
    """A parser of vLLM, made total.

    What vLLM cannot read it takes for prose. A turn that holds a tag which opens a call and yields none is an error
    here, for the parsers whose tags are known (`opening_tags_of`); beside a call that was read a malformed one goes
    unnoticed. Thoughts are cut out before it reads, closed or not, and so is what stands before a `</think>` that the
    prompt opened.

    Args:
        name: In vLLM's registry.
        parser_class: From there.
        tools: In OpenAI's form.
        tokenizer: One whose vocabulary is looked up in no time.
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
        """What a call begins with; empty where the parser does not tell."""

    def for_tools(self, tools: Sequence[dict[str, Any]]) -> VllmParser:
        """The same parser for other tools."""
        return VllmParser(self._name, self._class, tools, self._tokenizer)

    def parse(self, text: str) -> list[ToolCall]:
        """The calls that vLLM finds; one that carries an `error` where its parser failed or missed a call."""
        calls = self._read(without_thoughts(text).strip())
        if is_thinking(text):
            start, _ = thought_spans(text)[-1]
            in_thought = (call for call in self._read(text[start + len(OPEN) :]) if call.error is None)
            calls += [refused_in_thought(call) for call in islice(in_thought, 1)]
        return calls

    def render(self, call: ToolCall) -> None:
        """None: vLLM has no writers."""

    def _read(self, said: str) -> list[ToolCall]:
        try:
            found = self._new_parser().extract_tool_calls(said, self._request).tool_calls
        except Exception as error:  # any of vLLM's parsers may raise anything for a text that it did not expect
            logger.warning("vLLM's parser '%s' failed, got %r.", self._name, error)
            return [failed_call(said, f"the tool call cannot be read: {error}")]
        if not found:
            return self._missed(said)
        return [_as_call(call.function.name, call.function.arguments) for call in found]

    def _missed(self, said: str) -> list[ToolCall]:
        """An error for the first call that was begun."""
        begun = {said.find(tag): tag for tag in self.opening_tags if tag in said}
        if not begun:
            return []
        start = min(begun)
        problem = f"the text after {begun[start]} cannot be read as a tool call. Write it as shown at the beginning"
        return [failed_call(said[start:], problem)]

    def _new_parser(self) -> ToolParser:
        """A parser keeps what it has read, so every text gets a new one."""
        return self._class(self._tokenizer, self._tools)


def opening_tags_of(parser: ToolParser) -> tuple[str, ...]:
    """The tags that open a call, as far as a parser of vLLM tells them.

    A parser made from a grammar has them in its transitions from content into a call; of the others most keep them in
    an attribute, under one of a few names. Only tags in brackets count: a bare word may stand in prose.
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
    """Names in vLLM's registry, those of `vllm serve --tool-call-parser`."""
    return ToolParserManager.list_registered()


def load_adapted(name: str, tools: Sequence[dict[str, Any]], tokenizer: Any) -> VllmParser:
    """Make a parser of vLLM, as `rl.chat.parsers.load_parser` asks for it.

    Args:
        name: One of `adapted_names`.
        tools: In OpenAI's form.
        tokenizer: Of the rollouts.

    Raises:
        ConfigError: The parser does not fit the tokenizer or the tools.
    """
    try:
        return VllmParser(name, ToolParserManager.get_tool_parser(name), tools, get_cached_tokenizer(tokenizer))
    except Exception as error:  # some look for their tags in the vocabulary, and raise what they like
        raise ConfigError(
            f"rl_config.tool_parser_format: vLLM's parser '{name}' cannot be used here, got '{error}'. Set another one."
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
