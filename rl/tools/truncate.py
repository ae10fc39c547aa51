"""Cuts a tool result to a number of tokens, exactly and never inside a character."""

from __future__ import annotations

from typing import Any

_MARKERS = {"left": "...(truncated)", "right": "(truncated)...", "middle": "...(truncated)..."}
_WINDOW_CHARACTERS = 16


def truncate_tokens(text: str, tokenizer: Any, max_tokens: int, side: str) -> tuple[str, bool]:
    """Keep at most `max_tokens` tokens of a text, with a marker where something was cut.

    The marker counts. Where the cap is too small for it, the text is cut without one.

    Args:
        text: The tool result.
        tokenizer: A fast tokenizer, which knows the characters that each token covers.
        max_tokens: At least 0; holds for the returned text encoded by itself, special tokens spelled out in it as text.
        side: The part that is kept: `left`, `right`, or both ends for `middle`.

    Returns:
        The text, and whether it was cut.
    """
    if len(text.encode("utf-8", "surrogatepass")) <= max_tokens:
        return text, False  # a token covers at least one byte
    text = _shorten(text, tokenizer, max_tokens)
    offsets = _encode(text, tokenizer, return_offsets_mapping=True)["offset_mapping"]
    if len(offsets) <= max_tokens:
        return text, False
    marker = _MARKERS[side]
    if _count(tokenizer, marker) >= max_tokens:
        marker = ""
    budget = max_tokens - (_count(tokenizer, marker) if marker else 0)
    while budget > 0:
        cut = _cut(text, offsets, budget, side, marker)
        excess = _count(tokenizer, cut) - max_tokens
        if excess <= 0:
            return cut, True
        budget -= excess  # tokens at the seams merge differently; give up as many as are too many
    return "", True


def _shorten(text: str, tokenizer: Any, max_tokens: int) -> str:
    """Leave out the middle of a very long text, where either end alone has more tokens than can be kept."""
    window = _WINDOW_CHARACTERS * max_tokens
    if len(text) <= 4 * window:
        return text
    head, tail = text[:window], text[-window:]
    return head + tail if min(_count(tokenizer, head), _count(tokenizer, tail)) > max_tokens + 1 else text


def _cut(text: str, offsets: list[tuple[int, int]], budget: int, side: str, marker: str) -> str:
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
    return text[:head_end] + marker + text[tail_start:]


def _count(tokenizer: Any, text: str) -> int:
    return len(_encode(text, tokenizer)["input_ids"])


def _encode(text: str, tokenizer: Any, **options: bool) -> Any:
    """Encode as plain text; the renderer takes special tokens that a result spells out as text too."""
    return tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False, **options)
