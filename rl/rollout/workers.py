"""The driver's interface to the rollout workers, which turn prompts into scored groups."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from prometheus_client.core import Metric

from rl.batches import GroupHeader, Recording
from rl.config.schema import Config
from rl.types import Prompt, Sampling, Span, WeightUpdate

_OVERCOMMIT = 2


@dataclass(slots=True)
class PromptBatch:
    """The prompts of one `take` or `evaluate`, numbered from 0 in the order they were added."""

    num_samples: int
    sampling: Sampling
    keeps_rows: bool = True
    """Whether the groups are trained on; if not, their rows are not stored."""
    num_added: int = 0
    waiting: deque[tuple[int, Prompt]] = field(default_factory=deque)
    """Prompts not yet started, with their numbers."""
    is_held: bool = False
    """No prompt starts for now."""
    dropped: set[int] = field(default_factory=set)
    """Numbers of prompts whose groups are not wanted any more; they are cancelled and not yielded."""

    def add(self, prompts: Sequence[Prompt]) -> None:
        """Append prompts; `Workers.run` starts them."""
        self.waiting.extend(enumerate(prompts, start=self.num_added))
        self.num_added += len(prompts)


def groups_at_once(config: Config, num_samples: int) -> int:
    """Maximum groups in flight per worker: a trajectory's deadline runs from its start, so none may wait long.

    Twice the engine's concurrency, because some always wait for tools.
    """
    return max(1, math.ceil(_OVERCOMMIT * config.generate_config.max_num_seqs / num_samples))


def training_sampling(config: Config) -> Sampling:
    """How rollouts for training are sampled."""
    s = config.generate_config.sampling_config
    return Sampling(
        temperature=s.temperature, max_tokens=s.max_tokens, top_p=s.top_p, top_k=s.top_k, min_p=s.min_p,
        seed=config.megatron_training.seed,
    )  # fmt: skip


class Workers(Protocol):
    """The rollout workers (`rl.cluster.rollout_workers.RayWorkers`, `rl.cluster.local.LocalWorkers`)."""

    def run(self, batch: PromptBatch) -> Iterator[tuple[int, GroupHeader]]:
        """Yield groups with their prompts' numbers as they end, until none is left; the batch may change meanwhile.

        Several batches may run at once. A worker goes on with what it has got while the driver does not ask.

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
            Results of the living workers.
        """
        ...

    @property
    def num_alive(self) -> int:
        """Workers that are alive."""
        ...

    @property
    def num_running(self) -> int:
        """Groups that workers work on; read from another thread too."""
        ...

    def engine_metrics(self, timeout_s: float) -> dict[int, list[Metric]]:
        """See `rl.interfaces.Rollouts`."""
        ...

    def update_weights(self, update: WeightUpdate) -> list[Span]:
        """Load published weights into every engine; returns when each did."""
        ...

    def write(self, path: Path, groups: Sequence[GroupHeader], recording: Recording | None = None) -> None:
        """Write groups' trajectories to a file as JSON lines, in the background, and their tokens to another."""
        ...

    def fetch(self, reference: Any) -> Any:
        """Resolve a reference of a `GroupHeader`."""
        ...

    def keep(self, value: Any) -> Any:
        """Store a value; returns a reference to it."""
        ...
