"""A rollout worker on an event loop of this process, which runs while the driver waits."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Generator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from rl.batches import GroupHeader, Recording
from rl.observability.trajectories import write_records
from rl.rewards.registry import RewardSet
from rl.rollout.group import Loop, run_group
from rl.rollout.headers import header_of_group, uses_of
from rl.rollout.workers import PromptBatch
from rl.types import Group, Prompt, Scores, Trajectory

T = TypeVar("T")
_END_TIMEOUT_S = 10.0


class LoopWorkers:
    """What all such workers share of `rl.rollout.workers.Workers`. Errors keep their traceback.

    Args:
        loop: Runs trajectories.
        rewards: Score them.
        events: The event loop.
        groups_at_once: The most groups at the same time, by the number of samples of each.
    """

    def __init__(
        self,
        loop: Loop,
        rewards: RewardSet,
        events: asyncio.AbstractEventLoop,
        groups_at_once: Callable[[int], int],
    ) -> None:
        self._loop, self._rewards = loop, rewards
        self._events, self._groups_at_once = events, groups_at_once
        self._running: dict[asyncio.Task[Group], int] = {}

    def run(self, batch: PromptBatch) -> Generator[tuple[int, GroupHeader], None, None]:
        """See `Workers`."""
        room = self._groups_at_once(batch.num_samples)
        try:
            while batch.waiting or self._running:
                while batch.waiting and len(self._running) < room:
                    order, prompt = batch.waiting.popleft()
                    self._running[self._events.create_task(self._run_group(prompt, batch))] = order
                done, _ = self._wait(asyncio.wait(self._running, return_when=asyncio.FIRST_COMPLETED))
                for task in done:
                    order = self._running.pop(task)
                    yield order, header_of_group(task.result())
        finally:
            self._cancel()

    @property
    def num_alive(self) -> int:
        """See `Workers`."""
        return 1

    @property
    def num_running(self) -> int:
        """See `Workers`."""
        return len(self._running)

    def write(self, path: Path, groups: Sequence[GroupHeader], recording: Recording | None = None) -> None:
        """See `Workers`; here the files are written when the call returns."""
        write_records(path, [group.record for group in groups], uses_of(groups))

    def fetch(self, reference: Any) -> Any:
        """See `Workers`; a reference is the value itself."""
        return reference

    def keep(self, value: Any) -> Any:
        """See `Workers`; a reference is the value itself."""
        return value

    async def _run_group(self, prompt: Prompt, batch: PromptBatch) -> Group:
        return await run_group(self._loop, prompt, batch.num_samples, batch.sampling, self._score)

    async def _score(self, trajectory: Trajectory) -> Scores:
        return await self._rewards.score(trajectory.without_tokens())

    def _cancel(self) -> None:
        """End what still runs when a step fails or a debugger is left."""
        tasks, self._running = list(self._running), {}
        for task in tasks:
            task.cancel()
        if tasks:
            done, _ = self._wait(asyncio.wait(tasks, timeout=_END_TIMEOUT_S))
            for task in done:
                if not task.cancelled():
                    task.exception()  # retrieved, so that asyncio does not print it

    def _wait(self, work: Awaitable[T]) -> T:
        async def result() -> T:
            return await work

        return self._events.run_until_complete(result())
