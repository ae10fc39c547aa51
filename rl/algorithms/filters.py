"""Dynamic sampling: groups whose scores are all equal have zero advantage."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from rl.batches import Exclusion, GroupHeader, TrajectoryHeader
from rl.errors import RewardError, unknown_name
from rl.types import StopReason

_RELATIVE, _ABSOLUTE = 1e-6, 1e-8
"""Smaller differences are rounding errors, of the weighted sum of rewards or of float32."""


def exclusion(trajectory: TrajectoryHeader, *, drop_overlong: bool) -> Exclusion | None:
    """Why a trajectory does not take part in training, whatever its group: no score, or cut off with `drop_overlong`.

    Args:
        trajectory: A scored trajectory.
        drop_overlong: Exclude those that the token budget cut off (`rl_config.overlong_filter_enable`).

    Source: DAPO, arXiv:2503.14476, section 3.4, overlong filtering.
    """
    if trajectory.score is None:
        return Exclusion.NO_SCORE
    return Exclusion.CUT_OFF if drop_overlong and trajectory.stop_reason is StopReason.LENGTH else None


def takes_part(trajectory: TrajectoryHeader, *, drop_overlong: bool) -> bool:
    """Whether `exclusion` finds no reason against a trajectory."""
    return exclusion(trajectory, drop_overlong=drop_overlong) is None


def drop_uninformative_groups(
    groups: Sequence[GroupHeader], metric: str = "score", *, drop_overlong: bool = False
) -> tuple[list[GroupHeader], int]:
    """Keep the groups for which `is_informative` is true.

    Args:
        groups: Scored groups.
        metric: `score`, or a key of `TrajectoryHeader.rewards`.
        drop_overlong: As `rl_config.overlong_filter_enable`.

    Returns:
        The kept groups, in order, and the number dropped.
    """
    kept = [group for group in groups if is_informative(group, metric, drop_overlong=drop_overlong)]
    return kept, len(groups) - len(kept)


def is_informative(group: GroupHeader, metric: str = "score", *, drop_overlong: bool = False) -> bool:
    """Whether the trajectories of a group that take part in training differ in a metric, beyond rounding.

    Trajectories without the metric are not compared, because a reward may return it only in some cases. Fewer than two
    with it cannot differ.

    Example: 0.3 and 0.1 + 0.2 are equal; with the metric `acc`, 1, none and 1 are equal, 1, none and 0 differ.

    Args:
        group: A scored group.
        metric: `score`, or a key of `TrajectoryHeader.rewards`.
        drop_overlong: As `rl_config.overlong_filter_enable`.

    Source: DAPO, arXiv:2503.14476, section 3.2.
    """
    found = (_value(t, metric) for t in group.trajectories if takes_part(t, drop_overlong=drop_overlong))
    values = [value for value in found if value is not None and math.isfinite(value)]
    return bool(values) and not math.isclose(min(values), max(values), rel_tol=_RELATIVE, abs_tol=_ABSOLUTE)


def check_filter_metric(groups: Iterable[GroupHeader], metric: str) -> None:
    """Reject a metric that no reward returns: all groups would seem uninformative.

    Args:
        groups: Scored groups.
        metric: `score`, or a key of `TrajectoryHeader.rewards`.

    Raises:
        RewardError: There are scored trajectories, and none has the metric.
    """
    scored = [t for group in groups for t in group.trajectories if t.score is not None]
    if metric != "score" and scored and all(metric not in t.rewards for t in scored):
        known = {name for t in scored for name in t.rewards}
        raise RewardError(unknown_name("rl_config.filter_groups_metric", metric, {"score"} | known))


def _value(trajectory: TrajectoryHeader, metric: str) -> float | None:
    return trajectory.score if metric == "score" else trajectory.rewards.get(metric)
