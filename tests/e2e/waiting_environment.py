"""An environment whose answers take their time, so that some trajectories are always under way."""

from __future__ import annotations

import asyncio
import random
from typing import Any


class WaitingEnvironment:
    """Answers up to three turns, each after a wait drawn from the row.

    Args:
        longest_s: Longest wait for an answer.
    """

    def __init__(self, longest_s: float) -> None:
        self.longest_s = longest_s

    async def reset(self, *, messages: list[dict[str, Any]], **row: Any) -> str:
        """Begin with the question."""
        question = str(messages[-1]["content"])
        self.rng, self.num_left = random.Random(f"{question}{random.random()}"), random.Random(question).randrange(3)
        return question

    async def step(self, action: str) -> tuple[str, float, bool]:
        """Wait, and ask again."""
        await asyncio.sleep(self.rng.uniform(0, self.longest_s))
        self.num_left -= 1
        return "Go on.", 0.0, self.num_left < 0
