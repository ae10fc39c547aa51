"""Dynamic sampling: groups whose scores are all equal have no advantage and teach nothing."""

from __future__ import annotations

from rl.types import Group, Trajectory


def drop_uninformative_groups(groups: list[Group], metric: str = "score") -> tuple[list[Group], int]:
    """Keep the groups whose scored trajectories differ in `metric`.

    A group with fewer than two scored trajectories cannot differ, and is dropped too.

    Args:
        groups: Scored groups.
        metric: `score`, or a key of `Trajectory.rewards`.

    Returns:
        The kept groups, in order, and the number dropped.

    Source: DAPO, arXiv:2503.14476, section 3.2.
    """
    kept = [
        group for group in groups if len({_value(t, metric) for t in group.trajectories if t.score is not None}) > 1
    ]
    return kept, len(groups) - len(kept)


def _value(trajectory: Trajectory, metric: str) -> float | None:
    return trajectory.score if metric == "score" else trajectory.rewards.get(metric)
