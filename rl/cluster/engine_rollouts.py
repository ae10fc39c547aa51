"""The driver's side of the engines: weights, turns on the devices, and what is fetched from the workers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from prometheus_client.core import Metric

from rl.batches import GroupHeader, Recording, Sample
from rl.cluster.turns import Turns
from rl.config.schema import Config
from rl.rollout.workers import Workers
from rl.types import Span, Trajectory, WeightUpdate


class EngineRollouts:
    """What all rollouts with engines share of `rl.interfaces.Rollouts`.

    Args:
        workers: Their engines must be started.
        config: The run's.
    """

    has_engines = True

    def __init__(self, workers: Workers, config: Config) -> None:
        self.workers, self.config = workers, config
        self.turns: Turns | None = None
        """Set if an actor shares the accelerators."""
        self._published: WeightUpdate | None = None
        self._has_weights = True
        self._spans: list[Span] = []

    def update_weights(self, update: WeightUpdate) -> None:
        """Load published weights into every engine; this wakes sleeping engines."""
        if self.turns is not None:
            self.turns.begin(self)
        self._spans += self.workers.update_weights(update)
        self._published, self._has_weights = update, True

    def leave_devices(self) -> None:
        """Put the engines to sleep; they lose their weights."""
        self.workers.call("sleep", what="putting the engines to sleep")
        self._has_weights = False

    def take_spans(self) -> list[Span]:
        """When engines loaded weights since the last call. What trajectories did is in their records."""
        spans, self._spans = self._spans, []
        return spans

    def write_trajectories(self, path: Path, groups: Sequence[GroupHeader], recording: Recording | None = None) -> None:
        """Write groups' trajectories and tokens to files; see `rl.interfaces.Rollouts`."""
        self.workers.write(path, groups, recording)

    def fetch_rows(self, group: GroupHeader) -> list[Sample]:
        """A group's training rows, with their tokens."""
        rows: list[Sample] = self.workers.fetch(group.rows)
        return rows

    def fetch_record(self, group: GroupHeader) -> list[Trajectory]:
        """A group's trajectories, without their tokens."""
        record: list[Trajectory] = self.workers.fetch(group.record)
        return record

    def engine_metrics(self, timeout_s: float) -> dict[int, list[Metric]]:
        """Each replica's own metrics; see `rl.interfaces.Rollouts`."""
        return self.workers.engine_metrics(timeout_s)

    def _begin_turn(self) -> None:
        """Take the accelerators. If the actor did not publish meanwhile, load its last publish again."""
        if self.turns is not None:
            self.turns.begin(self)
        if not self._has_weights:
            assert self._published is not None, "the loop begins with a publish"
            self.update_weights(self._published)
