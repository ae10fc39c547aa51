"""The ranks of the actor or of the reference, called together: as Ray actors, or in this process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from rl.cluster.health import get_all

_TIMEOUT_S = 3600.0


class Ranks(Protocol):
    """What `rl.cluster.actors.ActorGroup` calls."""

    def __len__(self) -> int:
        """Number of ranks."""
        ...

    def begin(self, method: str, *args: Any) -> list[Any]:
        """Call every rank. A result that is passed on as an argument of another call goes there directly.

        Returns:
            A handle for each result, or the results themselves.
        """
        ...

    def call(self, method: str, arguments: Sequence[tuple[Any, ...]], *, what: str) -> list[Any]:
        """Call each rank with its own arguments and wait.

        Args:
            method: Of `rl.training.actor.Actor`, or the name of a property.
            arguments: For each rank.
            what: The work, for a message: "the actor's update".
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

    def call(self, method: str, arguments: Sequence[tuple[Any, ...]], *, what: str) -> list[Any]:
        """See `Ranks`.

        Raises:
            RolloutError: A worker died, or has not answered within an hour.
        """
        refs = [worker.call.remote(method, *own) for worker, own in zip(self._workers, arguments, strict=True)]
        return get_all(refs, what=what, timeout_s=_TIMEOUT_S)


class LocalRanks:
    """Ranks in this process, for tests and breakpoints; rows are given as they are, without references.

    Args:
        actors: `rl.training.actor.Actor`, or what stands for it.
    """

    def __init__(self, actors: Sequence[Any]) -> None:
        self._actors = actors

    def __len__(self) -> int:
        return len(self._actors)

    def begin(self, method: str, *args: Any) -> list[Any]:
        """See `Ranks`."""
        return [answer(actor, method, *args) for actor in self._actors]

    def call(self, method: str, arguments: Sequence[tuple[Any, ...]], *, what: str) -> list[Any]:
        """See `Ranks`."""
        return [answer(actor, method, *own) for actor, own in zip(self._actors, arguments, strict=True)]


def answer(actor: Any, method: str, *args: Any, fetch: Callable[[list[Any]], list[Any]] = list) -> Any:
    """Call a method by its name, or read a property.

    Args:
        actor: The rank.
        method: Of it.
        args: For the method.
        fetch: Gives what the references in `Share.sources` refer to.
    """
    if method == "load_batch":
        (share,) = args
        args = share, fetch(share.sources)
    found = getattr(actor, method)
    return found(*args) if callable(found) else found
