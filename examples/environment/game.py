"""A game of several turns: find a number with few guesses, hearing after each whether it is higher or lower."""

from __future__ import annotations

import re
from typing import Any


class GuessTheNumber:
    """Rows have the columns `low`, `high` and `number`."""

    def __init__(self, *, max_guesses: int = 4) -> None:
        self.guesses_left = max_guesses

    def reset(self, low: int, high: int, number: int, **row: Any) -> str:
        """Begin with a row; the text is added to its messages."""
        self.number = number
        return f"My number is from {low} to {high}."

    def step(self, action: str) -> tuple[str, float, bool]:
        """Answer a turn: observation, reward, and whether the game is over."""
        self.guesses_left -= 1
        guess = int(action) if re.fullmatch(r"\d{1,9}", action) else None
        if guess == self.number:
            return "Right.", 1.0, True
        hint = "Say a number." if guess is None else "Higher." if guess < self.number else "Lower."
        return hint, 0.0, self.guesses_left == 0
