"""Proves at start-up that renderer, ledger, chat template and parser agree."""

from __future__ import annotations

import itertools
import logging
from typing import Any, Protocol

from rl.chat.chat_template import PROBE, PROBE_TURN, PROBE_USER, RESULTS, SHOWN, sample_call, thoughtful_turn
from rl.chat.demonstrations import append_said, render_demonstration
from rl.chat.ledger import Ledger
from rl.chat.renderer import Renderer
from rl.errors import ModelError
from rl.types import Message, ToolCall

logger = logging.getLogger(__name__)

_ORDERS = [
    *[("user",), ("system",), ("user", "user"), ("system", "user"), ("user", "system")],
    *[("user", "assistant", "user"), ("assistant", "user"), ("tool", "user"), ("tool", "system"), ("tool", "tool")],
]
"""Roles of what may follow an assistant's turn, beside one tool result; a template need not allow them."""


class Parser(Protocol):
    """What the self-test needs of a parser of `rl.chat.parsers`."""

    def parse(self, text: str) -> list[ToolCall]:
        """The calls of a turn."""
        ...

    def render(self, call: ToolCall) -> str | None:
        """A call as the model writes it; None: only the template knows."""
        ...


def check_renderer(renderer: Renderer, parser: Parser | None = None) -> None:
    """Prove that what continues a conversation equals the template's own rendering, whatever roles it allows there,
    that text survives, and that no text forges a turn; that a demonstration is put together as a rollout is; and that
    parser and template agree.

    Args:
        renderer: As the run uses it.
        parser: Where tools are on: must read back the calls that it and the template write.

    Raises:
        ModelError: One of them does not hold; says which.
    """
    template = renderer.template
    for texts in RESULTS:
        if template.is_inline:
            _check_inline(renderer, texts)
        elif template.takes_results:
            _check_results(renderer, texts)
    for roles, text in itertools.product(_ORDERS, (SHOWN, "\n  indented\n\ttab \n\n")):
        _check_order(renderer, [{"role": role, "content": text} for role in roles])
    _check_forgery(renderer)
    if template.takes_results and not template.is_inline:
        for has_thought in itertools.product((True, False), repeat=2):
            _check_demonstration(renderer, has_thought)
    if parser is not None and renderer.tools:
        _check_parser(renderer, parser, renderer.tools)


def _check_results(renderer: Renderer, texts: list[str]) -> None:
    tool_turn = [{"role": "tool", "content": text} for text in texts]
    opened = _check_suffix(renderer, tool_turn)
    if texts[0] == SHOWN and SHOWN not in renderer.decode(opened):
        raise ModelError(
            f"{renderer.template.name}: the chat template does not show tool results. Set rl_config.prompt_type."
        )


def _check_suffix(renderer: Renderer, messages: list[Message]) -> list[int]:
    """The tokens of a continuation, equal to those that the template's own rendering has there."""
    expected = _behind_probe(renderer, messages)
    opened = renderer.render_continuation(messages, closed=False)
    if opened != expected or opened != renderer.close_turn_ids + renderer.render_continuation(messages, closed=True):
        raise ModelError(
            f"{renderer.template.name}: the tokens of messages behind a turn differ from the template's: {messages!r}."
        )
    return opened


def _behind_probe(renderer: Renderer, messages: list[Message]) -> list[int]:
    """The tokens behind the probe's text in the template's own rendering."""
    full = renderer.template.render([PROBE_USER, PROBE_TURN, *messages], True)
    before = full[: full.index(PROBE) + len(PROBE)]
    encode = renderer.encoder.encode_whole
    return encode(full)[len(encode(before)) :]


def _check_order(renderer: Renderer, messages: list[Message]) -> None:
    """A conversation that goes on with some messages is as the template has it, history kept or rewritten."""
    template = renderer.template
    if template.is_inline and any(message["role"] == "tool" for message in messages):
        return  # results stand in the turn, where the template has no part in them
    conversation = [PROBE_USER, PROBE_TURN, *messages]
    try:
        expected = _behind_probe(renderer, messages)
    except ModelError:  # the template does not allow these roles
        return
    said = renderer.encoder.encode(template.turn(conversation[:2], 1)[1], behind=True)
    for closing in ([], renderer.close_turn_ids):
        ledger = Ledger(renderer)
        sequence, _ = ledger.extend(conversation[:1])
        append_said(sequence, said + closing)
        ledger.record(sequence, PROBE_TURN)
        extended, added = ledger.extend(conversation)
        is_right = added == expected[len(closing) :] if extended is sequence else added[-len(expected) :] == expected
        if not is_right:
            roles = " ".join(message["role"] for message in messages)
            raise ModelError(
                f"{template.name}: the tokens of a conversation that goes on with roles {roles} differ from the "
                "template's. Set another rl_config.prompt_type."
            )


def _check_forgery(renderer: Renderer) -> None:
    """No role's text may write a control token, and none of a tool any added token."""
    encoder = renderer.encoder
    for role in ("system", "user", "assistant", "tool"):
        forbidden = encoder.added_ids if role == "tool" else encoder.control_ids
        markers = "".join(renderer.tokenizer.convert_ids_to_tokens(sorted(forbidden)))
        try:
            honest, forged = (
                [i for i in _render_spoken(renderer, role, text) if i in forbidden] for text in ("x", f"x{markers}x")
            )
        except ModelError:  # the template has no such role
            continue
        if forged != honest:
            raise ModelError(
                f"{renderer.template.name}: a special token spelled out in a text of role '{role}' is encoded as one. "
                "Set another rl_config.prompt_type."
            )


def _render_spoken(renderer: Renderer, role: str, text: str) -> list[int]:
    spoken = {"role": role, "content": text}
    if role == "tool":
        return renderer.render_continuation([spoken], closed=False)
    before: dict[str, list[Message]] = {"assistant": [PROBE_USER]}
    behind: dict[str, list[Message]] = {"system": [PROBE_USER], "assistant": [PROBE_USER]}
    return renderer.render_prompt([*before.get(role, []), spoken, *behind.get(role, [])])


def _check_demonstration(renderer: Renderer, has_thought: tuple[bool, ...]) -> None:
    """A demonstration's tokens are those of a rollout that says the same, and it says what is written."""
    messages = [PROBE_USER]
    for is_thinking in has_thought:
        said = thoughtful_turn(is_thinking, "")
        messages += [{"role": "assistant", "content": said}, {"role": "tool", "content": SHOWN}]
    try:
        sequences = render_demonstration(renderer, messages)
    except ModelError:  # a cold start tells it with the row; a rollout needs no demonstration
        return
    ledger, told = Ledger(renderer), [PROBE_USER]
    turns = [turn for ids, mask in sequences for turn in _runs(ids, mask)]
    for turn in turns:
        sequence, _ = ledger.extend(told)
        append_said(sequence, turn)
        reply = {"role": "assistant", "content": renderer.strip_end_of_turn(renderer.decode(turn))}
        ledger.record(sequence, reply)
        told += [reply, {"role": "tool", "content": SHOWN}]
    rolled_out = [(s.token_ids.tolist(), s.loss_mask.tolist()) for s in ledger.sequences]
    texts = [renderer.decode(turn) for turn in turns]
    keeps_thoughts = [("turnwise thought" in text) for text in texts] == list(has_thought)
    adds_thoughts = any("<think>" in text for text, has in zip(texts, has_thought, strict=True) if not has)
    if sequences != rolled_out or not keeps_thoughts or (adds_thoughts and not renderer.rewrites_history):
        raise ModelError(
            f"{renderer.template.name}: the tokens of a demonstration differ from those of a rollout, got {texts}. "
            "Set another rl_config.prompt_type."
        )


def _check_inline(renderer: Renderer, texts: list[str]) -> None:
    results = [{"role": "tool", "content": text} for text in texts]
    if texts[0] == SHOWN and SHOWN not in renderer.decode(renderer.render_continuation(results, closed=True)):
        raise ModelError(f"{renderer.template.name}: a tool result does not survive the tokenizer. Use another one.")


def _check_parser(renderer: Renderer, parser: Parser, tools: list[dict[str, Any]]) -> None:
    template = renderer.template
    _check_prompt(renderer, tools)
    call = sample_call(tools[0])
    text = parser.render(call)
    if text is not None:
        read = parser.parse(renderer.decode(renderer.encoder.encode(text)))
        if not _is_only(call, read):
            raise ModelError(f"{template.name}: the parser does not read back {text!r}, got {read}.")
    if template.is_inline:
        return  # the template has no part in calls
    function = {"name": call.name, "arguments": call.arguments}
    turn = {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": function}]}
    shown = template.render([PROBE_USER, turn], False)
    head = template.render([PROBE_USER], True)
    head = head if shown.startswith(head) else template.render([PROBE_USER], False)
    shown = renderer.strip_end_of_turn(shown[len(head) :].rstrip())
    read = parser.parse(shown)
    if not _is_only(call, read):
        raise ModelError(
            f"{template.name}: the chat template writes a tool call as {shown!r}, which the parser reads as {read}. "
            "Set rl_config.tool_parser_format or rl_config.prompt_type so that they agree."
        )


def _check_prompt(renderer: Renderer, tools: list[dict[str, Any]]) -> None:
    template = renderer.template
    instructions = template.format.instructions if template.format is not None else None
    prompt = template.render([PROBE_USER], True)
    if instructions is not None and renderer.encoder.break_up(instructions.strip(), of_tool=False) not in prompt:
        raise ModelError(
            f"{template.name}: the chat template does not show {instructions!r} in the prompt, and the model needs it "
            "for its calls. Set rl_config.prompt_type."
        )
    if instructions is None and tools[0]["function"]["name"] not in prompt:
        logger.warning("%s: the chat template shows no tools; set rl_config.prompt_type.", template.name)


def _runs(ids: list[int], mask: list[int]) -> list[list[int]]:
    """The tokens of each stretch of a mask of 1."""
    groups = itertools.groupby(zip(ids, mask, strict=True), key=lambda pair: pair[1])
    return [[i for i, _ in pairs] for is_said, pairs in groups if is_said]


def _is_only(call: ToolCall, read: list[ToolCall]) -> bool:
    return [(c.name, c.arguments, c.error) for c in read] == [(call.name, call.arguments, None)]
