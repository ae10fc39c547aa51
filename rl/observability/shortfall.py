"""Reports what a run samples but cannot learn from: in each step's line, by first cause, and in a summary."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from rl.batches import GroupHeader, TrajectoryHeader
from rl.types import StopReason

logger = logging.getLogger(__name__)

_NO_REWARD = "without a reward"
_OVERLONG = "masked by overlong_filter_enable"
_STOPS = {
    StopReason.TOOL_UNAVAILABLE: "whose tool was unavailable",
    StopReason.DEADLINE: "past their deadline",
    StopReason.ENGINE_FAILED: "whose engine failed",
    StopReason.ENVIRONMENT_FAILED: "whose environment failed",
}
"""Stop reasons that leave a trajectory without a score, in words."""


class Shortfalls:
    """Counts what a run sampled but did not learn from, and reports each kind's first cause.

    Counts come from metrics, so a resumed run includes earlier steps; causes come from trajectories.
    """

    def __init__(self) -> None:
        self._num_steps = self._num_trajectories = self._num_without_update = 0
        self._counts: Counter[str] = Counter()
        self._first: dict[str, str] = {}
        self._has_told_empty = False

    def recall(self, rows: Iterable[Mapping[str, float]]) -> None:
        """Count the steps before a resume.

        Args:
            rows: Rows of metrics.jsonl; evaluations are ignored.
        """
        for row in rows:
            if "timing_s/step" in row:
                self._add(row)

    def observe(self, step: int, metrics: Mapping[str, float], groups: Sequence[GroupHeader]) -> None:
        """Count one step, and log the first cause of each kind that is new to this process.

        Args:
            step: Its number, from 1.
            metrics: The step's.
            groups: The step's; empty in a cold start.
        """
        counts = self._add(metrics)
        found = unscored_by_kind([t for group in groups for t in group.trajectories])
        for kind in (kind for kind in counts if kind not in self._first):
            first = found[kind][0] if kind in found else None
            cause = "the token budget cut them off" if first is None else f"{first.id}: {first.failure}"
            self._first[kind] = f"step {step}, {cause}"
            logger.warning("step %d: %d trajectories %s. The first, %s", step, counts[kind], kind, cause)
        if metrics.get("training/empty_batch") and not self._has_told_empty:
            self._has_told_empty = True
            logger.warning("step %d: no update. %s", step, _why_empty(_num_trajectories(metrics), counts))

    def summary(self) -> list[str]:
        """One sentence for each kind of loss in the run; empty if every step and trajectory counted."""
        lines = []
        if self._num_without_update:
            lines.append(f"{self._num_without_update} of {self._num_steps} steps made no update.")
        if num_lost := self._counts.total():
            kinds = ", ".join(f"{count} {kind}" for kind, count in self._counts.items())
            share = 100 * num_lost / self._num_trajectories
            lines.append(f"{num_lost} of {self._num_trajectories} trajectories ({share:.0f} %) did not count: {kinds}.")
            lines += [f"First {kind}: {cause}" for kind, cause in self._first.items()]
        return lines

    def _add(self, metrics: Mapping[str, float]) -> dict[str, int]:
        counts = _counts(metrics)
        self._counts.update(counts)
        self._num_steps += 1
        self._num_trajectories += _num_trajectories(metrics)
        self._num_without_update += bool(metrics.get("training/empty_batch"))
        return counts


def unscored_by_kind(trajectories: Sequence[TrajectoryHeader]) -> dict[str, list[TrajectoryHeader]]:
    """The trajectories that a failure left without a score, by the kind of failure in words."""
    found: dict[str, list[TrajectoryHeader]] = {}
    for trajectory in trajectories:
        kind = _NO_REWARD if trajectory.reward_error is not None else _STOPS.get(trajectory.stop_reason)
        if kind is not None:
            found.setdefault(kind, []).append(trajectory)
    return found


def shortfall_figures(metrics: Mapping[str, float]) -> list[str]:
    """Parts of a step's line on trajectories and updates that did not count; empty if all did.

    Args:
        metrics: The step's.

    Returns:
        For example `["masked 32/64", "dropped 4/8 groups", "no update"]`.
    """
    num = _num_trajectories(metrics)
    figures = []
    if masked := metrics.get("training/masked_trajectories"):
        figures.append(f"masked {masked:.0f}/{num}")
    if unavailable := metrics.get(f"stop_reason/{StopReason.TOOL_UNAVAILABLE}"):
        figures.append(f"unavailable {unavailable * num:.0f}")
    if dropped := metrics.get("training/dropped_groups"):
        figures.append(f"dropped {dropped:.0f}/{metrics.get('rollout/num_groups', 0.0):.0f} groups")
    if metrics.get("training/empty_batch"):
        figures.append("no update")
    if skipped := metrics.get("actor/skipped_steps"):
        figures.append(f"skipped {skipped:.0f} updates")
    return figures


def _counts(metrics: Mapping[str, float]) -> dict[str, int]:
    """How many trajectories of a step did not count, by kind; kinds without any are left out."""
    num = _num_trajectories(metrics)
    counts = {_NO_REWARD: round(metrics.get("rollout/reward_errors", 0.0))}
    counts |= {kind: round(num * metrics.get(f"stop_reason/{reason}", 0.0)) for reason, kind in _STOPS.items()}
    counts[_OVERLONG] = round(metrics.get("training/masked_trajectories", 0.0)) - sum(counts.values())
    return {kind: count for kind, count in counts.items() if count > 0}


def _num_trajectories(metrics: Mapping[str, float]) -> int:
    return round(metrics.get("rollout/num_trajectories", 0.0))


def _why_empty(num_trajectories: int, counts: Mapping[str, int]) -> str:
    """Why a step has no sample to learn from."""
    left = num_trajectories - sum(counts.values())
    if left <= 0:
        return "No trajectory counts: " + ", ".join(f"{count} {kind}" for kind, count in counts.items()) + "."
    of = f"the {left} of {num_trajectories} trajectories that count" if counts else "the trajectories"
    return (
        f"In no group do {of} differ in their score, or in what rl_config.filter_groups_metric names, so there is "
        "nothing to learn from."
    )
