"""Renderers and parsers for the tools that requests bring."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from transformers import PreTrainedTokenizerFast

from rl.chat.parsers import load_parser
from rl.chat.renderer import Renderer
from rl.chat.self_test import check_renderer
from rl.config.schema import RLConfig
from rl.errors import TurnwiseError
from rl.rollout.dialog import Dialog
from rl.serving.errors import bad_request

_MOST = 1024
"""Sets of tools that are kept; the least recently used one makes room."""


class Dialogs:
    """A dialog for each set of tools, made and tested once.

    Args:
        tokenizer: The engine's.
        rl: Names the template and the format of calls.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, rl: RLConfig) -> None:
        self._tokenizer, self._rl = tokenizer, rl
        self._known: dict[str, asyncio.Task[Dialog]] = {}

    async def of(self, tools: list[dict[str, Any]]) -> Dialog:
        """The dialog of some tools.

        Raises:
            ApiError: The chat template or the parser cannot show or call them, or a schema is malformed.
        """
        key = json.dumps(tools)
        made = self._known.pop(key, None) or asyncio.create_task(asyncio.to_thread(self._make, tools))
        self._known[key] = made  # the last in order of use
        if len(self._known) > _MOST:
            del self._known[next(iter(self._known))]
        try:
            return await asyncio.shield(made)
        except (TurnwiseError, KeyError, TypeError, AttributeError) as error:  # a tool's schema may have any shape
            self._known.pop(key, None)
            raise bad_request("tools", f"{error}") from error

    def count_tokens(self, texts: list[str]) -> int:
        """Tokens of some texts. Other threads go on meanwhile: only the call for batches lets them."""
        return sum(map(len, self._tokenizer.backend_tokenizer.encode_batch(texts, add_special_tokens=False)))

    def _make(self, tools: list[dict[str, Any]]) -> Dialog:
        parser = load_parser(self._rl.tool_parser_format, tools, self._tokenizer)
        renderer = Renderer(self._tokenizer, self._rl.prompt_type, tools, parser)
        check_renderer(renderer, parser)
        return Dialog(renderer, None, parser)
