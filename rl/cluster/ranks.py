"""The ranks of the actor or of the reference, as Ray actors or in this process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from rl.cluster.health import get_all
from rl.observability.clock import wall_time

TIMEOUT_S = 3600.0
"""Deadline of a pass or an update, seconds."""
MAX_TIMES = 1000
"""Calls of a step that a rank notes, so that a step of very many optimizer steps keeps a small timeline."""
_SHORTEST_S = 0.001
"""Seconds from which a call is noted."""


class Ranks(Protocol):
    """The interface that `rl.cluster.actors.ActorGroup` calls."""

    def __len__(self) -> int:
        """Number of ranks."""
        ...

    def begin(self, method: str, *args: Any) -> list[Any]:
        """Call every rank. A result passed as an argument of another call does not go through the driver.

        Returns:
            A handle for each result, or the result itself.
        """
        ...

    def call(
        self, method: str, arguments: Sequence[tuple[Any, ...]], *, what: str, timeout_s: float = TIMEOUT_S
    ) -> list[Any]:
        """Call each rank with its own arguments and wait.

        Args:
            method: A method or property of `rl.training.actor.Actor`.
            arguments: One tuple per rank.
            what: The task, for error messages: "the actor's update".
            timeout_s: Deadline of ranks in other processes.
        """
        ...


class RayRanks:
    """Ranks in processes of their own (`rl.cluster.workers.ActorWorker`)."""

    def __init__(self, workers: Sequence[Any]) -> None:
        self._workers = workers

    def __len__(self) -> int:
        return len(self._workers)

    def begin(self, method: str, *args: Any) -> list[Any]:
        """See `Ranks`."""
        return [worker.call.remote(method, *args) for worker in self._workers]

    def call(
        self, method: str, arguments: Sequence[tuple[Any, ...]], *, what: str, timeout_s: float = TIMEOUT_S
    ) -> list[Any]:
        """See `Ranks`.

        Raises:
            RolloutError: A worker died or did not answer in time.
        """
        refs = [worker.call.remote(method, *own) for worker, own in zip(self._workers, arguments, strict=True)]
        return get_all(refs, what=what, timeout_s=timeout_s)


class LocalRanks:
    """Ranks in this process, for tests and breakpoints. Rows are passed as values, not as references.

    Args:
        actors: `rl.training.actor.Actor` or a fake of it, one per rank.
    """

    def __init__(self, actors: Sequence[Any]) -> None:
        self._ranks = [Rank(actor) for actor in actors]

    def __len__(self) -> int:
        return len(self._ranks)

    def begin(self, method: str, *args: Any) -> list[Any]:
        """See `Ranks`."""
        return [rank.call(method, *args) for rank in self._ranks]

    def call(
        self, method: str, arguments: Sequence[tuple[Any, ...]], *, what: str, timeout_s: float = TIMEOUT_S
    ) -> list[Any]:
        """See `Ranks`."""
        return [rank.call(method, *own) for rank, own in zip(self._ranks, arguments, strict=True)]


class Rank:
    """One rank, called by the names of its methods. Notes when each call ran.

    Args:
        actor: `rl.training.actor.Actor` or a fake of it.
        fetch: Resolves the references in `Share.sources`.
    """

    def __init__(self, actor: Any, fetch: Callable[[list[Any]], list[Any]] = list) -> None:
        self.actor, self._fetch = actor, fetch
        self._times: list[tuple[str, float, float]] = []

    def call(self, method: str, *args: Any) -> Any:
        """Call a method of the actor, or `take_times`."""
        if method == "take_times":
            return self.take_times()
        start = wall_time()
        try:
            return answer(self.actor, method, *args, fetch=self._fetch)
        finally:
            end = wall_time()
            if end - start >= _SHORTEST_S and len(self._times) < MAX_TIMES:
                self._times.append((method, start, end))

    def take_times(self) -> list[tuple[str, float, float]]:
        """Name, start and end of the calls since the last time; seconds since 1970."""
        times, self._times = self._times, []
        return times


def answer(actor: Any, method: str, *args: Any, fetch: Callable[[list[Any]], list[Any]] = list) -> Any:
    """Call a rank's method by name, or read a property.

    Args:
        actor: The rank.
        method: Name of the method or property.
        args: The method's arguments.
        fetch: Resolves the references in `Share.sources`.
    """
    if method == "load_batch":
        (share,) = args
        args = share, fetch(share.sources)
    found = getattr(actor, method)
    return found(*args) if callable(found) else found
