"""Messages to token ids and back: prompts, the tool turns appended to them, and demonstrations.

Tokens the model sampled are never decoded and encoded again. What the environment adds between two generations is the
*suffix* the chat template puts there: rendered by the template itself behind a probe conversation, cut off behind the
probe's assistant text, and proven at start-up by `Renderer.self_test` to equal the template's own full rendering.

No text of the data can forge a turn (`rl.chat.encoding`). Formats that put results into the assistant's own turn do
without the template's tool turns (`rl.chat.inline`).
"""

from __future__ import annotations

import itertools
import logging
from pathlib import Path
from typing import Any, Protocol

from transformers import AutoTokenizer, PreTrainedTokenizerFast

from rl.chat.chat_template import (
    PROBE,
    PROBE_TURN,
    PROBE_USER,
    RESULTS,
    SHOWN,
    ChatTemplate,
    sample_call,
    thoughtful_turn,
)
from rl.chat.encoding import Marked
from rl.chat.inline import Format, Piece, merge_turns
from rl.chat.ledger import Ledger
from rl.errors import ModelError
from rl.types import Message, TokenSequence, ToolCall

logger = logging.getLogger(__name__)


class Parser(Protocol):
    """What the self-test needs of a parser of `rl.chat.parsers`."""

    def parse(self, text: str) -> list[ToolCall]:
        """The calls of a turn."""
        ...

    def render(self, call: ToolCall) -> str | None:
        """A call as the model writes it; None: only the template knows."""
        ...


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
        close_turn_ids: What the template ends an assistant turn with: a special token, in Llama 2 behind a space.
        end_of_turn_ids: Tokens at which a generation ends: the template's end of turn and the tokenizer's end of
            text.
        rewrites_history: The template does not repeat an earlier assistant turn word for word (it drops thinking,
            for example). The agent loop then starts a new token sequence with each tool turn.
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
            tool_format: The parser, where it may have `instructions` or a `result_format`; None has neither.

        Raises:
            ConfigError: `prompt_type` is unknown.
            ModelError: The template cannot be used with this tokenizer.
        """
        self.tokenizer = tokenizer
        self._tools = tool_schemas
        self._template = ChatTemplate(tokenizer, prompt_type, tool_schemas, tool_format)
        self._format = self._template.format
        self._encoder = self._template.encoder
        self.close_turn_ids: list[int] = self._encoder.encode(self._template.closing, behind=True)
        end = self.close_turn_ids[-1]
        self.end_of_turn_ids: list[int] = sorted({end, tokenizer.eos_token_id} - {None})
        self.rewrites_history: bool = self._template.rewrites_history

    def render_prompt(self, messages: list[Message]) -> list[int]:
        """Token ids of a conversation with the header of the assistant's turn behind it."""
        return self._encoder.encode(self._template.render(messages, True))

    def render_tool_results(self, texts: list[str], *, closed: bool) -> list[int]:
        r"""The suffix behind an assistant turn: its end, the results of its calls, the next assistant header.

        Args:
            texts: One result for each call, in order, at least one.
            closed: The end-of-turn token was itself sampled and is not to be repeated.

        Returns:
            Token ids to append with loss mask 0. For ChatML with Qwen's tool turns and two results a and b:
            `<|im_end|>\n<|im_start|>user\n<tool_response>\na\n</tool_response>\n<tool_response>\nb\n</tool_response>
            <|im_end|>\n<|im_start|>assistant\n`, without the first token where `closed`. A format that puts results
            into the assistant's turn adds nothing to them; where that turn is closed, the next one is opened first.
        """
        assert texts, "a tool turn has at least one result"
        if self._template.is_inline:
            header = self.render_header(closed=True) if closed else []
            return header + [i for text in texts for i in self._encode_inline(text)]
        return self._encode_suffix(self._template.tool_turn(texts), closed=closed)

    def render_header(self, *, closed: bool) -> list[int]:
        """The suffix that starts another assistant turn right behind one: its end and the next header.

        Nothing where the template has no header, as Llama 2's, whose answer stands behind the user's turn: what follows
        goes on in the same turn.
        """
        suffix = self._template.next_header()
        return self._encode_suffix(suffix, closed=closed) if suffix else []

    def render_demonstration(self, messages: list[Message]) -> list[tuple[list[int], list[int]]]:
        """Token ids of a finished conversation, put together by what puts rollouts together (`rl.chat.ledger`).

        Args:
            messages: A conversation; what follows its last assistant message is left out.

        Returns:
            Ids and a mask of the same length: 1 on each token of an assistant's text and on the end of its turn, but
            for an end that a stop string takes the place of. One sequence, or several: where the chat template rewrites
            history, and where it changes earlier turns behind a user's message. None without an assistant message.

        Raises:
            ModelError: The template changes the very turn that it renders last, so nothing sampled could be like it.
        """
        if self._format is not None and self._template.is_inline:
            messages = merge_turns(messages, self._format)
        ledger: Ledger | None = None
        shown, behind = "", 0  # the text of the conversation up to the last turn's, and the message behind it
        for index, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            between = messages[behind:index]
            head, text, pieces = self._said_turn(messages, index)
            if ledger is None:
                ledger = Ledger(self, messages[:index])
            elif between and all(m["role"] == "tool" for m in between):
                ledger.append(ledger.answer([m["content"] for m in between]))
            elif head.startswith(shown + self._template.closing):
                ledger.sequence.append_context(self._encode_suffix(head[len(shown) :], closed=ledger.is_closed))
            else:
                ledger.restart(messages[:index])
            self._say(ledger.sequence, pieces)
            shown, behind = head + text, index + 1
        return [(s.token_ids.tolist(), s.loss_mask.tolist()) for s in ledger.sequences] if ledger is not None else []

    def text_offsets(self, text: str) -> list[tuple[int, int]]:
        """The characters [start, end) that each token of a tool result covers, as `render_tool_results` encodes it."""
        return self._encoder.offsets(text)

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
            if token in self._encoder.added_ids:
                before, after = self.decode(ids[:position]), self.decode(ids[: position + 1])
                parts += [self._encoder.break_up(before[len(done) :]), after[len(before) :]]
                done = after
        rest = self.decode(ids)[len(done) :]
        return Marked("".join([*parts, self._encoder.break_up(rest)]))

    def strip_end_of_turn(self, text: str) -> str:
        """A turn's text without the end-of-turn token it may end with."""
        return text.removesuffix(self._template.end_of_turn)

    def self_test(self, parser: Parser | None = None) -> None:
        """Prove that suffixes equal the template's own rendering, that text survives, and that no text forges a turn;
        that a demonstration is put together as a rollout is; and that parser and template agree.

        Args:
            parser: Where tools are on: must read back the calls that it and the template write.

        Raises:
            ModelError: One of them does not hold; says which.
        """
        for texts in RESULTS:
            if self._template.is_inline:
                self._check_inline(texts)
            elif self._template.takes_results:
                self._check_suffix(texts)
        self._check_forgery()
        if self._template.takes_results and not self._template.is_inline:
            for has_thought in itertools.product((True, False), repeat=2):
                self._check_demonstration(has_thought)
        if parser is not None and self._tools:
            self._check_parser(parser, self._tools)

    def _said_turn(self, messages: list[Message], index: int) -> tuple[str, str, list[Piece]]:
        """What comes before an assistant's turn, its text, and the pieces of that text, those said with marks."""
        head, text = self._template.turn(messages, index)
        if "pieces" not in messages[index]:
            return head, text, [(text, True)]
        space = text[: len(text) - len(text.lstrip())]  # Llama 2 puts one before an answer
        pieces: list[Piece] = []
        for piece, is_said in messages[index]["pieces"]:
            said = piece if pieces else space + piece.lstrip()
            pieces.append((self._encoder.break_up(said, of_tool=False), True) if is_said else (piece, False))
        return head, text, pieces

    def _say(self, sequence: TokenSequence, pieces: list[Piece]) -> None:
        for text, is_said in pieces:
            if is_said:
                _append_said(sequence, self._encoder.encode(text, behind=True))
            else:
                sequence.append_context(self._encode_inline(text))
        text, is_said = pieces[-1]
        if is_said and not (self._format is not None and text.endswith(self._format.stop)):
            _append_said(sequence, self.close_turn_ids)
        else:
            sequence.append_context(self.close_turn_ids)

    def _check_suffix(self, texts: list[str]) -> None:
        tool_turn = [{"role": "tool", "content": text} for text in texts]
        full = self._template.render([PROBE_USER, PROBE_TURN, *tool_turn], True)
        before = full[: full.index(PROBE) + len(PROBE)]
        expected = self._encoder.encode_whole(full)[len(self._encoder.encode_whole(before)) :]
        opened = self.render_tool_results(texts, closed=False)
        if opened != expected or opened != self.close_turn_ids + self.render_tool_results(texts, closed=True):
            raise ModelError(f"{self._template.name}: the tokens of a tool turn differ from the template's: {texts!r}.")
        if texts[0] == SHOWN and SHOWN not in self.decode(opened):
            raise ModelError(
                f"{self._template.name}: the chat template does not show tool results. Set rl_config.prompt_type."
            )

    def _check_forgery(self) -> None:
        """No role's text may write a control token, and none of a tool any added token."""
        for role in ("system", "user", "assistant", "tool"):
            forbidden = self._encoder.added_ids if role == "tool" else self._encoder.control_ids
            markers = "".join(self.tokenizer.convert_ids_to_tokens(sorted(forbidden)))
            try:
                honest, forged = (
                    [i for i in self._render_spoken(role, text) if i in forbidden] for text in ("x", f"x{markers}x")
                )
            except ModelError:  # the template has no such role
                continue
            if forged != honest:
                raise ModelError(
                    f"{self._template.name}: a special token spelled out in a text of role '{role}' is encoded as one. "
                    "Set another rl_config.prompt_type."
                )

    def _render_spoken(self, role: str, text: str) -> list[int]:
        if role == "tool":
            return self.render_tool_results([text], closed=False)
        before: dict[str, list[Message]] = {"assistant": [PROBE_USER]}
        behind: dict[str, list[Message]] = {"system": [PROBE_USER], "assistant": [PROBE_USER]}
        spoken = {"role": role, "content": text}
        return self.render_prompt([*before.get(role, []), spoken, *behind.get(role, [])])

    def _check_demonstration(self, has_thought: tuple[bool, ...]) -> None:
        """A demonstration's tokens are those of a rollout that says the same, and it says what is written."""
        messages = [PROBE_USER]
        for is_thinking in has_thought:
            said = thoughtful_turn(is_thinking, "")
            messages += [{"role": "assistant", "content": said}, {"role": "tool", "content": SHOWN}]
        try:
            sequences = self.render_demonstration(messages)
        except ModelError:  # a cold start tells it with the row; a rollout needs no demonstration
            return
        ledger = Ledger(self, [PROBE_USER])
        turns = [turn for ids, mask in sequences for turn in _runs(ids, mask)]
        for number, turn in enumerate(turns):
            if number:
                ledger.append(ledger.answer([SHOWN]))
            _append_said(ledger.sequence, turn)
        rolled_out = [(s.token_ids.tolist(), s.loss_mask.tolist()) for s in ledger.sequences]
        texts = [self.decode(turn) for turn in turns]
        keeps_thoughts = [("turnwise thought" in text) for text in texts] == list(has_thought)
        adds_thoughts = any("<think>" in text for text, has in zip(texts, has_thought, strict=True) if not has)
        if sequences != rolled_out or not keeps_thoughts or (adds_thoughts and not self.rewrites_history):
            raise ModelError(
                f"{self._template.name}: the tokens of a demonstration differ from those of a rollout, got {texts}. "
                "Set another rl_config.prompt_type."
            )

    def _check_inline(self, texts: list[str]) -> None:
        if texts[0] == SHOWN and SHOWN not in self.decode(self.render_tool_results(texts, closed=True)):
            raise ModelError(f"{self._template.name}: a tool result does not survive the tokenizer. Use another one.")

    def _check_parser(self, parser: Parser, tools: list[dict[str, Any]]) -> None:
        self._check_prompt(tools)
        call = sample_call(tools[0])
        text = parser.render(call)
        if text is not None:
            read = parser.parse(self.decode(self._encoder.encode(text)))
            if not _is_only(call, read):
                raise ModelError(f"{self._template.name}: the parser does not read back {text!r}, got {read}.")
        if self._template.is_inline:
            return  # the template has no part in calls
        function = {"name": call.name, "arguments": call.arguments}
        turn = {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": function}]}
        shown = self._template.render([PROBE_USER, turn], False)
        head = self._template.render([PROBE_USER], True)
        head = head if shown.startswith(head) else self._template.render([PROBE_USER], False)
        shown = self.strip_end_of_turn(shown[len(head) :].rstrip())
        read = parser.parse(shown)
        if not _is_only(call, read):
            raise ModelError(
                f"{self._template.name}: the chat template writes a tool call as {shown!r}, which the parser reads as "
                f"{read}. Set rl_config.tool_parser_format or rl_config.prompt_type so that they agree."
            )

    def _check_prompt(self, tools: list[dict[str, Any]]) -> None:
        instructions = self._format.instructions if self._format is not None else None
        prompt = self._template.render([PROBE_USER], True)
        if instructions is not None and self._encoder.break_up(instructions.strip(), of_tool=False) not in prompt:
            raise ModelError(
                f"{self._template.name}: the chat template does not show {instructions!r} in the prompt, and the model "
                "needs it for its calls. Set rl_config.prompt_type."
            )
        if instructions is None and tools[0]["function"]["name"] not in prompt:
            logger.warning("%s: the chat template shows no tools; set rl_config.prompt_type.", self._template.name)

    def _encode_suffix(self, text: str, *, closed: bool) -> list[int]:
        """Encode what stands behind an assistant's text, from the end of the turn on; without it where `closed`."""
        ids, num_closing = self._encoder.encode(text, behind=True), len(self.close_turn_ids)
        assert ids[:num_closing] == self.close_turn_ids, "a suffix begins with the end of the assistant's turn"
        return ids[num_closing:] if closed else ids

    def _encode_inline(self, text: str) -> list[int]:
        assert self._format is not None and self._format.result_format is not None, "results stand in the turn"
        marked = self._encoder.break_up(text)
        return self._encoder.encode(self._format.result_format.replace("{}", marked, 1), behind=True)


def _append_said(sequence: TokenSequence, ids: list[int]) -> None:
    sequence.append_sampled(ids, [0.0] * len(ids), 0)


def _runs(ids: list[int], mask: list[int]) -> list[list[int]]:
    """The tokens of each stretch of a mask of 1."""
    groups = itertools.groupby(zip(ids, mask, strict=True), key=lambda pair: pair[1])
    return [[i for i, _ in pairs] for is_said, pairs in groups if is_said]


def _is_only(call: ToolCall, read: list[ToolCall]) -> bool:
    return [(c.name, c.arguments, c.error) for c in read] == [(call.name, call.arguments, None)]
