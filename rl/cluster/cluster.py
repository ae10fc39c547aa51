"""What a run works with, wherever it runs."""

from __future__ import annotations

from dataclasses import dataclass

from rl.cluster.actors import ActorGroup
from rl.cluster.rollouts import RolloutGroup


@dataclass(slots=True)
class Cluster:
    """The running workers; `actor` or `rollouts` is None where the run asked for none."""

    actor: ActorGroup | None
    rollouts: RolloutGroup | None
