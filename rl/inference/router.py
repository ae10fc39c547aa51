"""Routing of sessions to engine replicas by load."""

from __future__ import annotations

from collections.abc import Iterable

from rl.errors import RolloutError


class Router:
    """Sends all requests of a session to one replica, so that its prefix cache is used.

    A new session goes to the replica with the fewest open sessions; ties go to the lowest number. After a replica is
    removed, its sessions get a new replica at their next request.

    Args:
        replicas: Numbers of the replicas.
    """

    def __init__(self, replicas: Iterable[int]) -> None:
        self._sessions: dict[str, int] = {}
        self._load = dict.fromkeys(replicas, 0)

    @property
    def replicas(self) -> list[int]:
        """Numbers of the remaining replicas, ascending."""
        return sorted(self._load)

    def route(self, session_id: str) -> int:
        """Return the replica of a session; open the session if necessary.

        Raises:
            RolloutError: No replica is left.
        """
        if session_id not in self._sessions:
            if not self._load:
                raise RolloutError("rollout: no engine replica is left. See the logs of the rollout workers.")
            replica = min(self._load, key=lambda r: (self._load[r], r))
            self._sessions[session_id] = replica
            self._load[replica] += 1
        return self._sessions[session_id]

    def release(self, session_id: str) -> None:
        """Close a session. Does nothing if it is not open, for example because its replica was removed."""
        replica = self._sessions.pop(session_id, None)
        if replica is not None:
            self._load[replica] -= 1

    def remove(self, replica: int) -> list[str]:
        """Remove a replica. Does nothing if it was already removed.

        Returns:
            The sessions it had, in order of opening.
        """
        self._load.pop(replica, None)
        orphans = [s for s, r in self._sessions.items() if r == replica]
        for session_id in orphans:
            del self._sessions[session_id]
        return orphans

    def num_sessions(self, replica: int) -> int:
        """Number of open sessions of a replica."""
        return self._load[replica]
