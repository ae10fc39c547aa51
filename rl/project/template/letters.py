"""The tool: an ordinary function. Its types and its docstring are what the model reads."""

from __future__ import annotations


def count_letter(word: str, letter: str) -> int:
    """Count how often a letter occurs in a word.

    Args:
        word: The word.
        letter: One letter.
    """
    if len(letter) != 1:
        raise ValueError(f"letter: must be one letter, got '{letter}'")  # the model reads this, and can try again
    return word.lower().count(letter.lower())
