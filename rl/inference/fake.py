"""An engine without a model for tests: a function returns the sampled tokens."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Sequence

from rl.errors import RolloutError
from rl.types import FinishReason, Generation, Sampling, WeightUpdate

Script = Callable[[list[int]], Sequence[int]]
"""Maps the token ids of a request to the sampled ids."""


class FakeEngine:
    """Samples the tokens of a script. Like the real engine, it passes tests/engine_contract.py.

    The log-probs of the sampled tokens are 0.0, -0.01, -0.02, ...

    Args:
        script: Returns the tokens to sample; they are cut after a stop token and at `max_tokens`.
        stop_token_ids: Tokens that end a turn.
        seconds_per_token: Duration of one token; with 0 a request ends at once.
        dies_after: Number of requests before the engine dies; None means never.
        verify: Called with each update before it is accepted; may raise `WeightSyncError`.
    """

    def __init__(
        self,
        script: Script,
        *,
        stop_token_ids: Collection[int] = (),
        seconds_per_token: float = 0.0,
        dies_after: int | None = None,
        verify: Callable[[WeightUpdate], None] = lambda update: None,
    ) -> None:
        self.policy_version = 0
        self.requests: list[tuple[str, list[int], Sampling]] = []
        """All requests so far: session, token ids, sampling."""
        self._script, self._stop_token_ids = script, frozenset(stop_token_ids)
        self._seconds_per_token, self._dies_after, self._verify = seconds_per_token, dies_after, verify
        self._abort = asyncio.Event()
        self._is_alive = True
        self._is_asleep = False

    async def generate(self, token_ids: list[int], sampling: Sampling, *, session_id: str) -> Generation:
        """Continue `token_ids`; see `rl.interfaces.Engine`."""
        self.requests.append((session_id, list(token_ids), sampling))
        if self._is_asleep:
            raise RolloutError("fake engine: cannot generate: it is asleep and has no weights until the next publish.")
        if self._dies_after is not None and len(self.requests) > self._dies_after:
            self._is_alive = False
            self._abort.set()
        self._check_alive()
        sampled, reason = self._cut(list(self._script(token_ids)), sampling.max_tokens)
        version, abort = self.policy_version, self._abort
        num_done = await self._wait(len(sampled), abort)
        self._check_alive()
        if num_done < len(sampled):
            sampled, reason = sampled[:num_done], FinishReason.ABORT
        return Generation(sampled, [-i / 100 for i in range(len(sampled))], reason, version)

    async def update_weights(self, update: WeightUpdate) -> None:
        """Abort requests in flight and set the new version; see `rl.interfaces.Engine`."""
        self._check_alive()
        self._verify(update)
        self._abort.set()
        self._abort = asyncio.Event()
        self.policy_version, self._is_asleep = update.version, False

    async def sleep(self) -> None:
        """Drop the weights; see `rl.interfaces.Engine`."""
        self._is_asleep = True

    async def shutdown(self) -> None:
        """Make all later requests fail."""
        self._is_alive = False
        self._abort.set()

    def _check_alive(self) -> None:
        if not self._is_alive:
            raise RolloutError("fake engine: died while generating, as configured.")

    def _cut(self, sampled: list[int], max_tokens: int) -> tuple[list[int], FinishReason]:
        for index, token in enumerate(sampled[:max_tokens]):
            if token in self._stop_token_ids:
                return sampled[: index + 1], FinishReason.STOP
        reason = FinishReason.LENGTH if len(sampled) >= max_tokens else FinishReason.STOP
        return sampled[:max_tokens], reason

    async def _wait(self, num_tokens: int, abort: asyncio.Event) -> int:
        """Wait for the duration of the tokens or an abort; return the number of finished tokens."""
        if self._seconds_per_token == 0:
            await asyncio.sleep(0)
            return num_tokens
        loop = asyncio.get_running_loop()
        start = loop.time()
        try:
            await asyncio.wait_for(abort.wait(), num_tokens * self._seconds_per_token)
        except TimeoutError:
            return num_tokens
        return min(num_tokens, int((loop.time() - start) / self._seconds_per_token))
