"""Cuts a tool result to a number of tokens, exactly and never inside a character."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence

TokenOffsets = Callable[[str], Sequence[tuple[int, int]]]
"""The characters [start, end) that each token of a text covers (`rl.chat.renderer.Renderer.text_offsets`)."""

_MARKERS = {"left": "...(truncated)", "right": "(truncated)...", "middle": "...(truncated)..."}
_WINDOW_CHARACTERS = 16
_JOINER = "\u200d"
_SKIN_TONES = "\U0001f3fb\U0001f3fc\U0001f3fd\U0001f3fe\U0001f3ff"


def truncate_tokens(text: str, offsets_of: TokenOffsets, max_tokens: int, side: str) -> tuple[str, bool]:
    """Keep at most `max_tokens` tokens of a text, with a marker where something was cut.

    The marker counts. If the cap is too small for it, there is none. A character is what a reader sees as one: accents,
    variation selectors and joined emoji are not separated.

    Args:
        text: The tool result.
        offsets_of: Encodes a text the way results are encoded.
        max_tokens: At least 0; holds for the returned text encoded by itself.
        side: Which part of an over-long text to keep: `left`, `right`, or for `middle` both ends.

    Returns:
        The text, and whether it was cut.
    """
    if 2 * len(text.encode("utf-8", "surrogatepass")) <= max_tokens:
        return text, False  # a token covers at least one byte, and a tokenizer puts at most one before each
    text = _shorten(text, offsets_of, max_tokens)
    offsets = offsets_of(text)
    if len(offsets) <= max_tokens:
        return text, False
    marker = _MARKERS[side]
    marker_length = len(offsets_of(marker))
    if marker_length >= max_tokens:
        marker, marker_length = "", 0
    budget = max_tokens - marker_length
    while budget > 0:
        cut = _cut(text, offsets, budget, side, marker)
        excess = len(offsets_of(cut)) - max_tokens
        if excess <= 0:
            return cut, True
        budget -= excess  # tokens at the seams merge differently; give up as many as are too many
    return "", True


def _shorten(text: str, offsets_of: TokenOffsets, max_tokens: int) -> str:
    """Drop the middle of a very long text, if each end alone has more tokens than can be kept."""
    window = _WINDOW_CHARACTERS * max_tokens
    if len(text) <= 4 * window:
        return text
    head, tail = text[:window], text[-window:] if window else ""
    return head + tail if min(len(offsets_of(head)), len(offsets_of(tail))) > max_tokens + 1 else text


def _cut(text: str, offsets: Sequence[tuple[int, int]], budget: int, side: str, marker: str) -> str:
    """Join the kept ends and the marker. A token that shares a character with its neighbour is cut before it."""
    num_tokens = len(offsets)
    num_head = {"left": budget, "right": 0, "middle": (budget + 1) // 2}[side]
    num_tail = budget - num_head
    head_end = 0
    if num_head:
        head_end = min(offsets[num_head - 1][1], offsets[num_head][0])
    tail_start = len(text)
    if num_tail:
        first = num_tokens - num_tail
        tail_start = max(offsets[first][0], offsets[first - 1][1])
    while head_end and _continues(text, head_end):
        head_end -= 1
    while _continues(text, tail_start):
        tail_start += 1
    return text[:head_end] + marker + text[tail_start:]


def _continues(text: str, position: int) -> bool:
    """Whether the code point at a position belongs to the character before it."""
    if not 0 < position < len(text):
        return False
    before, code_point = text[position - 1], text[position]
    is_mark = unicodedata.category(code_point) in ("Mn", "Mc", "Me") or code_point in _SKIN_TONES
    return is_mark or _JOINER in (before, code_point) or before + code_point == "\r\n"
