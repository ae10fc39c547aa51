"""What early warnings measure: pure functions from a step's metrics, the steps before and its trajectories to a figure.

docs/warnings.md gives the reason of each threshold and what to do.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from rl.batches import GroupHeader, TrajectoryHeader
from rl.observability.evaluations import Accuracy
from rl.types import ToolStatus

WINDOW = 20
"""Steps before that a figure is compared with."""
_MIN_BEFORE = 5
"""With fewer steps before, nothing is compared."""
_MIN_CALLS = 8
_MIN_GROUPS = 3
_HIGH_ENTROPY = 0.5
"""Nats per token. Below it a rise of the entropy is harmless."""
_MODELS_MISTAKES = frozenset(
    {
        ToolStatus.ERROR,
        ToolStatus.PARSE_ERROR,
        ToolStatus.IN_THOUGHT,
        ToolStatus.UNKNOWN_TOOL,
        ToolStatus.INVALID_ARGUMENTS,
        ToolStatus.TIMEOUT,
    }
)

Metrics = Mapping[str, float | None]


@dataclass(slots=True, frozen=True)
class StepView:
    """What detectors see of a step."""

    metrics: Metrics
    earlier: Sequence[Metrics]
    """The steps before, in order."""
    groups: Sequence[GroupHeader]
    evaluations: Sequence[Accuracy] = ()
    """Those so far, in order, over all of the same questions."""
    has_new_evaluation: bool = False
    """Whether the last of them is of this step."""

    @property
    def trajectories(self) -> list[TrajectoryHeader]:
        """The trajectories of all groups."""
        return [trajectory for group in self.groups for trajectory in group.trajectories]

    def before(self, name: str) -> list[float]:
        """The values of a metric in the steps before, without gaps."""
        return [value for row in self.earlier if (value := row.get(name)) is not None]


@dataclass(slots=True, frozen=True)
class Detector:
    """One figure."""

    label: str
    """What it is, with its unit."""
    measure: Callable[[StepView], float | None]
    """The figure; None where it cannot be said yet."""
    advice: str
    rank: Callable[[TrajectoryHeader], float] | None = None
    """The trajectories that show it have the largest values; None: no trajectory does."""
    is_low_bad: bool = False
    unit: str = "steps"
    """What is counted while the figure is beyond its threshold."""

    def is_beyond(self, value: float, threshold: float) -> bool:
        """Whether a figure is at its threshold or beyond."""
        return value <= threshold if self.is_low_bad else value >= threshold


def _entropy_rise(step: StepView) -> float | None:
    """Over the first step's entropy, which is that of the policy before any update of this run."""
    now, before = step.metrics.get("actor/entropy"), step.before("actor/entropy")
    if now is None or not before:
        return None
    return now / max(before[0], 1e-6) if now > _HIGH_ENTROPY else 0.0


def _over_median(name: str) -> Callable[[StepView], float | None]:
    """A metric over its median in the steps before."""

    def measure(step: StepView) -> float | None:
        now, before = step.metrics.get(name), step.before(name)[-WINDOW:]
        if now is None or len(before) < _MIN_BEFORE:
            return None
        return now / max(statistics.median(before), 1e-6)

    return measure


def _length_drift(step: StepView) -> float | None:
    ratio = _over_median("response_length/mean")(step)
    return None if ratio is None else max(ratio, 1 / max(ratio, 1e-6))


def _tool_errors(step: StepView) -> float | None:
    calls = [result for trajectory in step.trajectories for result in trajectory.results]
    if len(calls) < _MIN_CALLS:
        return None
    return sum(result.status in _MODELS_MISTAKES for result in calls) / len(calls)


def _unread_calls(step: StepView) -> float | None:
    trajectories = step.trajectories
    return sum(t.num_unread_calls for t in trajectories) / len(trajectories) if trajectories else None


def _uniform_groups(step: StepView) -> float | None:
    num_groups, dropped = step.metrics.get("rollout/num_groups"), step.metrics.get("training/dropped_groups")
    return None if not num_groups or dropped is None else dropped / num_groups


def _length_reward(step: StepView) -> float | None:
    found = []
    for group in step.groups:
        pairs = [(t.score, t.response_length) for t in group.trajectories if t.score is not None]
        if len(pairs) > 2:
            scores, lengths = np.array(pairs, np.float64).T
            if scores.std() > 0 and lengths.std() > 0:
                found.append(float(np.corrcoef(scores, lengths)[0, 1]))
    return statistics.mean(found) if len(found) >= _MIN_GROUPS else None


def _evaluation_fall(step: StepView) -> float | None:
    """At least 0 if the last interval is below the best one's, without overlap; None in steps without an evaluation."""
    if not step.has_new_evaluation or len(step.evaluations) < 2:
        return None
    *before, last = step.evaluations
    return max(accuracy.low for accuracy in before) - last.high


def _of(name: str) -> Callable[[StepView], float | None]:
    return lambda step: step.metrics.get(name)


def _num_mistakes(trajectory: TrajectoryHeader) -> float:
    return float(sum(result.status in _MODELS_MISTAKES for result in trajectory.results))


DETECTORS: dict[str, Detector] = {
    "entropy_low": Detector(
        "entropy of the policy, nats per token",
        _of("actor/entropy"),
        "The policy hardly explores any more. Set clip_higher_enable, add entropy_coeff, or lower actor_config.lr.",
        is_low_bad=True,
    ),
    "entropy_rise": Detector(
        "entropy of the policy, times that of the first step",
        _entropy_rise,
        "The policy becomes random. Lower actor_config.lr, and resume from a checkpoint before the rise.",
    ),
    "logprob_difference": Detector(
        "mean difference of engine's and actor's probabilities",
        _of("training/rollout_probs_diff_mean"),
        "Engine and actor are not the same policy. Compare their dtypes and templates; see docs/off_policy.md.",
    ),
    "policy_shift": Detector(
        "divergence within one update, nats per token",
        _of("actor/ppo_kl"),
        "The update goes too far. Lower actor_config.lr, or use fewer epochs and mini-batches.",
    ),
    "grad_norm_jump": Detector(
        "gradient norm, times its recent median",
        _over_median("actor/grad_norm"),
        "Lower actor_config.lr or actor_config.clip_grad. `rl explain RUN --step N` shows the tokens.",
    ),
    "clipped_responses": Detector(
        "share of responses cut off by the token budget",
        _of("response_length/clip_ratio"),
        "Raise the token budget, or penalize long responses with overlong_buffer_enable.",
        lambda trajectory: trajectory.response_length,
    ),
    "tool_errors": Detector(
        "share of tool calls that failed",
        _tool_errors,
        "Read a call and its result. Check the tool's schema in the prompt and what the parser reads.",
        _num_mistakes,
    ),
    "unread_calls": Detector(
        "turns that look like a tool call but were not read as one, per trajectory",
        _unread_calls,
        "rl_config.tool_parser_format does not fit what the model writes. See docs/parsers.md.",
        lambda trajectory: trajectory.num_unread_calls,
    ),
    "uniform_groups": Detector(
        "share of groups whose rewards are all equal",
        _uniform_groups,
        "Nothing is learned from them. Check the reward, use easier or harder prompts, or set filter_groups_enable.",
        lambda trajectory: -(trajectory.score or 0.0),
    ),
    "repetition": Detector(
        "share of repeated text",
        _of("response_repetition/mean"),
        "The model repeats itself. Check the reward for a term that pays length, and lower actor_config.lr.",
        lambda trajectory: trajectory.repetition,
    ),
    "length_drift": Detector(
        "response length, times its recent median or the inverse",
        _length_drift,
        "Read the longest and the shortest responses. A reward may pay length, or the model may stop early.",
        lambda trajectory: trajectory.response_length,
    ),
    "length_reward": Detector(
        "correlation of score and length within groups",
        _length_reward,
        "The reward pays length. Check that it scores the answer and not the amount of text.",
        lambda trajectory: trajectory.response_length,
    ),
    "evaluation_fall": Detector(
        "lower end of the best evaluation's 95 % interval minus the upper end of the last one's",
        _evaluation_fall,
        "If the reward rises, the policy exploits it: read what scores high. Else go back to the best checkpoint.",
        unit="evaluations",
    ),
}
"""By name; each has its key in `megatron_training.early_warning`."""
