"""The workers of a run, in processes of their own or in this one."""

from __future__ import annotations

from dataclasses import dataclass

from rl.cluster.actors import ActorGroup
from rl.interfaces import Rollouts


@dataclass(slots=True)
class Cluster:
    """The running workers, and with a replay recorded groups; a part is None if the run did not ask for it."""

    actor: ActorGroup | None
    rollouts: Rollouts | None
