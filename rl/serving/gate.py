"""Requests for tokens wait here while there are no weights to sample from."""

from __future__ import annotations

import asyncio

from rl.interfaces import Sampler
from rl.types import Generation, Sampling


class Gate:
    """Passes requests on while it is open (`rl.interfaces.Sampler`); the others wait.

    Args:
        engine: Answers them.
    """

    def __init__(self, engine: Sampler) -> None:
        self._engine = engine
        self._is_open = asyncio.Event()
        self._is_open.set()
        self.num_waiting = 0
        """Requests that wait."""
        self.num_running = 0
        """Requests that are being sampled."""
        self.num_prompt_tokens = 0
        """Prompt tokens of all answered requests."""
        self.num_sampled_tokens = 0
        self.policy_version = 0
        """Policy version of the last answer."""

    def open(self) -> None:
        """Let requests pass."""
        self._is_open.set()

    def close(self) -> None:
        """Make requests wait. Those that are being sampled go on until weights are loaded."""
        self._is_open.clear()

    async def generate(self, token_ids: list[int], sampling: Sampling, *, session_id: str) -> Generation:
        """See `rl.interfaces.Sampler`."""
        if not self._is_open.is_set():
            self.num_waiting += 1
            try:
                await self._is_open.wait()
            finally:
                self.num_waiting -= 1
        self.num_running += 1
        try:
            generation = await self._engine.generate(token_ids, sampling, session_id=session_id)
        finally:
            self.num_running -= 1
        self.num_prompt_tokens += len(token_ids)
        self.num_sampled_tokens += len(generation.token_ids)
        self.policy_version = generation.policy_version
        return generation
