"""Where prompts become scored groups: what the driver asks of the rollout workers, wherever they run."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from rl.batches import GroupHeader
from rl.config.schema import Config
from rl.types import Prompt, Sampling, WeightUpdate

_OVERCOMMIT = 2


@dataclass(slots=True)
class PromptBatch:
    """The prompts of one `take` or `evaluate`, numbered from 0 in the order in which they were added."""

    num_samples: int
    sampling: Sampling
    keeps_rows: bool = True
    """Whether the groups are to be trained on; the rows of others are not stored."""
    num_added: int = 0
    waiting: deque[tuple[int, Prompt]] = field(default_factory=deque)
    """Those not yet started, each with its number."""

    def add(self, prompts: Sequence[Prompt]) -> None:
        """Append prompts; `Workers.run` starts them."""
        self.waiting.extend(enumerate(prompts, start=self.num_added))
        self.num_added += len(prompts)


def groups_at_once(config: Config, num_samples: int) -> int:
    """Groups that one worker may have under way: a trajectory's deadline runs from its start, so none may wait long.

    Twice what its engine runs at once, since some always wait for tools.
    """
    return max(1, math.ceil(_OVERCOMMIT * config.generate_config.max_num_seqs / num_samples))


class Workers(Protocol):
    """The rollout workers (`rl.cluster.rollout_workers.RayWorkers`, `rl.cluster.local.LocalWorkers`)."""

    def run(self, batch: PromptBatch) -> Iterator[tuple[int, GroupHeader]]:
        """Yield groups with their prompts' numbers as they end, until none is left; the batch may grow meanwhile.

        Raises:
            RolloutError: No worker is left.
        """
        ...

    def call(self, method: str, *, what: str) -> list[Any]:
        """Call a method of every worker and wait.

        Args:
            method: `restart_clocks` or `sleep`.
            what: The work, for a message: "reading the clocks".

        Returns:
            What the living ones gave.
        """
        ...

    def update_weights(self, update: WeightUpdate) -> None:
        """Load published weights into every engine."""
        ...

    def write(self, path: Path, groups: Sequence[GroupHeader]) -> None:
        """Write groups' trajectories to a file, a JSON line each, while the caller goes on."""
        ...

    def fetch(self, reference: Any) -> Any:
        """What a reference of a `GroupHeader` refers to."""
        ...

    def keep(self, value: Any) -> Any:
        """Store a value; returns a reference to it."""
        ...
