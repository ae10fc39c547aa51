"""The section of the off-policy correction."""

from __future__ import annotations

from pydantic.dataclasses import dataclass

from rl.config.kinds import CHECKED, Bound, ImportanceLevel, Section


@dataclass(config=CHECKED)
class RolloutCorrection(Section):
    """What to do about the gap between the engine's log-probs and the actor's (docs/off_policy.md).

    Keys are those of verl's section of the same name. r is the actor's probability of what was sampled, at the start of
    the batch, over the engine's; with `bypass_mode` that of each optimizer step.
    """

    rollout_is: ImportanceLevel | None = ImportanceLevel.TOKEN
    """Weight the policy loss by r of each token or of the whole sequence; null does not."""
    rollout_is_threshold: Bound = 2.0
    """Largest weight; larger ones are truncated to it (TIS)."""
    rollout_is_threshold_lower: Bound | None = None
    """Smallest weight. With it, weights below this and above `rollout_is_threshold` become 0 (IcePop)."""
    rollout_rs: str | None = None
    """Name in `rl.algorithms.importance.REJECTIONS`: exclude sequences that are out of bounds; null keeps all."""
    rollout_rs_threshold: Bound | None = None
    """Upper bound: of the ratio for `seq_sum_k1` and `seq_mean_k1`, of the divergence for the others."""
    rollout_rs_threshold_lower: Bound | None = None
    """Lower bound of the ratio; by default 1 / `rollout_rs_threshold`."""
    bypass_mode: bool = False
    """Use the engine's log-probs as the old ones: one pass less, and the clip range is around the engine's policy."""
