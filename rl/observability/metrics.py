"""Metrics of rollouts, evaluations and speed: pure functions from trajectories and times to names and numbers.

Names follow verl's where verl has one. docs/metrics.md gives formula, healthy range and meaning of each.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence

from rl.batches import GroupHeader, TrajectoryHeader
from rl.types import INFRASTRUCTURE_FAILURES, StopReason, ToolResult, ToolStatus

_Z_95 = 1.959963984540054
_CORRECT = 1.0 - 1e-6

_NOT_A_TOOL = frozenset({ToolStatus.PARSE_ERROR, ToolStatus.IN_THOUGHT, ToolStatus.UNKNOWN_TOOL, ToolStatus.OVER_LIMIT})
"""Results without a tool: their name is what the model wrote, so each misspelling would become a metric."""

_COUNTED = {
    ToolStatus.PARSE_ERROR: "tools/parse_errors",
    ToolStatus.IN_THOUGHT: "tools/in_thought",
    ToolStatus.UNKNOWN_TOOL: "tools/unknown",
    ToolStatus.INVALID_ARGUMENTS: "tools/invalid_arguments",
    ToolStatus.OVER_LIMIT: "tools/over_limit",
    ToolStatus.UNAVAILABLE: "tools/unavailable",
}


def rollout_metrics(groups: Sequence[GroupHeader], *, max_response_length: int | None = None) -> dict[str, float]:
    """All metrics that follow from the trajectories of a step.

    Args:
        groups: Scored groups, uninformative ones too.
        max_response_length: Tokens from which a response counts as clipped; None counts those that ended in
            `StopReason.LENGTH` alone.

    Returns:
        A value for each name; empty without trajectories.
    """
    trajectories = [t for g in groups for t in g.trajectories]
    if not trajectories:
        return {}
    metrics = {
        "rollout/num_groups": float(len(groups)),
        "rollout/num_trajectories": float(len(trajectories)),
        "rollout/reward_errors": float(sum(t.reward_error is not None for t in trajectories)),
        "rollout/tool_wait_share": tool_wait_share(trajectories),
        "rollout/unread_calls": float(sum(t.num_unread_calls for t in trajectories)),
        "rollout/untrained_tokens": float(sum(t.num_untrained for t in trajectories)),
    }
    metrics |= spread("prompt_length", [t.prompt_length for t in trajectories])
    metrics |= spread("response_length", [t.response_length for t in trajectories])
    clipped = sum(_is_clipped(t, max_response_length) for t in trajectories)
    metrics["response_length/clip_ratio"] = clipped / len(trajectories)
    metrics |= spread("response_repetition", [t.repetition for t in trajectories])
    metrics |= spread("num_turns", [len(t.turn_tokens) for t in trajectories])
    metrics |= spread("tool_call_counts", [t.num_tool_calls for t in trajectories])
    metrics |= stop_reason_metrics(trajectories)
    metrics |= reward_metrics(trajectories)
    metrics |= tool_metrics(trajectories)
    return metrics


def spread(name: str, values: Sequence[float]) -> dict[str, float]:
    """Mean, largest and smallest of some values.

    Args:
        name: Prefix of the metrics.
        values: At least one.

    Returns:
        `<name>/mean`, `<name>/max` and `<name>/min`.
    """
    return {
        f"{name}/mean": sum(values) / len(values),
        f"{name}/max": float(max(values)),
        f"{name}/min": float(min(values)),
    }


def stop_reason_metrics(trajectories: Sequence[TrajectoryHeader]) -> dict[str, float]:
    """Share of trajectories for each stop reason, zeros included."""
    return {
        f"stop_reason/{reason}": sum(t.stop_reason is reason for t in trajectories) / len(trajectories)
        for reason in StopReason
    }


def reward_metrics(trajectories: Sequence[TrajectoryHeader]) -> dict[str, float]:
    """Spread of the scores, and the mean of each reward function, over the trajectories that have one."""
    scores = [t.score for t in trajectories if t.score is not None]
    metrics = spread("critic/score", scores) if scores else {}
    by_name: dict[str, list[float]] = defaultdict(list)
    for trajectory in trajectories:
        for name, value in trajectory.rewards.items():
            by_name[name].append(value)
    return metrics | {f"reward/{name}/mean": sum(v) / len(v) for name, v in sorted(by_name.items())}


def tool_metrics(trajectories: Sequence[TrajectoryHeader]) -> dict[str, float]:
    """Outcomes of the calls, over all tools and for each.

    Latency is queue plus run time of executed calls, in seconds; percentiles are nearest-rank.
    """
    results = [r for t in trajectories for r in t.results]
    metrics = {name: float(sum(r.status is status for r in results)) for status, name in _COUNTED.items()}
    metrics["tools/truncated"] = float(sum(r.is_truncated for r in results))
    by_tool: dict[str, list[ToolResult]] = defaultdict(list)
    for result in results:
        if result.status not in _NOT_A_TOOL:
            by_tool[result.name].append(result)
    for tool, answers in sorted(by_tool.items()):
        metrics |= _one_tool_metrics(f"tools/{tool}", answers)
    return metrics


def _one_tool_metrics(name: str, answers: Sequence[ToolResult]) -> dict[str, float]:
    """Metrics of the results of one tool, at least one."""
    metrics = {
        f"{name}/calls": float(len(answers)),
        f"{name}/errors": float(sum(r.status is ToolStatus.ERROR for r in answers)),
        f"{name}/timeouts": float(sum(r.status is ToolStatus.TIMEOUT for r in answers)),
        f"{name}/unavailable": float(sum(r.status is ToolStatus.UNAVAILABLE for r in answers)),
        f"{name}/failed_attempts": float(sum(r.num_failed_attempts for r in answers)),
        f"{name}/retries": float(sum(_num_retries(r) for r in answers)),
        f"{name}/breaker_waits": float(sum(r.met_open_breaker for r in answers)),
        f"{name}/outage_s/max": max(r.outage_s for r in answers),
        f"{name}/abandoned_threads": float(sum(r.has_abandoned_thread for r in answers)),
        f"{name}/abandoned_coroutines": float(sum(r.has_abandoned_coroutine for r in answers)),
        f"{name}/blocked_s": sum(r.blocked_s for r in answers),
    }
    executed = [r for r in answers if r.status is not ToolStatus.INVALID_ARGUMENTS]
    if executed:
        latencies = [r.queue_s + r.run_s for r in executed]
        metrics[f"{name}/latency_s/p50"] = percentile(latencies, 50)
        metrics[f"{name}/latency_s/p95"] = percentile(latencies, 95)
        metrics[f"{name}/queue_s/p95"] = percentile([r.queue_s for r in executed], 95)
    if rewards := [r.reward for r in answers if r.reward is not None]:
        metrics[f"{name}/reward/mean"] = _mean(rewards)
    own: dict[str, list[float]] = defaultdict(list)
    for answer in answers:
        for key, value in answer.metrics.items():
            own[key].append(value)
    return metrics | {f"{name}/{key}/mean": _mean(values) for key, values in sorted(own.items())}


def _num_retries(result: ToolResult) -> int:
    """Failed attempts that were retried: all but the last of an unavailable call."""
    return max(0, result.num_failed_attempts - (result.status is ToolStatus.UNAVAILABLE))


def tool_wait_share(trajectories: Sequence[TrajectoryHeader]) -> float:
    """Time that trajectories waited for tools, divided by their wall time."""
    lived = sum(t.wall_s for t in trajectories)
    return sum(t.tool_s for t in trajectories) / lived if lived > 0 else 0.0


def evaluation_metrics(groups: Sequence[GroupHeader]) -> dict[str, float]:
    """Accuracy and rewards on held-out prompts, per data source and over all.

    A trajectory is correct when the first reward of `verifier_function` gave it 1; one whose reward failed is not.
    mean@k is the mean over questions of the mean over a question's k trajectories. The 95 % interval is Wilson's for
    that mean and the number of questions.

    Args:
        groups: A scored group for each held-out prompt.

    Returns:
        `val-core/<source>/<metric>/mean@k` for the metric `acc` and each reward, over all sources together under the
        source `all`, with `ci95_low` and `ci95_high` for `acc`, and `val-aux/*` on lengths and tool use; empty without
        trajectories.
    """
    groups = [g for g in groups if g.trajectories]
    if not groups:
        return {}
    by_source: dict[str, list[GroupHeader]] = {"all": list(groups)}
    for group in sorted(groups, key=lambda g: g.prompt.data_source):
        by_source.setdefault(group.prompt.data_source, []).append(group)
    metrics: dict[str, float] = {}
    for source, members in by_source.items():
        k = max(len(g.trajectories) for g in members)
        accuracy = _mean([_mean([float(is_correct(t)) for t in g.trajectories]) for g in members])
        low, high = wilson_interval(accuracy, len(members))
        metrics[f"val-core/{source}/acc/mean@{k}"] = accuracy
        metrics[f"val-core/{source}/acc/ci95_low"], metrics[f"val-core/{source}/acc/ci95_high"] = low, high
        metrics[f"val-core/{source}/num_questions"] = float(len(members))
        names = sorted({name for g in members for t in g.trajectories for name in t.rewards})
        for name in names:
            values = [_mean([t.rewards.get(name, 0.0) for t in g.trajectories]) for g in members]
            metrics[f"val-core/{source}/{name}/mean@{k}"] = _mean(values)
    trajectories = [t for g in groups for t in g.trajectories]
    metrics["val-aux/num_turns/mean"] = _mean([float(len(t.turn_tokens)) for t in trajectories])
    metrics["val-aux/tool_call_counts/mean"] = _mean([float(t.num_tool_calls) for t in trajectories])
    metrics["val-aux/response_length/mean"] = _mean([float(t.response_length) for t in trajectories])
    metrics["val-aux/infrastructure_failures"] = float(
        sum(t.stop_reason in INFRASTRUCTURE_FAILURES for t in trajectories)
    )
    metrics["val-aux/reward_errors"] = float(sum(t.reward_error is not None for t in trajectories))
    return metrics


def is_correct(trajectory: TrajectoryHeader) -> bool:
    """Whether the first reward is 1; False if a reward failed."""
    first = next(iter(trajectory.rewards.values()), None)
    return first is not None and trajectory.reward_error is None and first >= _CORRECT


def wilson_interval(share: float, num: int) -> tuple[float, float]:
    """95 % confidence interval of a share.

    (p + z²/2n ± z sqrt(p(1-p)/n + z²/4n²)) / (1 + z²/n) with z = 1.96.

    Args:
        share: The observed share, 0 to 1.
        num: Number of observations, at least 1.

    Returns:
        Lower and upper end.

    Source: Wilson 1927, doi:10.1080/01621459.1927.10502953.
    """
    z2 = _Z_95**2
    middle = share + z2 / (2 * num)
    half = _Z_95 * math.sqrt(share * (1 - share) / num + z2 / (4 * num**2))
    return max(0.0, (middle - half) / (1 + z2 / num)), min(1.0, (middle + half) / (1 + z2 / num))


def speed_metrics(
    num_tokens: float, num_sampled: float, step_s: float, gen_s: float, num_devices: int
) -> dict[str, float]:
    """Tokens and time of a step.

    Args:
        num_tokens: Tokens of all samples, prompts included.
        num_sampled: Tokens that the model sampled.
        step_s: Seconds of the whole step.
        gen_s: Seconds of it spent on rollouts; 0 without any.
        num_devices: Devices of the actor.

    Returns:
        `perf/*`; throughput is tokens per second and device.
    """
    metrics = {"perf/total_num_tokens": float(num_tokens), "perf/time_per_step": step_s}
    if step_s > 0:
        metrics["perf/throughput"] = num_tokens / step_s / max(1, num_devices)
    if gen_s > 0:
        metrics["perf/gen_tokens_per_s"] = num_sampled / gen_s
    return metrics


def percentile(values: Sequence[float], percent: float) -> float:
    """Nearest-rank percentile: the smallest value with at least `percent` % of the values at or below it."""
    ordered = sorted(values)
    return float(ordered[max(0, math.ceil(percent / 100 * len(ordered)) - 1)])


def num_tokens(groups: Sequence[GroupHeader]) -> int:
    """Tokens of all sequences with sampled tokens, prompts included."""
    return sum(row.length for g in groups for t in g.trajectories for row in t.rows)


def _is_clipped(trajectory: TrajectoryHeader, max_response_length: int | None) -> bool:
    if trajectory.stop_reason is StopReason.LENGTH:
        return True
    return max_response_length is not None and trajectory.response_length >= max_response_length


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
