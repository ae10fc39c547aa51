"""Finds stop strings in turns that several requests sampled, since the engine sees only one of them at a time."""

from __future__ import annotations

from collections.abc import Sequence


def begins_stop(text: str, stops: Sequence[str]) -> bool:
    """Whether a text ends with the beginning of a stop string.

    An engine looks for stop strings in what a request samples, not in its prompt (vLLM 0.32,
    `v1/engine/detokenizer.py`). So it misses one that a weight publish cut in two.

    Args:
        text: What was sampled so far; it may end inside a character.
        stops: Stop strings, none of them empty.
    """
    if text.endswith("\N{REPLACEMENT CHARACTER}"):
        return bool(stops)
    return any(text.endswith(stop[:length]) for stop in stops for length in range(1, len(stop)))


def completes_stop(text: str, before: str, stops: Sequence[str]) -> bool:
    """Whether a stop string ends in what was sampled last.

    Args:
        text: All that was sampled.
        before: What it was before; its last characters may have been incomplete.
        stops: Stop strings.
    """
    start = len(before.rstrip("\N{REPLACEMENT CHARACTER}"))
    return any(text.find(stop, max(start - len(stop) + 1, 0)) >= 0 for stop in stops)
