"""How old the trained tokens are, and which side of an asynchronous run waits for the other."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Mapping, Sequence

from rl.batches import GroupHeader

logger = logging.getLogger(__name__)

_WINDOW, _LONG_WAIT = 8, 0.3
"""Steps over which shares are averaged, and the share from which a hint is given."""
_HINTS = {
    "rollout/engine_idle_share": (
        "engines had nothing to sample",
        "Raise rl_config.max_staleness or global_batch_size, so that more groups are open; or give the actor more "
        "devices",
    ),
    "rollout/trainer_wait_share": (
        "the update waited for rollouts",
        "Give the rollouts more engines; or, if a few slow groups hold it up, set rl_config.over_sample_rate",
    ),
}


def staleness_metrics(groups: Sequence[GroupHeader], version: int, now: float) -> dict[str, float]:
    """Age of what a step trains on.

    Args:
        groups: The step's.
        version: The published weights.
        now: Seconds since 1970.

    Returns:
        `rollout/staleness/{mean,max}`, publishes between sampling and training, over tokens;
        `rollout/mixed_version_share`, trajectories whose tokens are of several versions;
        `rollout/sampled_to_trained_s/{mean,max}`, over trajectories. Empty without sampled tokens.
    """
    trajectories = [t for group in groups for t in group.trajectories if t.tokens_by_version]
    if not trajectories:
        return {}
    counted = [(version - v, n) for t in trajectories for v, n in t.tokens_by_version.items()]
    ages = [max(0.0, now - t.ended_at) for t in trajectories]
    return {
        "rollout/staleness/mean": sum(lag * n for lag, n in counted) / sum(n for _, n in counted),
        "rollout/staleness/max": float(max(lag for lag, _ in counted)),
        "rollout/mixed_version_share": sum(len(t.tokens_by_version) > 1 for t in trajectories) / len(trajectories),
        "rollout/sampled_to_trained_s/mean": sum(ages) / len(ages),
        "rollout/sampled_to_trained_s/max": max(ages),
    }


class WaitHint:
    """Says once for each side that it waits for the other for a large part of the time."""

    def __init__(self) -> None:
        self._shares: dict[str, deque[float]] = {name: deque(maxlen=_WINDOW) for name in _HINTS}

    def observe(self, metrics: Mapping[str, float]) -> None:
        """Count a step.

        Args:
            metrics: The step's, with the shares of waiting.
        """
        for name, shares in list(self._shares.items()):
            shares.append(metrics.get(name, 0.0))
            mean = sum(shares) / len(shares)
            if len(shares) == _WINDOW and mean > _LONG_WAIT:
                what, advice = _HINTS[name]
                logger.warning(
                    "in the last %d steps %s for %.0f %% of the time. %s.", _WINDOW, what, 100 * mean, advice
                )
                del self._shares[name]
