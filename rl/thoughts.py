"""Separates what a model thought from what it said: the only reader of `<think>` and `</think>`.

Parsers, rewards and the viewer agree on what is a thought:

* from `<think>` to the next `</think>`, or to the end if it is not closed;
* from the beginning to the first `</think>`, if the header of the chat template opened the thought, or if nothing
  opened it.
"""

from __future__ import annotations

import re

from rl.types import Turn

OPEN, CLOSE = "<think>", "</think>"
_TAG = re.compile(f"{OPEN}|{CLOSE}")


def thought_spans(text: str, *, is_open: bool = False) -> list[tuple[int, int]]:
    """Positions of the thoughts in a text, tags included.

    Args:
        text: A turn.
        is_open: The text begins inside a thought.

    Returns:
        Start and end of each thought, in order, without overlaps.
    """
    spans: list[tuple[int, int]] = []
    start = 0 if is_open else None
    for tag in _TAG.finditer(text):
        if tag.group() == OPEN:
            start = tag.start() if start is None else start
            continue
        if start is None:
            spans.clear()
        spans.append((start or 0, tag.end()))
        start = None
    if start is not None:
        spans.append((start, len(text)))
    return spans


def is_thinking(text: str, *, is_open: bool = False) -> bool:
    """Whether a text ends inside a thought.

    Args:
        text: A turn.
        is_open: The text begins inside a thought.
    """
    opened, closed = text.rfind(OPEN), text.rfind(CLOSE)
    return opened > closed or (is_open and closed < 0)


def without_thoughts(text: str, *, is_open: bool = False) -> str:
    """The text outside the thoughts; a line break stands where a thought was.

    Args:
        text: A turn.
        is_open: The text begins inside a thought.
    """
    return _outside(text, thought_spans(text, is_open=is_open))


def turn_thoughts(turn: Turn) -> list[tuple[int, int]]:
    """Positions of the thoughts in a turn. A tag inside a call that was read is part of that call.

    Returns:
        As `thought_spans`.
    """
    text, position = turn.text, 0
    for call in turn.calls:
        if call.error is None and call.raw and (found := text.find(call.raw, position)) >= 0:
            position = found + len(call.raw)
            text = text[:found] + " " * len(call.raw) + text[position:]
    return thought_spans(text, is_open=turn.begins_in_thought)


def said(turn: Turn) -> str:
    """What a turn says: its text without its thoughts."""
    return _outside(turn.text, turn_thoughts(turn))


def _outside(text: str, spans: list[tuple[int, int]]) -> str:
    starts = [0, *(end for _, end in spans)]
    ends = [*(start for start, _ in spans), len(text)]
    return "\n".join(text[start:end] for start, end in zip(starts, ends, strict=True))
