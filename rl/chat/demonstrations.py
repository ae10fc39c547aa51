"""Renders finished conversations to token ids, with the ledger of the rollouts."""

from __future__ import annotations

from rl.chat.inline import Piece, merge_turns
from rl.chat.ledger import Ledger
from rl.chat.renderer import Renderer
from rl.types import Message, TokenSequence


def render_demonstration(renderer: Renderer, messages: list[Message]) -> list[tuple[list[int], list[int]]]:
    """Render a finished conversation as a rollout that says the same.

    Args:
        renderer: The one the rollouts use.
        messages: A conversation; what follows its last assistant message is left out.

    Returns:
        Ids and a mask of the same length: 1 on each token of an assistant's text and on the end of its turn, unless a
        stop string ended it. One sequence, or several if the chat template rewrites history; empty without an assistant
        message.

    Raises:
        ModelError: The template changes the very turn that it renders last, so nothing sampled could be like it.
    """
    if renderer.template.is_inline and renderer.template.format is not None:
        messages = merge_turns(messages, renderer.template.format)
    ledger = Ledger(renderer)
    for index, message in enumerate(messages):
        if message["role"] == "assistant":
            sequence, _ = ledger.extend(messages[:index])
            _say(renderer, sequence, _pieces_of(renderer, messages, index))
            ledger.record(sequence, message)
    return [(s.token_ids.tolist(), s.loss_mask.tolist()) for s in ledger.sequences]


def append_said(sequence: TokenSequence, ids: list[int]) -> None:
    """Append tokens as if they had been sampled."""
    sequence.append_sampled(ids, [0.0] * len(ids), 0)


def _pieces_of(renderer: Renderer, messages: list[Message], index: int) -> list[Piece]:
    """The text of an assistant's turn in pieces, those that the model says with marks."""
    _, text = renderer.template.turn(messages, index)
    if "pieces" not in messages[index]:
        return [(text, True)]
    space = text[: len(text) - len(text.lstrip())]  # Llama 2 puts one before an answer
    pieces: list[Piece] = []
    for piece, is_said in messages[index]["pieces"]:
        said = piece if pieces else space + piece.lstrip()
        pieces.append((renderer.encoder.break_up(said, of_tool=False), True) if is_said else (piece, False))
    return pieces


def _say(renderer: Renderer, sequence: TokenSequence, pieces: list[Piece]) -> None:
    for text, is_said in pieces:
        if is_said:
            append_said(sequence, renderer.encoder.encode(text, behind=True))
        else:
            sequence.append_context(renderer.encode_inline(text))
    text, is_said = pieces[-1]
    tool_format = renderer.template.format
    if is_said and not (tool_format is not None and text.endswith(tool_format.stop)):
        append_said(sequence, renderer.close_turn_ids)
    else:
        sequence.append_context(renderer.close_turn_ids)
