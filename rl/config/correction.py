"""The section of the off-policy correction."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class ImportanceLevel(StrEnum):
    """What an importance weight is the ratio of."""

    TOKEN = "token"
    SEQUENCE = "sequence"


@dataclass
class RolloutCorrection:
    """What is done about the gap between the engine's log-probs and the actor's (docs/off_policy.md).

    Keys are those of verl's section of the same name. r is the actor's probability of what was sampled, at the start of
    the batch, over the engine's; with `bypass_mode` that of each optimizer step.
    """

    rollout_is: ImportanceLevel | None = ImportanceLevel.TOKEN
    """Weigh the policy loss by r of each token, or of the whole sequence; null does not weigh."""
    rollout_is_threshold: float = 2.0
    """Largest weight, above 0; larger ones are truncated to it (TIS)."""
    rollout_is_threshold_lower: float | None = None
    """Makes a band of it: weights below this, above 0, and above `rollout_is_threshold` become 0 (IcePop)."""
    rollout_rs: str | None = None
    """Name in `rl.algorithms.importance.REJECTIONS`: leave out whole sequences out of bounds; null keeps all."""
    rollout_rs_threshold: float | None = None
    """Upper bound, above 0: of the ratio for `seq_sum_k1` and `seq_mean_k1`, of the divergence for the others."""
    rollout_rs_threshold_lower: float | None = None
    """Lower bound of the ratio, above 0; by default 1 / `rollout_rs_threshold`."""
    bypass_mode: bool = False
    """Take the engine's log-probs for the old ones: one pass less, and the clip range is around the engine's policy."""
