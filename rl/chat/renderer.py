"""Messages to token ids and back: prompts, and what stands between two turns of the assistant.

Tokens the model sampled are never decoded and encoded again. What the environment adds between two generations is the
*suffix* the chat template puts there: rendered by the template itself behind a probe conversation, cut off behind the
probe's assistant text, and proven at start-up by `rl.chat.self_test` to equal the template's own full rendering.

No text of the data can forge a turn (`rl.chat.encoding`). Formats that put results into the assistant's own turn do
without the template's tool turns (`rl.chat.inline`).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerFast

from rl.chat.chat_template import ChatTemplate
from rl.chat.encoding import Marked
from rl.chat.inline import Format, in_format, join_turns
from rl.errors import ModelError
from rl.types import Message


def load_tokenizer(folder: str | Path) -> PreTrainedTokenizerFast:
    """Load a tokenizer from a local folder.

    Raises:
        ModelError: The folder is missing, holds no tokenizer, or one without a fast implementation.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ModelError(f"{folder}: no such tokenizer folder. Correct actor_config.load or tokenizer_name_or_path.")
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        # transformers raises any of these for an incomplete or corrupt folder
        raise ModelError(f"{folder}: cannot load the tokenizer ({error}). Fetch the folder again.") from error
    if not tokenizer.is_fast:
        raise ModelError(f"{folder}: needs a fast tokenizer (tokenizer.json), got {type(tokenizer).__name__}.")
    if not tokenizer.encode("a", add_special_tokens=False):  # transformers makes an empty one where the file is missing
        raise ModelError(f"{folder}: holds no tokenizer (tokenizer.json). Fetch the folder again.")
    return tokenizer


class Renderer:
    """Renders messages with one tokenizer, one template, the schemas of one toolbox and one format of calls.

    Attributes:
        tokenizer: The tokenizer.
        close_turn_ids: How the template ends an assistant turn: with a special token, in Llama 2 after a space.
        end_of_turn_ids: Tokens at which a generation ends: the template's end of turn and the tokenizer's end of
            text.
        rewrites_history: The template does not repeat an earlier assistant turn word for word before tool results (it
            drops thinking, for example). The ledger then may start a new token sequence with each tool turn.
        template: The chat template.
        encoder: Encodes what the template renders.
        tools: The schemas.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        prompt_type: str,
        tool_schemas: list[dict[str, Any]],
        tool_format: Format | None = None,
    ) -> None:
        """Derive the end of a turn from the template.

        Args:
            tokenizer: As `load_tokenizer` gives it.
            prompt_type: Name in `TEMPLATES`.
            tool_schemas: Tools in OpenAI's form, as the tool YAML has them; empty without tools.
            tool_format: The parser, for its `instructions` and `result_format`; None: it has neither.

        Raises:
            ConfigError: `prompt_type` is unknown.
            ModelError: The template cannot be used with this tokenizer.
        """
        self.tokenizer = tokenizer
        self.tools = tool_schemas
        self.template = ChatTemplate(tokenizer, prompt_type, tool_schemas, tool_format)
        self.encoder = self.template.encoder
        self.close_turn_ids: list[int] = self.encoder.encode(self.template.closing, behind=True)
        end = self.close_turn_ids[-1]
        self.end_of_turn_ids: list[int] = sorted({end, tokenizer.eos_token_id} - {None})
        self.rewrites_history: bool = self.template.rewrites_history

    def render_prompt(self, messages: list[Message]) -> list[int]:
        """Token ids of a conversation and the header of the assistant's next turn."""
        if self.template.is_inline:
            messages = join_turns(messages, self._inline_format, self.encoder)
        return self.encoder.encode(self.template.render(messages, True))

    def render_continuation(self, messages: Sequence[Message], *, closed: bool) -> list[int]:
        r"""What is between an assistant's turn and the next: its end, some messages, the next header.

        Args:
            messages: In order, any role. Without any, the end of the turn and the header of another; empty if the
                template has no header, like Llama 2's: what follows then continues the same turn.
            closed: The end-of-turn token was sampled and must not be repeated.

        Returns:
            Token ids to append with loss mask 0. For ChatML with Qwen's tool turns and two results a and b:
            `<|im_end|>\n<|im_start|>user\n<tool_response>\na\n</tool_response>\n<tool_response>\nb\n</tool_response>
            <|im_end|>\n<|im_start|>assistant\n`, without the first token where `closed`. A format that puts results
            into the assistant's turn adds only those; if the turn is closed, another one is opened first.

        Raises:
            ModelError: The template refuses messages of these roles here.
        """
        if self.template.is_inline and messages and messages[0]["role"] == "tool":
            num_results = sum(1 for _ in itertools.takewhile(lambda m: m["role"] == "tool", messages))
            results = [i for message in messages[:num_results] for i in self.encode_inline(message["content"])]
            opened = self.render_continuation([], closed=True) if closed else []
            rest = messages[num_results:]
            return opened + results + (self.render_continuation(rest, closed=False) if rest else [])
        suffix = self.template.continuation(messages)
        return self._encode_suffix(suffix, closed=closed) if suffix else []

    def rewrites(self, messages: Sequence[Message]) -> bool:
        """Whether the template may change what stands before messages behind an assistant's turn."""
        roles = [message["role"] for message in messages]
        if self.template.is_inline:
            roles = list(itertools.dropwhile(lambda role: role == "tool", roles))
        return self.template.rewrites(roles)

    def text_offsets(self, text: str) -> list[tuple[int, int]]:
        """The characters [start, end) that each token of a tool result covers, as `render_continuation` encodes it."""
        return self.encoder.offsets(text)

    def decode(self, ids: list[int]) -> str:
        """The text of token ids, special tokens included."""
        text: str = self.tokenizer.backend_tokenizer.decode(ids, skip_special_tokens=False)
        return text

    def said_text(self, ids: list[int]) -> Marked:
        """The text of a sampled turn, to be rendered again.

        Added tokens that were sampled become the same tokens again; what the model spelled with others stays text.

        Args:
            ids: As sampled, without the end of the turn.
        """
        parts: list[str] = []
        done = ""
        for position, token in enumerate(ids):
            if token in self.encoder.added_ids:
                before, after = self.decode(ids[:position]), self.decode(ids[: position + 1])
                parts += [self.encoder.break_up(before[len(done) :]), after[len(before) :]]
                done = after
        rest = self.decode(ids)[len(done) :]
        return Marked("".join([*parts, self.encoder.break_up(rest)]))

    def strip_end_of_turn(self, text: str) -> str:
        """A turn's text without the end-of-turn token it may end with."""
        return text.removesuffix(self.template.end_of_turn)

    def encode_inline(self, text: str) -> list[int]:
        """Token ids of a result in the assistant's own turn."""
        return self.encoder.encode(in_format(self._inline_format, self.encoder.break_up(text)), behind=True)

    @property
    def _inline_format(self) -> Format:
        assert self.template.is_inline and self.template.format is not None, "results stand in the turn"
        return self.template.format

    def _encode_suffix(self, text: str, *, closed: bool) -> list[int]:
        """Encode what stands behind an assistant's text, from the end of the turn on; without it where `closed`."""
        ids, num_closing = self.encoder.encode(text, behind=True), len(self.close_turn_ids)
        if ids[:num_closing] != self.close_turn_ids:
            raise ModelError(
                f"{self.template.name}: an assistant's turn must end in {self.template.closing!r} whatever follows, "
                f"got {text[:30]!r}. Set another rl_config.prompt_type."
            )
        return ids[num_closing:] if closed else ids
