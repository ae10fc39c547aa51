"""The best checkpoint of a run by a metric, which `max_checkpoints` does not remove."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

_KEY = "megatron_training.best_metric"


@dataclass(slots=True, frozen=True)
class Best:
    """The best value so far, and where it was reached."""

    metric: str
    """As configured."""
    value: float
    step: int
    """Completed steps."""
    checkpoint: str
    """Folder of the checkpoint, which may belong to the run that this one resumed."""

    def as_text(self) -> str:
        """A line for a person."""
        name = self.metric.removeprefix("-")
        return f"best {name}: {self.value:.6g} after step {self.step}, in {self.checkpoint}"


class BestCheckpoint:
    """Finds the best checkpoint among those that are written.

    Args:
        metric: `megatron_training.best_metric`: a metric's name, of which the largest value is best, or with a `-`
            before it the smallest. None finds nothing.
    """

    def __init__(self, metric: str | None) -> None:
        self.best: Best | None = None
        self._metric = metric
        self._step = -1
        self._metrics: list[Mapping[str, float]] = []
        self._names: set[str] = set()
        self._has_warned = False

    def observe(self, step: int, metrics: Mapping[str, float]) -> None:
        """Take note of metrics after a step: its own, which may still be filled, or those of an evaluation."""
        if step != self._step:
            self._step, self._metrics = step, []
        self._metrics.append(metrics)

    def recall(self, state: Mapping[str, Any] | None) -> None:
        """Go on from what `state` gave; forgets it if it is of another metric."""
        if state is not None and state["metric"] == self._metric:
            self.best = Best(**state)

    def after(self, step: int, checkpoint: Path) -> Best | None:
        """What is best if a checkpoint is written after a step.

        Only a checkpoint at whose step the metric has a finite value can become the best; of equal ones the first is.
        """
        value = self._value(step)
        if self._metric is None or value is None:
            return self.best
        sign = -1.0 if self._metric.startswith("-") else 1.0
        if self.best is not None and sign * value <= sign * self.best.value:
            return self.best
        return Best(self._metric, value, step, str(checkpoint))

    def _value(self, step: int) -> float | None:
        if self._metric is None:
            return None
        name, found = self._metric.removeprefix("-"), self._metrics if step == self._step else []
        self._names.update(*found)
        value = next((metrics[name] for metrics in found if name in metrics), None)
        if name not in self._names and not self._has_warned:
            self._has_warned = True
            near = get_close_matches(name, sorted(self._names), n=1, cutoff=0.6)
            hint = f" Did you mean '{near[0]}'?" if near else " metrics.jsonl has the names."
            logger.warning(
                "%s: no checkpoint can be the best yet, because step %d has no '%s'.%s An evaluation's metric needs "
                "eval_interval to meet save_interval.", _KEY, step, name, hint,
            )  # fmt: skip
        return value if value is not None and math.isfinite(value) else None


def state_of(best: Best | None) -> dict[str, Any] | None:
    """As plain values, for a checkpoint and for the summary of a run."""
    return None if best is None else asdict(best)
