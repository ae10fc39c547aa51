"""Messages to text: runs a chat template on marked messages, and tests how it ends, shows and repeats turns."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Sequence
from typing import Any

import jinja2
from transformers import PreTrainedTokenizerFast

from rl.chat.encoding import TextEncoder
from rl.chat.inline import Format, tell
from rl.chat.templates import TEMPLATES
from rl.errors import ConfigError, ModelError, unknown_name
from rl.types import Message, ToolCall

PROBE = "turnwise probe 7f3a"
PROBE_USER: Message = {"role": "user", "content": "turnwise question"}
PROBE_TURN: Message = {"role": "assistant", "content": PROBE}
SHOWN = "turnwise result"
RESULTS: list[list[str]] = [
    [SHOWN],
    [""],
    ["\n  indented\n\ttab \n\n"],
    ["déjà vu 你好 🙂 \u2028 e\u0301"],
    ['{"a": "quote \\" and \\n"}', "second", "<third>&amp;"],
]
"""Tool results that templates are tested with."""
_CALL = "\n<tool_call>\n{}\n</tool_call>"
_OPENED = "<think>"
_PLAIN = {"role", "content"}
_TEMPLATE_ERRORS = (jinja2.TemplateError, TypeError, ValueError, ArithmeticError, LookupError, AttributeError)
"""What a template may raise for messages that its author did not foresee."""


def thoughtful_turn(is_thinking: bool, header: str) -> str:
    """What a model says in a turn with or without a thought, behind a header that may have opened one."""
    is_opened = header.rstrip().endswith(_OPENED)
    thought = "turnwise thought\n</think>\n\n" if is_thinking else "\n</think>\n\n" * is_opened
    return ("" if is_opened or not is_thinking else f"{_OPENED}\n") + thought + PROBE + _CALL


class ChatTemplate:
    """One chat template with one tokenizer, the schemas of one toolbox and one format of calls.

    Attributes:
        name: Names tokenizer and template in messages.
        format: The parser if there are tools, for its `instructions` and `result_format`.
        is_inline: Results are part of the assistant's own turn.
        encoder: Encodes what this template renders.
        end_of_turn: The special token that ends an assistant's turn.
        closing: What the template writes after an assistant's text, up to that token inclusive: ` </s>`, for example.
        takes_results: It renders messages of the role `tool`.
        rewrites_history: It does not repeat the assistant's turns before tool results word for word (it drops thinking,
            for example).
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        prompt_type: str,
        tools: list[dict[str, Any]],
        tool_format: Format | None,
    ) -> None:
        """Test the template.

        Raises:
            ConfigError: `prompt_type` is unknown.
            ModelError: The template cannot be used with this tokenizer.
        """
        if prompt_type not in TEMPLATES:
            raise ConfigError(unknown_name("rl_config.prompt_type", prompt_type, TEMPLATES))
        self.name = f"{tokenizer.name_or_path} (prompt_type {prompt_type})"
        self.format = tool_format if tools else None
        self.is_inline = self.format is not None and self.format.result_format is not None
        self._tokenizer = tokenizer
        self._template = TEMPLATES[prompt_type]
        self._beginning_of_text = _beginning_of_text(tokenizer)
        if self._template.chat_template is None and not tokenizer.chat_template:
            raise ModelError(
                f"{tokenizer.name_or_path}: the tokenizer has no chat template, got prompt_type 'empty'. "
                f"Set rl_config.prompt_type to one of {', '.join(n for n in TEMPLATES if n != 'empty')}."
            )
        frame = self._run([PROBE_USER, PROBE_TURN], None, add_generation_prompt=True)
        call = self.format.render(sample_call(tools[0])) if self.format is not None else None
        added = tokenizer.get_added_vocab()
        self.encoder = TextEncoder(
            tokenizer, frame=[t for t in added if t in frame], spoken=[t for t in added if t in (call or "")]
        )
        self._tools: list[dict[str, Any]] | None = self._mark(tools, of_tool=False) or None
        self.end_of_turn, self.closing = self._find_end_of_turn(added)
        self.takes_results = self._takes_results(is_needed=bool(tools) and not self.is_inline)
        self._following: list[Message] = [{"role": "tool" if self.takes_results else "user", "content": SHOWN}]
        self._frames: dict[tuple[str, ...], list[str] | None] = {}
        self._rewrites: dict[tuple[str, ...], bool] = {}
        self.rewrites_history = self.takes_results and not self.is_inline and self.rewrites(("tool",))

    def render(self, messages: list[Message], add_generation_prompt: bool) -> str:
        """The text of a conversation, with marks.

        Args:
            messages: The conversation.
            add_generation_prompt: Put the header of the assistant's turn behind it.

        Raises:
            ModelError: The template refuses it.
        """
        tools = self._tools
        if self.format is not None and self.format.instructions is not None:
            messages, tools = tell(messages, self.format), None
        completed = [self._complete(message) for message in messages]
        if self._template.default_system and messages[0]["role"] != "system":
            completed.insert(0, {"role": "system", "content": self._template.default_system})
        return self._run(completed, tools, add_generation_prompt=add_generation_prompt)

    def continuation(self, messages: Sequence[Message]) -> str:
        """What the template writes after an assistant's text: the end of the turn, the messages, the next header.

        Args:
            messages: What follows the turn. Without any, only end and header; empty if the template has no header.
        """
        if not messages:
            return self._next_header()
        if any(message.keys() != _PLAIN or message["role"] == "assistant" for message in messages):
            return self.rendered_continuation(messages)
        roles = tuple(message["role"] for message in messages)
        if roles not in self._frames:
            self._frames[roles] = self._frame(roles)
        frame = self._frames[roles]
        return self.rendered_continuation(messages) if frame is None else self._fill(frame, messages)

    def rendered_continuation(self, messages: Sequence[Message]) -> str:
        """As `continuation`, for at least one message, by running the template."""
        return self._after_probe(self.render([PROBE_USER, PROBE_TURN, *messages], True))

    def rewrites(self, roles: Sequence[str]) -> bool:
        """Whether the template may change earlier turns (drop their thoughts, say) if messages of these roles follow.

        Also true if the template refuses such messages in the test: only the real conversation can tell.
        """
        order = tuple(role for role, _ in itertools.groupby(roles))
        if order not in self._rewrites:
            self._rewrites[order] = bool(order) and not self._repeats_history(order)
        return self._rewrites[order]

    def _next_header(self) -> str:
        header = self.render([PROBE_USER], True)[len(self.render([PROBE_USER], False)) :]
        return header and self._after_probe(self.render([PROBE_USER, PROBE_TURN], False)) + header

    def turn(self, messages: list[Message], index: int) -> tuple[str, str]:
        """What comes before an assistant's turn of a finished conversation, and what the assistant says in it.

        The turn is read from the template's rendering with a message behind it, since a template may add something to
        the last turn that nobody said, such as an empty thought. If the template drops something of earlier turns, the
        turn is read as the last one; if that drops something too, it is taken as written.

        Raises:
            ModelError: The template changes the turn, so nothing sampled could be like it.
        """
        head, turn = self.render(messages[:index], True), messages[index]
        opened = _OPENED if head.rstrip().endswith(_OPENED) else ""
        texts = {key: text for key, text in turn.items() if key != "role" and isinstance(text, str)}
        says = {key: _squeeze(self.encoder.break_up(text, of_tool=False)) for key, text in texts.items()}
        shown = [self._shown_turn(messages[: index + 1], head, following) for following in (self._following, [])]
        fitting = [text for text in shown if text is not None]
        if fitting:
            fullest = max(fitting, key=lambda text: sum(part in _squeeze(opened + text) for part in says.values()))
            if says.get("content", "") in _squeeze(opened + fullest):
                return head, fullest
        written = self._as_written(turn, opened) if fitting or opened else None
        if written is None:
            raise ModelError(
                f"{self.name}: the chat template changes the assistant's turn of a demonstration. "
                "Set rl_config.prompt_type to 'qwen', or take the thinking out of the demonstrations."
            )
        return head, written

    def _shown_turn(self, messages: list[Message], head: str, following: list[Message]) -> str | None:
        """The last of some messages as the template shows it with others behind; None if the head is not a prefix."""
        suffix = self._after_probe(self.render([PROBE_USER, PROBE_TURN, *following], bool(following)))
        try:
            whole = self.render([*messages, *following], bool(following))
        except ModelError:  # the template wants another role there
            return None
        fits = whole.startswith(head) and whole.endswith(suffix) and len(whole) >= len(head) + len(suffix)
        return whole[len(head) : -len(suffix)] if fits else None

    def _as_written(self, turn: Message, opened: str) -> str | None:
        """A turn's content after a header that may have opened its thought; None if the turn has other parts."""
        before, tag, content = (turn.get("content") or "").partition(opened or _OPENED)
        if turn.get("tool_calls") or (opened and not tag):
            return None
        return self.encoder.break_up(content.lstrip("\n") if opened else before + tag + content, of_tool=False)

    def _complete(self, message: Message) -> Message:
        if message["role"] == "user" and self._template.user_suffix:
            message = {**message, "content": message["content"] + self._template.user_suffix}
        completed: Message = self._mark(message, of_tool=message["role"] == "tool")
        return completed

    def _mark(self, value: Any, *, of_tool: bool) -> Any:
        """A copy of the value with all texts marked."""
        if isinstance(value, str):
            return self.encoder.break_up(value, of_tool=of_tool)
        if isinstance(value, dict):
            return {self._mark(k, of_tool=of_tool): self._mark(v, of_tool=of_tool) for k, v in value.items()}
        if isinstance(value, list):
            return [self._mark(item, of_tool=of_tool) for item in value]
        return value

    def _run(self, messages: list[Message], tools: list[dict[str, Any]] | None, *, add_generation_prompt: bool) -> str:
        try:
            return self._tokenizer.apply_chat_template(
                messages,
                tools=tools,
                chat_template=self._template.chat_template,
                beginning_of_text=self._beginning_of_text,
                add_generation_prompt=add_generation_prompt,
                tokenize=False,
            )
        except _TEMPLATE_ERRORS as error:
            roles = " ".join(message["role"] for message in messages)
            raise ModelError(
                f"{self.name}: the chat template refuses roles {roles} ({error}). Set another rl_config.prompt_type."
            ) from error

    def _frame(self, roles: tuple[str, ...]) -> list[str] | None:
        """The template's text around messages; None if it does not repeat them word for word.

        Running the template takes longer than everything else that is done to append a message.
        """
        rest = self.rendered_continuation(_of_roles(roles, [f"{SHOWN} {i}" for i in range(len(roles))]))
        frame = []
        for i in range(len(roles)):
            part, found, rest = rest.partition(f"{SHOWN} {i}")
            if not found:
                return None
            frame.append(part)
        frame.append(rest)
        samples = [_of_roles(roles, itertools.cycle(texts)) for texts in RESULTS]
        return frame if all(self._fill(frame, s) == self.rendered_continuation(s) for s in samples) else None

    def _fill(self, frame: list[str], messages: Sequence[Message]) -> str:
        parts = [
            part + self.encoder.break_up(message["content"], of_tool=message["role"] == "tool")
            for part, message in zip(frame, messages, strict=False)
        ]
        return "".join([*parts, frame[-1]])

    def _after_probe(self, rendered: str) -> str:
        _, found, suffix = rendered.partition(PROBE)  # the first: what follows may be data
        if not found:
            raise ModelError(f"{self.name}: the chat template does not show an assistant's text. Use another one.")
        return suffix

    def _find_end_of_turn(self, added: dict[str, int]) -> tuple[str, str]:
        suffix = self._after_probe(self.render([PROBE_USER, PROBE_TURN], False))
        text = suffix.lstrip()  # Llama 2 writes a space before </s>
        for token in sorted(added, key=len, reverse=True):
            if token and not token.isspace() and text.startswith(token):
                return token, suffix[: len(suffix) - len(text)] + token
        raise ModelError(
            f"{self.name}: the assistant's turn must end with one special token of the tokenizer, got "
            f"{suffix[:30]!r}. Use a prompt_type that fits the model, or add the token to the tokenizer."
        )

    def _takes_results(self, *, is_needed: bool) -> bool:
        try:
            self.rendered_continuation(_of_roles(("tool",), [SHOWN]))
        except ModelError:
            if is_needed:
                raise
            return False
        return True

    def _repeats_history(self, roles: tuple[str, ...]) -> bool:
        try:
            return all(self._repeats_turns(roles, thoughts) for thoughts in itertools.product((True, False), repeat=2))
        except ModelError:  # the template refuses these roles
            return False

    def _repeats_turns(self, roles: tuple[str, ...], thoughts: tuple[bool, ...]) -> bool:
        messages: list[Message] = [PROBE_USER]
        expected = self.render(messages, True)
        for is_thinking in thoughts:
            said = thoughtful_turn(is_thinking, expected)
            messages += [{"role": "assistant", "content": said}, *_of_roles(roles, itertools.repeat(SHOWN))]
            rendered = self.render(messages, True)
            if not rendered.startswith(expected + self._space_before_turn() + said + self.closing):
                return False
            expected = rendered
        return True

    def _space_before_turn(self) -> str:
        """Space that a template without headers, like Llama 2's, puts before a turn's text. The model samples it."""
        before = self.render([PROBE_USER, PROBE_TURN], False).partition(PROBE)[0]
        space = before.removeprefix(self.render([PROBE_USER], True))
        return space if space.isspace() else ""


def _beginning_of_text(tokenizer: PreTrainedTokenizerFast) -> str:
    """The token that the tokenizer puts before each text, like Llama 3's `<|begin_of_text|>`; empty without any."""
    first = tokenizer.encode("a")[0]
    return tokenizer.decode([first]) if first == tokenizer.bos_token_id else ""


def _of_roles(roles: Sequence[str], texts: Iterable[str]) -> list[Message]:
    return [{"role": role, "content": text} for role, text in zip(roles, texts, strict=False)]


def sample_call(tool: dict[str, Any]) -> ToolCall:
    """A call whose arguments have the types of the tool's schema: the required ones, or all."""
    function = tool["function"]
    schema = function.get("parameters") or {}
    properties = schema.get("properties") or {}
    names = [name for name in schema.get("required") or properties if name in properties]
    return ToolCall(
        function["name"], {name: _SAMPLES.get(str(properties[name].get("type")), _SAMPLE_TEXT) for name in names}
    )


def _squeeze(text: str) -> str:
    return re.sub(r"\s+", "", text)


_SAMPLE_TEXT = 'print("é\\n", {1: [2]})\n# end'
_SAMPLES: dict[str, Any] = {
    "integer": 3,
    "number": 0.5,
    "boolean": True,
    "array": [_SAMPLE_TEXT],
    "object": {"key": _SAMPLE_TEXT},
}
