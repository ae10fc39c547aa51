"""Messages to token ids and back: prompts, the tool turns appended to them, and demonstrations.

Tokens the model sampled are never decoded and encoded again. What the environment adds between two generations is the
*suffix* the chat template puts there: rendered by the template itself behind a probe conversation, cut off behind the
probe's assistant text, and proven at start-up by `Renderer.self_test` to equal the template's own full rendering.

Text that a tool returns cannot forge a turn: every added token spelled out in it (`<|im_end|>` printed by the code)
is broken up and encoded as the plain text it is.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any, Protocol

import jinja2
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from rl.data.templates import TEMPLATES
from rl.errors import ConfigError, ModelError, unknown_name
from rl.types import Message, ToolCall

logger = logging.getLogger(__name__)

_BREAK = "\ufdd0"  # a Unicode noncharacter: no text means it, so it can mark where a tool's text is cut
_PROBE = "turnwise probe 7f3a"
_PROBE_USER: Message = {"role": "user", "content": "turnwise question"}
_HISTORY = f"<think>\nturnwise thought\n</think>\n\n{_PROBE}\n<tool_call>\n{{}}\n</tool_call>"


class Parser(Protocol):
    """What the self-test needs of a parser of `rl.tools.parsers`."""

    def parse(self, text: str) -> list[ToolCall]:
        """The calls of a turn."""
        ...

    def render(self, call: ToolCall) -> str:
        """A call as the model writes it."""
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
    """Renders messages with one tokenizer, one template and the schemas of one toolbox.

    Attributes:
        tokenizer: The tokenizer.
        close_turn_ids: The token that ends an assistant turn, as a list.
        end_of_turn_ids: Tokens at which a generation ends: the template's end of turn and the tokenizer's end of
            text.
        rewrites_history: The template does not repeat an earlier assistant turn word for word (it drops thinking,
            for example). The agent loop then starts a new token sequence with each tool turn.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, prompt_type: str, tool_schemas: list[dict[str, Any]]):
        """Derive the end of a turn from the template.

        Args:
            tokenizer: As `load_tokenizer` gives it.
            prompt_type: Name in `TEMPLATES`.
            tool_schemas: Tools in OpenAI's form, as the tool YAML has them; empty without tools.

        Raises:
            ConfigError: `prompt_type` is unknown.
            ModelError: The template cannot be used with this tokenizer.
        """
        if prompt_type not in TEMPLATES:
            raise ConfigError(unknown_name("rl_config.prompt_type", prompt_type, TEMPLATES))
        self.tokenizer = tokenizer
        self._name = f"{tokenizer.name_or_path} (prompt_type {prompt_type})"
        self._template = TEMPLATES[prompt_type]
        self._tools = tool_schemas or None
        if self._template.chat_template is None and not tokenizer.chat_template:
            raise ModelError(
                f"{tokenizer.name_or_path}: the tokenizer has no chat template, got prompt_type 'empty'. "
                f"Set rl_config.prompt_type to one of {', '.join(n for n in TEMPLATES if n != 'empty')}."
            )
        added = tokenizer.get_added_vocab()
        literals = sorted((t for t in added if len(t) > 1 and not t.isspace()), key=len, reverse=True)
        alternatives = "|".join(map(re.escape, literals)) or r"(?!)"
        self._added_start = re.compile(f"(?=(?:{alternatives}))")
        self._end_of_turn = self._find_end_of_turn(added)
        self.close_turn_ids: list[int] = [added[self._end_of_turn]]
        self.end_of_turn_ids: list[int] = sorted({*self.close_turn_ids, tokenizer.eos_token_id} - {None})
        self.rewrites_history: bool = not self._repeats_history()

    def render_prompt(self, messages: list[Message]) -> list[int]:
        """Token ids of a conversation with the header of the assistant's turn behind it."""
        return self._encode(self._render(messages, True))

    def render_tool_results(self, texts: list[str], *, closed: bool) -> list[int]:
        r"""The suffix behind an assistant turn: its end, the results of its calls, the next assistant header.

        Args:
            texts: One result for each call, in order, at least one.
            closed: The end-of-turn token was itself sampled and is not to be repeated.

        Returns:
            Token ids to append with loss mask 0. For ChatML with Qwen's tool turns and two results a and b:
            `<|im_end|>\n<|im_start|>user\n<tool_response>\na\n</tool_response>\n<tool_response>\nb\n</tool_response>
            <|im_end|>\n<|im_start|>assistant\n`, without the first token where `closed`.
        """
        assert texts, "a tool turn has at least one result"
        conversation = [_PROBE_USER, _probe_turn(), *({"role": "tool", "content": text} for text in texts)]
        return self._suffix(conversation, closed)

    def render_header(self, *, closed: bool) -> list[int]:
        """The suffix that starts another assistant turn right behind one: its end and the next header."""
        ids = self._encode(self._after_probe(self._render([_PROBE_USER, _probe_turn()], False)))
        header = self._encode(self._generation_header())
        return (ids[1:] if closed else ids) + header

    def render_demonstration(self, messages: list[Message]) -> tuple[list[int], list[int]]:
        """Token ids of a finished conversation, cut into tokens exactly as a rollout would have put it together.

        Args:
            messages: A conversation with at least one assistant message.

        Returns:
            The ids and a mask of the same length: 1 on each token of an assistant's text and on its end of turn.

        Raises:
            ModelError: The template does not keep earlier assistant turns as they are.
        """
        ids: list[int] = []
        mask: list[int] = []
        done = ""
        for index, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            head = self._render(messages[:index], True)
            whole = self._render(messages[: index + 1], False)
            end = whole.rfind(self._end_of_turn)
            if not (head.startswith(done) and whole.startswith(head) and end >= len(head)):
                raise ModelError(
                    f"{self._name}: the chat template rewrites earlier turns of a demonstration. "
                    "Set rl_config.prompt_type to 'qwen', or take the thinking out of the demonstrations."
                )
            context = self._encode(head[len(done) :])
            sampled = self._encode(whole[len(head) : end]) + self.close_turn_ids
            ids += context + sampled
            mask += [0] * len(context) + [1] * len(sampled)
            done = whole[: end + len(self._end_of_turn)]
        return ids, mask

    def decode(self, ids: list[int]) -> str:
        """The text of token ids, special tokens included."""
        return self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)

    def strip_end_of_turn(self, text: str) -> str:
        """A turn's text without the end-of-turn token it may end with."""
        return text.removesuffix(self._end_of_turn)

    def self_test(self, parser: Parser | None = None) -> None:
        """Prove that suffixes equal the template's own rendering, that text survives, and that no result forges a turn.

        Args:
            parser: Where tools are on: must read back the calls that it and the template write.

        Raises:
            ModelError: One of them does not hold; says which.
        """
        for texts in _SELF_TEST_RESULTS:
            self._check_suffix(texts)
        self._check_forgery()
        if parser is not None and self._tools:
            self._check_parser(parser, self._tools)

    def _check_suffix(self, texts: list[str]) -> None:
        tool_turn = [{"role": "tool", "content": text} for text in texts]
        full = self._render([_PROBE_USER, _probe_turn(), *tool_turn], True)
        before = full[: full.index(_PROBE) + len(_PROBE)]
        expected = self._plain_encode(full)[len(self._plain_encode(before)) :]
        opened = self.render_tool_results(texts, closed=False)
        if opened != expected or opened != self.close_turn_ids + self.render_tool_results(texts, closed=True):
            raise ModelError(f"{self._name}: the tokens of a tool turn differ from the template's, for {texts!r}.")
        if texts[0] == _SHOWN and _SHOWN not in self.decode(opened):
            raise ModelError(f"{self._name}: the chat template does not show tool results. Set rl_config.prompt_type.")

    def _check_forgery(self) -> None:
        added = self.tokenizer.get_added_vocab()
        markers = "".join(token for token in added if len(token) > 1 and not token.isspace())
        honest, forged = (
            [i for i in self.render_tool_results([text], closed=False) if i in added.values()]
            for text in ("x", f"x{markers}x")
        )
        if forged != honest:
            raise ModelError(f"{self._name}: a special token spelled out in a tool result is encoded as one.")

    def _check_parser(self, parser: Parser, tools: list[dict[str, Any]]) -> None:
        name = tools[0]["function"]["name"]
        if name not in self._render([_PROBE_USER], True):
            logger.warning("%s: the chat template shows no tools; set rl_config.prompt_type.", self._name)
        call = ToolCall(name, {"code": 'print("é\\n", {1: [2]})'})
        text = parser.render(call)
        read = parser.parse(self.decode([*self._plain_encode(text), *self.close_turn_ids]))
        if [(c.name, c.arguments, c.error) for c in read] != [(call.name, call.arguments, None)]:
            raise ModelError(f"{self._name}: the parser does not read back {text!r}, got {read}.")
        function = {"name": name, "arguments": call.arguments}
        turn = {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": function}]}
        shown = self._render([_PROBE_USER, turn], False)[len(self._render([_PROBE_USER], False)) :]
        read = parser.parse(shown)
        if [(c.name, c.arguments, c.error) for c in read] != [(call.name, call.arguments, None)]:
            raise ModelError(
                f"{self._name}: the chat template writes a tool call as {shown!r}, which the parser reads as {read}. "
                "Set rl_config.tool_parser_format or rl_config.prompt_type so that they agree."
            )

    def _suffix(self, conversation: list[Message], closed: bool) -> list[int]:
        ids = self._encode(self._after_probe(self._render(conversation, True)))
        assert ids[:1] == self.close_turn_ids, "a suffix begins with the end of the assistant's turn"
        return ids[1:] if closed else ids

    def _render(self, messages: list[Message], add_generation_prompt: bool) -> str:
        completed = [self._complete(message) for message in messages]
        if self._template.default_system and messages[0]["role"] != "system":
            completed.insert(0, {"role": "system", "content": self._template.default_system})
        try:
            return self.tokenizer.apply_chat_template(
                completed,
                tools=self._tools,
                chat_template=self._template.chat_template,
                add_generation_prompt=add_generation_prompt,
                tokenize=False,
            )
        except jinja2.TemplateError as error:
            roles = " ".join(message["role"] for message in messages)
            raise ModelError(f"{self._name}: the chat template refuses roles {roles} ({error}).") from error

    def _complete(self, message: Message) -> Message:
        if message["role"] == "user" and self._template.user_suffix:
            return {**message, "content": message["content"] + self._template.user_suffix}
        if message["role"] == "tool":
            return {**message, "content": self._break_up(message["content"])}
        return message

    def _break_up(self, text: str) -> str:
        text = text.replace(_BREAK, "\ufffd")
        starts = [match.start() + 1 for match in self._added_start.finditer(text)]
        pieces = [text[a:b] for a, b in zip([0, *starts], [*starts, len(text)], strict=True)]
        return _BREAK.join(pieces)

    def _encode(self, text: str) -> list[int]:
        return [i for piece in text.split(_BREAK) for i in self._plain_encode(piece)]

    def _plain_encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False, verbose=False) if text else []

    def _after_probe(self, rendered: str) -> str:
        _, found, suffix = rendered.rpartition(_PROBE)
        if not found:
            raise ModelError(f"{self._name}: the chat template does not show an assistant's text. Use another one.")
        return suffix

    def _find_end_of_turn(self, added: dict[str, int]) -> str:
        suffix = self._after_probe(self._render([_PROBE_USER, _probe_turn()], False))
        for token in sorted(added, key=len, reverse=True):
            if token and suffix.startswith(token):
                return token
        raise ModelError(
            f"{self._name}: the assistant's turn must end with one special token of the tokenizer, got "
            f"{suffix[:30]!r}. Use a prompt_type that fits the model, or add the token to the tokenizer."
        )

    def _generation_header(self) -> str:
        without = self._render([_PROBE_USER], False)
        return self._render([_PROBE_USER], True)[len(without) :]

    def _repeats_history(self) -> bool:
        messages: list[Message] = [_PROBE_USER]
        expected = self._render(messages, True)
        for result in ("first", "second"):
            messages += [{"role": "assistant", "content": _HISTORY}, {"role": "tool", "content": result}]
            rendered = self._render(messages, True)
            if not rendered.startswith(expected + _HISTORY + self._end_of_turn):
                return False
            expected = rendered
        return True


_SHOWN = "turnwise result"
_SELF_TEST_RESULTS: list[list[str]] = [
    [_SHOWN],
    [""],
    ["\n  indented\n\ttab \n\n"],
    ["déjà vu 你好 🙂 \u2028 e\u0301"],
    ['{"a": "quote \\" and \\n"}', "second", "<third>&amp;"],
]


def _probe_turn() -> Message:
    return {"role": "assistant", "content": _PROBE}
