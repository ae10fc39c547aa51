"""Tool-call formats by name: reads calls out of a turn's text, and writes them."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

from rl.chat.parsers.base import Parser
from rl.chat.parsers.hermes import HermesParser
from rl.chat.parsers.llama3_json import Llama3JsonParser
from rl.chat.parsers.qwen3_coder import Qwen3CoderParser
from rl.chat.parsers.search_r1 import SearchR1Parser
from rl.chat.parsers.text_environment import TextEnvironmentParser
from rl.errors import ConfigError, unknown_name

__all__ = ["PARSERS", "Parser", "check_parser_name", "load_parser"]

_WHERE = "rl_config.tool_parser_format"

PARSERS: dict[str, Parser] = {
    "hermes": HermesParser(),
    "qwen3_coder": Qwen3CoderParser(),
    "llama3_json": Llama3JsonParser(),
    "search_r1": SearchR1Parser(),
    "text_environment": TextEnvironmentParser(),
}
"""Parsers by `rl_config.tool_parser_format`."""

_ADAPTERS = {"vllm": "rl.inference.vllm_parsers"}
"""Modules with parsers of other libraries, by the part of a name before the colon. Each has `adapted_names()`
and `load_adapted(name, tools, tokenizer)`, and is imported only for such a name, so that this package needs no other
library."""


def check_parser_name(name: str) -> None:
    """Check that there is a parser of this name.

    Raises:
        ConfigError: There is none; the message has the choices.
    """
    adapter, _ = _adapter_of(name)
    choices = [*PARSERS, *(f"{source}:<name>" for source in _ADAPTERS)]
    if adapter is not None:
        source = name.partition(":")[0]
        choices = [f"{source}:{known}" for known in adapter.adapted_names()]
    if name not in choices:
        raise ConfigError(unknown_name(_WHERE, name, choices))


def load_parser(name: str, tools: Sequence[dict[str, Any]], tokenizer: Any) -> Parser:
    """Find a parser by its name, for given tools.

    Args:
        name: Name in `PARSERS`, or `vllm:<name>` for one of vLLM's.
        tools: In OpenAI's form.
        tokenizer: The rollouts' tokenizer; vLLM's parsers look for their tags in its vocabulary.

    Raises:
        ConfigError: There is no such parser, it cannot call one of the tools, or it does not fit the tokenizer.
    """
    check_parser_name(name)
    adapter, adapted = _adapter_of(name)
    if adapter is None:
        return PARSERS[name].for_tools(tools)
    return adapter.load_adapted(adapted, tools, tokenizer)


def _adapter_of(name: str) -> tuple[Any, str]:
    """The module that brings a parser, None for our own, and the name it has there."""
    source, _, adapted = name.partition(":")
    if source not in _ADAPTERS or source == name:
        return None, name
    try:
        return importlib.import_module(_ADAPTERS[source]), adapted
    except ImportError as error:
        raise ConfigError(
            f"{_WHERE}: '{name}' needs {source}, got '{error}'. Install it, or set another one."
        ) from error
