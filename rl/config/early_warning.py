"""The section of early warnings."""

from __future__ import annotations

from dataclasses import field

from pydantic.dataclasses import dataclass

from rl.config.kinds import CHECKED, Count, Section, Weight


@dataclass(config=CHECKED)
class EarlyWarning(Section):
    """Thresholds of figures that show early that a run goes wrong (docs/warnings.md); null turns one off."""

    patience: Count = 3
    """Steps in a row in which a figure must be beyond its threshold; for `evaluation_fall`, evaluations."""
    stop: dict[str, Weight] = field(default_factory=dict)
    """Further thresholds, by the names below, that end the run: `{logprob_difference: 0.2}`."""
    entropy_low: Weight | None = 0.005
    """Entropy of the policy, nats per token: at or below."""
    entropy_rise: Weight | None = 3.0
    """Entropy over that of the run's first step, once it is above 0.5: at or above."""
    logprob_difference: Weight | None = 0.02
    """Mean difference of the probabilities that engine and actor give to sampled tokens: at or above."""
    policy_shift: Weight | None = 0.1
    """Divergence of the policy within one update, nats per token: at or above."""
    grad_norm_jump: Weight | None = 10.0
    """Gradient norm over the median of up to 20 steps before: at or above."""
    clipped_responses: Weight | None = 0.5
    """Share of responses that the token budget cut off: at or above."""
    tool_errors: Weight | None = 0.7
    """Share of tool calls that failed, in steps with at least 8 calls: at or above."""
    unread_calls: Weight | None = 0.3
    """Turns that look like a tool call but were not read as one, per trajectory: at or above."""
    uniform_groups: Weight | None = 0.95
    """Share of groups without an advantage, because all their rewards are equal: at or above."""
    repetition: Weight | None = 0.4
    """Share of repeated stretches of 8 tokens in the sampled text, mean over trajectories: at or above."""
    length_drift: Weight | None = 3.0
    """Mean response length over the median of up to 20 steps before, or the inverse: at or above."""
    length_reward: Weight | None = 0.95
    """Correlation of score and response length within groups, mean over groups: at or above."""
    evaluation_fall: Weight | None = 0.0
    """Lower end of the best evaluation's 95 % interval minus the upper end of the last one's: at or above."""
