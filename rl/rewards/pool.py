"""Processes of one reward, as many as there is work for; one that a call holds for long is replaced meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from rl.rewards.outcome import Outcome
from rl.rewards.process_worker import RewardProcess
from rl.types import Trajectory

_PATIENCE_S = 2.0
"""Seconds after which a call gives up its place to one that waits; it goes on until its deadline."""
_MOST = 4
"""Times the number of places: processes there may be at most, those with a slow call among them."""


class RewardPool:
    """Runs calls in processes; they start on first use, and the one used last is used first.

    Args:
        make: Makes a process, not yet started.
        num_places: Calls at once while none takes long, at least 1.
    """

    def __init__(self, make: Callable[[], RewardProcess], num_places: int) -> None:
        self._make, self._num_places = make, num_places
        self._places, self._all = asyncio.Semaphore(num_places), asyncio.Semaphore(_MOST * num_places)
        self._threads = ThreadPoolExecutor(_MOST * num_places, thread_name_prefix="reward")
        self._idle: list[RewardProcess] = []
        self._processes: set[RewardProcess] = set()
        self._running: set[asyncio.Task[Outcome | str]] = set()

    async def call(self, trajectory: Trajectory, timeout: float) -> Outcome | str:
        """Score one trajectory; see `RewardProcess.call`. A call that nobody waits for any more goes on to its end."""
        task = asyncio.ensure_future(self._run(trajectory, timeout))
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return await asyncio.shield(task)

    def close(self) -> None:
        """End all processes."""
        for process in self._processes:
            process.close()
        self._threads.shutdown(wait=False)

    async def _run(self, trajectory: Trajectory, timeout: float) -> Outcome | str:
        async with self._all:
            await self._places.acquire()
            process = self._idle.pop() if self._idle else self._make()
            self._processes.add(process)
            try:
                return await self._hold(process, trajectory, timeout)
            finally:
                if len(self._idle) < self._num_places:
                    self._idle.append(process)
                else:
                    self._processes.discard(process)
                    await asyncio.get_running_loop().run_in_executor(self._threads, process.close)

    async def _hold(self, process: RewardProcess, trajectory: Trajectory, timeout: float) -> Outcome | str:
        """Run a call in a process, and give the place up as soon as the call ends or takes long."""
        loop = asyncio.get_running_loop()
        try:
            await loop.run_in_executor(self._threads, process.start)
            call = loop.run_in_executor(self._threads, process.call, trajectory, timeout)
            await asyncio.wait({call}, timeout=_PATIENCE_S)
        finally:
            self._places.release()
        return await call
