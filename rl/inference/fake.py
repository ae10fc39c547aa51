"""An engine without a model: a function says what is sampled. For tests of everything that talks to an `Engine`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Sequence

from rl.errors import RolloutError
from rl.types import FinishReason, Generation, Sampling, WeightUpdate

Script = Callable[[list[int]], Sequence[int]]
"""From the token ids of a request to the ids a model would sample after them."""


class FakeEngine:
    """Samples what a script says; passes tests/engine_contract.py as the real engine does.

    A token's log-prob is minus its place among the sampled ones divided by 100: 0.0, -0.01, -0.02 ...

    Args:
        script: What to sample; ids after a stop token or `max_tokens` are not sampled.
        stop_token_ids: Tokens that end a turn.
        seconds_per_token: Time a token takes; 0 ends a request at once.
        dies_after: Requests served before the engine dies; None: it does not.
        verify: Called with an update before it is accepted; may raise `WeightSyncError`.
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
        """Every request made: session, token ids, sampling."""
        self._script, self._stop_token_ids = script, frozenset(stop_token_ids)
        self._seconds_per_token, self._dies_after, self._verify = seconds_per_token, dies_after, verify
        self._abort = asyncio.Event()
        self._is_alive = True
        self._is_asleep = False

    async def generate(self, token_ids: list[int], sampling: Sampling, *, session_id: str) -> Generation:
        """Continue `token_ids`; see `rl.interfaces.Engine`."""
        self.requests.append((session_id, list(token_ids), sampling))
        if self._is_asleep:
            raise RolloutError("fake engine: answers no request: it sleeps, and has no weights until the next publish.")
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
        """Abort requests in flight and stamp the new version; see `rl.interfaces.Engine`."""
        self._check_alive()
        self._verify(update)
        self._abort.set()
        self._abort = asyncio.Event()
        self.policy_version, self._is_asleep = update.version, False

    async def sleep(self) -> None:
        """Forget the weights; see `rl.interfaces.Engine`."""
        self._is_asleep = True

    async def shutdown(self) -> None:
        """Requests fail from here on."""
        self._is_alive = False
        self._abort.set()

    def _check_alive(self) -> None:
        if not self._is_alive:
            raise RolloutError("fake engine: died while generating. It was told to.")

    def _cut(self, sampled: list[int], max_tokens: int) -> tuple[list[int], FinishReason]:
        for index, token in enumerate(sampled[:max_tokens]):
            if token in self._stop_token_ids:
                return sampled[: index + 1], FinishReason.STOP
        reason = FinishReason.LENGTH if len(sampled) >= max_tokens else FinishReason.STOP
        return sampled[:max_tokens], reason

    async def _wait(self, num_tokens: int, abort: asyncio.Event) -> int:
        """Let the time of the tokens pass; how many were done when it ended."""
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
