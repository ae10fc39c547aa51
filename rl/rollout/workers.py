"""Where prompts become scored groups: what the driver asks of the rollout workers, wherever they run."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from rl.types import GroupHeader, Prompt, Sampling, WeightUpdate


@dataclass(slots=True)
class PromptBatch:
    """The prompts of one `take` or `evaluate`, numbered from 0 in the order in which they were added."""

    num_samples: int
    sampling: Sampling
    num_added: int = 0
    waiting: deque[tuple[int, Prompt]] = field(default_factory=deque)
    """Those not yet started, each with its number."""

    def add(self, prompts: Sequence[Prompt]) -> None:
        """Append prompts; `Workers.run` starts them."""
        self.waiting.extend(enumerate(prompts, start=self.num_added))
        self.num_added += len(prompts)


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
