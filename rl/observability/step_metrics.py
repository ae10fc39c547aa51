"""The metrics of one step while it runs: a mapping from name to number that can time its parts."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rl.batches import GroupHeader, UpdateReport
from rl.interfaces import Rollouts
from rl.observability.clock import wall_time
from rl.observability.metrics import num_tokens, rollout_metrics
from rl.observability.timeline import DRIVER
from rl.types import Span


class StepMetrics(dict[str, float]):
    """Collects the metrics of one step.

    Args:
        max_response_length: Tokens from which a response counts as clipped.
        on_phase: Called with the name of each timed part as it begins.
    """

    def __init__(
        self, *, max_response_length: int | None = None, on_phase: Callable[[str], None] = lambda name: None
    ) -> None:
        super().__init__()
        self._max_response_length, self._on_phase = max_response_length, on_phase
        self.groups: list[GroupHeader] = []
        self.rollouts: Rollouts | None = None
        """Source of the groups."""
        self.spans: list[Span] = []
        """The timed parts, and what workers did for them."""
        self.offending: list[str] = []
        """Trajectories whose NaN or Inf caused a skipped optimizer step."""

    @contextmanager
    def time(self, name: str) -> Iterator[None]:
        """Add the seconds of the block to `timing_s/<name>`."""
        self._on_phase(name)
        start = time.monotonic()
        try:
            yield
        finally:
            key, end = f"timing_s/{name}", time.monotonic()
            self[key] = self.get(key, 0.0) + end - start
            self.spans.append(Span(DRIVER, name, wall_time(start), wall_time(end)))

    def record_update(self, report: UpdateReport) -> None:
        """Add the metrics of the step's update, and keep the offending trajectories."""
        self.update(report.metrics)
        self.offending = report.offending

    def record(self, groups: Sequence[GroupHeader], rollouts: Rollouts) -> None:
        """Add the metrics of the step's groups, and keep the groups for writing."""
        self.groups, self.rollouts = list(groups), rollouts
        self.update(rollout_metrics(groups, max_response_length=self._max_response_length))
        self["perf/total_num_tokens"] = float(num_tokens(groups))
