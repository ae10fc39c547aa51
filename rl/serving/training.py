"""One training of the service: its groups on the way to the driver, and the clients that wait for it."""

from __future__ import annotations

import asyncio
import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rl.errors import RolloutError, TurnwiseError
from rl.rollout.headers import rows_of
from rl.serving.errors import ApiError
from rl.serving.job import JobRequest
from rl.serving.journal import Journal
from rl.types import Group


@dataclass(slots=True, frozen=True)
class GroupDone:
    """A group is scored and journaled."""

    number: int
    group: Group


@dataclass(slots=True, frozen=True)
class BatchClosed:
    """A client wants an update on what is there."""

    number: int
    """The driver gives it back when that is done."""


@dataclass(slots=True, frozen=True)
class SaveWanted:
    """A client wants the weights on disk."""

    name: str


@dataclass(slots=True, frozen=True)
class EndWanted:
    """A client ends the training."""


@dataclass(slots=True, frozen=True)
class Broken:
    """The training cannot go on: no engine is left, or scoring fails."""

    reason: str


Event = GroupDone | BatchClosed | SaveWanted | EndWanted | Broken


class Training:
    """What one training has of its own, so that nothing of it reaches the next.

    Args:
        request: From the client that began it.
    """

    def __init__(self, request: JobRequest) -> None:
        new = asyncio.get_running_loop().create_future
        self.request = request
        self.started: asyncio.Future[None] = new()
        """Done when it takes groups; an exception where it was refused."""
        self.over: asyncio.Future[None] = new()
        self._events: asyncio.Queue[Event] = asyncio.Queue()
        self._closing: dict[int, asyncio.Future[None]] = {}
        self._saving: dict[str, asyncio.Future[Path]] = {}
        self._close_numbers, self._group_numbers = itertools.count(), itertools.count()
        self._journal: Journal | None = None

    def begin(self, journal: Path, number: int) -> None:
        """Take groups from now on.

        Args:
            journal: Folder of its journal.
            number: Number of the first new group.
        """
        self._journal, self._group_numbers = Journal(journal), itertools.count(number)

    def next_number(self) -> int:
        """Number of a new group."""
        return next(self._group_numbers)

    async def keep(self, number: int, group: Group) -> None:
        """Journal a group, then hand it to the driver.

        Raises:
            ApiError: The training is over (409), or the disk takes nothing (503).
        """
        if self.over.done():
            raise ApiError(409, "The training has ended; the group comes too late.", code="training_ended")
        assert self._journal is not None, "groups come after the beginning"
        rows = rows_of(group.trajectories)
        records = [trajectory.without_tokens() for trajectory in group.trajectories]
        try:
            await asyncio.to_thread(self._journal.write, number, group.prompt, records, rows)
        except OSError as error:
            raise ApiError(
                503, f"The journal in {self._journal.folder} cannot be written ({error}). Send the reward again later."
            ) from error
        self._events.put_nowait(GroupDone(number, group))

    async def close_batch(self) -> None:
        """See `rl.serving.job.Trainer`."""
        number = next(self._close_numbers)
        closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._closing[number] = closed
        self._events.put_nowait(BatchClosed(number))
        await asyncio.shield(closed)

    def batches_closed(self, numbers: list[int]) -> None:
        """Batches that clients closed are trained on."""
        for number in numbers:
            resolve(self._closing.pop(number, None))

    async def save(self, name: str) -> Path:
        """See `rl.serving.job.Trainer`. Who asks while the same name is being saved, waits for that."""
        if name not in self._saving:
            self._saving[name] = asyncio.get_running_loop().create_future()
            self._events.put_nowait(SaveWanted(name))
        return await asyncio.shield(self._saving[name])

    def saved(self, name: str, folder: Path) -> None:
        """What a client wanted saved is on disk."""
        resolve(self._saving.pop(name, None), folder)

    async def end(self) -> None:
        """See `rl.serving.job.Trainer`."""
        self._events.put_nowait(EndWanted())
        await asyncio.shield(self.over)

    def break_off(self, reason: str) -> None:
        """Tell the driver that no more groups will come."""
        self._events.put_nowait(Broken(reason))

    async def next_events(self, timeout_s: float) -> list[Event]:
        """What happened since the last call, in order; waits for the first, but not longer."""
        try:
            async with asyncio.timeout(timeout_s):
                events = [await self._events.get()]
        except TimeoutError:
            return []
        while not self._events.empty():
            events.append(self._events.get_nowait())
        return events

    def finish(self, failure: TurnwiseError | None) -> None:
        """It is over. Whoever still waits hears why."""
        waiting: list[asyncio.Future[Any]] = [*self._closing.values(), *self._saving.values(), self.started]
        for one in waiting:
            if not one.done():
                one.set_exception(failure or RolloutError("The training ended meanwhile."))
                one.exception()  # nobody need wait for it
        resolve(self.over)


def resolve(future: asyncio.Future[Any] | None, value: Any = None) -> None:
    """Give a future its value, unless it has one."""
    if future is not None and not future.done():
        future.set_result(value)
