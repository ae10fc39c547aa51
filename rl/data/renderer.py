"""Messages to token ids and back: prompts, the tool turns appended to them, and demonstrations.

Tokens the model sampled are never decoded and encoded again. What the environment adds between two generations is the
*suffix* the chat template puts there: rendered by the template itself behind a probe conversation, cut off behind the
probe's assistant text, and proven at start-up by `Renderer.self_test` to equal the template's own full rendering.

Text that a tool returns cannot forge a turn (`rl.data.encoding`). Formats that put results into the assistant's own
turn do without the template's tool turns (`rl.data.inline`).
"""

from __future__ import annotations

import itertools
import logging
from pathlib import Path
from typing import Any, Protocol

import jinja2
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from rl.data.encoding import TextEncoder
from rl.data.inline import Format, merge_turns, tell
from rl.data.templates import TEMPLATES
from rl.errors import ConfigError, ModelError, unknown_name
from rl.types import Message, ToolCall

logger = logging.getLogger(__name__)

_PROBE = "turnwise probe 7f3a"
_PROBE_USER: Message = {"role": "user", "content": "turnwise question"}
_HISTORY = f"<think>\nturnwise thought\n</think>\n\n{_PROBE}\n<tool_call>\n{{}}\n</tool_call>"


class Parser(Protocol):
    """What the self-test needs of a parser of `rl.tools.parsers`."""

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
        close_turn_ids: The token that ends an assistant turn, as a list.
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
        if prompt_type not in TEMPLATES:
            raise ConfigError(unknown_name("rl_config.prompt_type", prompt_type, TEMPLATES))
        self.tokenizer = tokenizer
        self._name = f"{tokenizer.name_or_path} (prompt_type {prompt_type})"
        self._template = TEMPLATES[prompt_type]
        self._tools = tool_schemas or None
        self._format = tool_format if tool_schemas else None
        if self._template.chat_template is None and not tokenizer.chat_template:
            raise ModelError(
                f"{tokenizer.name_or_path}: the tokenizer has no chat template, got prompt_type 'empty'. "
                f"Set rl_config.prompt_type to one of {', '.join(n for n in TEMPLATES if n != 'empty')}."
            )
        added = tokenizer.get_added_vocab()
        self._encoder = TextEncoder(tokenizer)
        self._frames: dict[int, list[str] | None] = {}
        self._end_of_turn = self._find_end_of_turn(added)
        self.close_turn_ids: list[int] = [added[self._end_of_turn]]
        self.end_of_turn_ids: list[int] = sorted({*self.close_turn_ids, tokenizer.eos_token_id} - {None})
        self.rewrites_history: bool = not self._is_inline and not self._repeats_history()

    def render_prompt(self, messages: list[Message]) -> list[int]:
        """Token ids of a conversation with the header of the assistant's turn behind it."""
        return self._encoder.encode(self._render(messages, True))

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
        if self._is_inline:
            header = self.render_header(closed=True) if closed else []
            return header + [i for text in texts for i in self._encode_inline(text)]
        ids = self._encoder.encode(self._tool_turn(texts))
        assert ids[:1] == self.close_turn_ids, "a suffix begins with the end of the assistant's turn"
        return ids[1:] if closed else ids

    def render_header(self, *, closed: bool) -> list[int]:
        """The suffix that starts another assistant turn right behind one: its end and the next header."""
        ids = self._encoder.encode(self._after_probe(self._render([_PROBE_USER, _probe_turn()], False)))
        header = self._encoder.encode(self._generation_header())
        return (ids[1:] if closed else ids) + header

    def render_demonstration(self, messages: list[Message]) -> list[tuple[list[int], list[int]]]:
        """Token ids of a finished conversation, cut into tokens exactly as a rollout would have put it together.

        Args:
            messages: A conversation; what follows its last assistant message is left out.

        Returns:
            Ids and a mask of the same length: 1 on each token of an assistant's text and on the end of its turn, but
            for an end that a stop string takes the place of. One sequence, or several where the chat template rewrites
            history; none without an assistant message.

        Raises:
            ModelError: The template changes the very turn that it renders last, so nothing sampled could be like it.
        """
        if self._format is not None and self._is_inline:
            messages = merge_turns(messages, self._format)
        sequences: list[tuple[list[int], list[int]]] = []
        stops = self._format.stop if self._format is not None else ()
        done = ""
        for index, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            head, turn, whole = self._finished_turn(messages, index)
            if not sequences or not head.startswith(done):
                sequences.append(([], []))
                done = ""
            _append(sequences[-1], self._encoder.encode(head[len(done) :]), is_said=False)
            pieces = message.get("pieces", [(turn, True)])
            for text, is_said in pieces:
                _append(sequences[-1], self._encoder.encode(text) if is_said else self._encode_inline(text), is_said)
            _append(sequences[-1], self.close_turn_ids, pieces[-1][1] and not turn.endswith(stops))
            done = whole
        return sequences

    def text_offsets(self, text: str) -> list[tuple[int, int]]:
        """The characters [start, end) that each token of a tool result covers, as `render_tool_results` encodes it."""
        return self._encoder.offsets(text)

    def decode(self, ids: list[int]) -> str:
        """The text of token ids, special tokens included."""
        text: str = self.tokenizer.backend_tokenizer.decode(ids, skip_special_tokens=False)
        return text

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
            if self._is_inline:
                self._check_inline(texts)
            else:
                self._check_suffix(texts)
        self._check_forgery()
        if parser is not None and self._tools:
            self._check_parser(parser, self._tools)

    def _finished_turn(self, messages: list[Message], index: int) -> tuple[str, str, str]:
        """What comes before an assistant's turn, its text, and all up to the end of turn behind it, as rendered."""
        head = self._render(messages[:index], True)
        whole = self._render(messages[: index + 1], False)
        end = whole.rfind(self._end_of_turn)
        turn = whole[len(head) : end]
        is_kept = "pieces" not in messages[index] or turn == messages[index]["content"]
        if not (whole.startswith(head) and end >= len(head) and is_kept):
            raise ModelError(
                f"{self._name}: the chat template changes the assistant's turn of a demonstration. "
                "Set rl_config.prompt_type to 'qwen', or take the thinking out of the demonstrations."
            )
        return head, turn, whole[: end + len(self._end_of_turn)]

    def _check_suffix(self, texts: list[str]) -> None:
        tool_turn = [{"role": "tool", "content": text} for text in texts]
        full = self._render([_PROBE_USER, _probe_turn(), *tool_turn], True)
        before = full[: full.index(_PROBE) + len(_PROBE)]
        expected = self._encoder.encode_whole(full)[len(self._encoder.encode_whole(before)) :]
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

    def _check_inline(self, texts: list[str]) -> None:
        if texts[0] == _SHOWN and _SHOWN not in self.decode(self.render_tool_results(texts, closed=True)):
            raise ModelError(f"{self._name}: a tool result does not survive the tokenizer. Use another one.")

    def _check_parser(self, parser: Parser, tools: list[dict[str, Any]]) -> None:
        self._check_prompt(tools)
        call = _sample_call(tools[0])
        text = parser.render(call)
        if text is not None:
            read = parser.parse(self.decode(self._encoder.encode(text)))
            if not _is_only(call, read):
                raise ModelError(f"{self._name}: the parser does not read back {text!r}, got {read}.")
        if self._is_inline:
            return  # the template has no part in calls
        function = {"name": call.name, "arguments": call.arguments}
        turn = {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": function}]}
        shown = self._render([_PROBE_USER, turn], False)
        head = self._render([_PROBE_USER], True)
        head = head if shown.startswith(head) else self._render([_PROBE_USER], False)
        shown = self.strip_end_of_turn(shown[len(head) :].rstrip())
        read = parser.parse(shown)
        if not _is_only(call, read):
            raise ModelError(
                f"{self._name}: the chat template writes a tool call as {shown!r}, which the parser reads as {read}. "
                "Set rl_config.tool_parser_format or rl_config.prompt_type so that they agree."
            )

    def _check_prompt(self, tools: list[dict[str, Any]]) -> None:
        instructions = self._format.instructions if self._format is not None else None
        prompt = self._render([_PROBE_USER], True)
        if instructions is not None and instructions.strip() not in prompt:
            raise ModelError(
                f"{self._name}: the chat template does not show {instructions!r} in the prompt, which the model needs "
                "for its calls. Set rl_config.prompt_type."
            )
        if instructions is None and tools[0]["function"]["name"] not in prompt:
            logger.warning("%s: the chat template shows no tools; set rl_config.prompt_type.", self._name)

    def _tool_turn(self, texts: list[str]) -> str:
        """What the template puts behind an assistant's turn: out of the parts around the results, where it has such."""
        if len(texts) not in self._frames:
            self._frames[len(texts)] = self._frame(len(texts))
        frame = self._frames[len(texts)]
        return self._rendered_tool_turn(texts) if frame is None else self._fill(frame, texts)

    def _frame(self, num_results: int) -> list[str] | None:
        """The template's text before, between and behind results; None where it does not repeat them word for word.

        To run the template takes longer than all else that is done to append a result.
        """
        rest = self._rendered_tool_turn([f"{_SHOWN} {i}" for i in range(num_results)])
        frame = []
        for i in range(num_results):
            part, found, rest = rest.partition(f"{_SHOWN} {i}")
            if not found:
                return None
            frame.append(part)
        frame.append(rest)
        samples = [list(itertools.islice(itertools.cycle(s), num_results)) for s in _SELF_TEST_RESULTS]
        return frame if all(self._fill(frame, s) == self._rendered_tool_turn(s) for s in samples) else None

    def _fill(self, frame: list[str], texts: list[str]) -> str:
        parts = [part + self._encoder.break_up(text) for part, text in zip(frame, texts, strict=False)]
        return "".join([*parts, frame[-1]])

    def _rendered_tool_turn(self, texts: list[str]) -> str:
        tool_turn = [{"role": "tool", "content": text} for text in texts]
        return self._after_probe(self._render([_PROBE_USER, _probe_turn(), *tool_turn], True))

    def _render(self, messages: list[Message], add_generation_prompt: bool) -> str:
        tools = self._tools
        if self._format is not None and self._format.instructions is not None:
            messages, tools = tell(messages, self._format), None
        completed = [self._complete(message) for message in messages]
        if self._template.default_system and messages[0]["role"] != "system":
            completed.insert(0, {"role": "system", "content": self._template.default_system})
        try:
            return self.tokenizer.apply_chat_template(
                completed,
                tools=tools,
                chat_template=self._template.chat_template,
                add_generation_prompt=add_generation_prompt,
                tokenize=False,
            )
        except jinja2.TemplateError as error:
            roles = " ".join(message["role"] for message in messages)
            raise ModelError(
                f"{self._name}: the chat template refuses roles {roles} ({error}). Set another rl_config.prompt_type."
            ) from error

    def _complete(self, message: Message) -> Message:
        if message["role"] == "user" and self._template.user_suffix:
            return {**message, "content": message["content"] + self._template.user_suffix}
        if message["role"] == "tool":
            return {**message, "content": self._encoder.break_up(message["content"])}
        return message

    @property
    def _is_inline(self) -> bool:
        return self._format is not None and self._format.result_format is not None

    def _encode_inline(self, text: str) -> list[int]:
        assert self._format is not None and self._format.result_format is not None, "results stand in the turn"
        return self._encoder.encode(self._format.result_format.replace("{}", self._encoder.break_up(text), 1))

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


def _append(sequence: tuple[list[int], list[int]], ids: list[int], is_said: bool) -> None:
    sequence[0].extend(ids)
    sequence[1].extend([int(is_said)] * len(ids))


def _sample_call(tool: dict[str, Any]) -> ToolCall:
    """A call whose arguments have the types of the tool's schema: the required ones, or all."""
    function = tool["function"]
    schema = function.get("parameters") or {}
    properties = schema.get("properties") or {}
    names = [name for name in schema.get("required") or properties if name in properties]
    return ToolCall(
        function["name"], {name: _SAMPLES.get(str(properties[name].get("type")), _SAMPLE_TEXT) for name in names}
    )


def _is_only(call: ToolCall, read: list[ToolCall]) -> bool:
    return [(c.name, c.arguments, c.error) for c in read] == [(call.name, call.arguments, None)]


_SAMPLE_TEXT = 'print("é\\n", {1: [2]})\n# end'
_SAMPLES: dict[str, Any] = {
    "integer": 3,
    "number": 0.5,
    "boolean": True,
    "array": [_SAMPLE_TEXT],
    "object": {"key": _SAMPLE_TEXT},
}
