"""A pool of processes for one reward. Slow calls do not block it: another process takes over their slot."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from rl.rewards.outcome import Outcome
from rl.rewards.process_worker import RewardProcess
from rl.types import Trajectory

_SLOW_CALL_S = 2.0
"""After this time a call releases its slot to a waiting call, but runs on until its deadline."""
_MAX_PROCESSES_PER_SLOT = 4
"""Limit on all processes, including those with slow calls."""


class RewardPool:
    """Runs calls in processes. Processes start on first use; the most recently used idle process is used first.

    Args:
        make: Creates a process without starting it.
        num_slots: Number of concurrent calls, not counting slow ones; at least 1.
    """

    def __init__(self, make: Callable[[], RewardProcess], num_slots: int) -> None:
        max_processes = _MAX_PROCESSES_PER_SLOT * num_slots
        self._make, self._num_slots = make, num_slots
        self._slots, self._all = asyncio.Semaphore(num_slots), asyncio.Semaphore(max_processes)
        self._threads = ThreadPoolExecutor(max_processes, thread_name_prefix="reward")
        self._idle: list[RewardProcess] = []
        self._processes: set[RewardProcess] = set()
        self._running: set[asyncio.Task[Outcome | str]] = set()

    async def call(self, trajectory: Trajectory, timeout: float) -> Outcome | str:
        """Score one trajectory; see `RewardProcess.call`. A cancelled caller does not stop the call."""
        task = asyncio.ensure_future(self._run(trajectory, timeout))
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return await asyncio.shield(task)

    def close(self) -> None:
        """Kill all processes."""
        for process in self._processes:
            process.close()
        self._threads.shutdown(wait=False)

    async def _run(self, trajectory: Trajectory, timeout: float) -> Outcome | str:
        async with self._all:
            await self._slots.acquire()
            process = self._idle.pop() if self._idle else self._make()
            self._processes.add(process)
            try:
                return await self._call_in(process, trajectory, timeout)
            finally:
                if len(self._idle) < self._num_slots:
                    self._idle.append(process)
                else:
                    self._processes.discard(process)
                    await asyncio.get_running_loop().run_in_executor(self._threads, process.close)

    async def _call_in(self, process: RewardProcess, trajectory: Trajectory, timeout: float) -> Outcome | str:
        """Run a call in a process; release the slot when the call ends or becomes slow."""
        loop = asyncio.get_running_loop()
        try:
            await loop.run_in_executor(self._threads, process.start)
            call = loop.run_in_executor(self._threads, process.call, trajectory, timeout)
            await asyncio.wait({call}, timeout=_SLOW_CALL_S)
        finally:
            self._slots.release()
        return await call
