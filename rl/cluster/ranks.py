"""The ranks of the actor or of the reference, as Ray actors or in this process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from rl.cluster.health import get_all

TIMEOUT_S = 3600.0
"""Deadline of a pass or an update, seconds."""


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
        self._actors = actors

    def __len__(self) -> int:
        return len(self._actors)

    def begin(self, method: str, *args: Any) -> list[Any]:
        """See `Ranks`."""
        return [answer(actor, method, *args) for actor in self._actors]

    def call(
        self, method: str, arguments: Sequence[tuple[Any, ...]], *, what: str, timeout_s: float = TIMEOUT_S
    ) -> list[Any]:
        """See `Ranks`."""
        return [answer(actor, method, *own) for actor, own in zip(self._actors, arguments, strict=True)]


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
