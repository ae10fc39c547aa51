"""Which engine replica a session's requests go to: decided once for each session, by load."""

from __future__ import annotations

from collections.abc import Iterable

from rl.errors import RolloutError


class Router:
    """Keeps a session on one replica, so that its prefix stays in that replica's cache.

    A new session goes to the replica with the fewest open ones, the lowest number first. When a replica is removed,
    its sessions are placed anew at their next request.

    Args:
        replicas: Their numbers.
    """

    def __init__(self, replicas: Iterable[int]) -> None:
        self._sessions: dict[str, int] = {}
        self._load = dict.fromkeys(replicas, 0)

    @property
    def replicas(self) -> list[int]:
        """The numbers of the replicas left, ascending."""
        return sorted(self._load)

    def route(self, session_id: str) -> int:
        """The replica of a session, which is opened if it is not yet.

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
        """Close a session; one that is not open (its replica was removed) is left alone."""
        replica = self._sessions.pop(session_id, None)
        if replica is not None:
            self._load[replica] -= 1

    def remove(self, replica: int) -> list[str]:
        """Take a replica out; one that is already out is left alone.

        Returns:
            The sessions it had, in order of opening.
        """
        self._load.pop(replica, None)
        orphans = [s for s, r in self._sessions.items() if r == replica]
        for session_id in orphans:
            del self._sessions[session_id]
        return orphans

    def num_sessions(self, replica: int) -> int:
        """Open sessions of a replica."""
        return self._load[replica]
