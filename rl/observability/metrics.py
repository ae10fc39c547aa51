"""Metrics of rollouts and speed: pure functions from trajectories and times to names and numbers.

Names follow verl's where verl has one. docs/metrics.md gives formula, healthy range and meaning of each.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence

from rl.batches import GroupHeader, TrajectoryHeader
from rl.types import Start, StopReason, ToolResult, ToolStatus

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
    metrics |= sequence_metrics(trajectories)
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


def sequence_metrics(trajectories: Sequence[TrajectoryHeader]) -> dict[str, float]:
    """Whether tokens are trained as they were sampled, and how many sequences they are in.

    Args:
        trajectories: At least one.

    Returns:
        `rollout/as_sampled_share`, if anything was sampled; mean and largest number of `rollout/sequences` and
        `rollout/branches`; and the number of sequences by the reason why they began, `rollout/new_sequences/<reason>`,
        without the first of each trajectory.
    """
    num_trained = sum(t.num_sampled for t in trajectories)
    metrics = (
        {"rollout/as_sampled_share": sum(t.num_as_sampled for t in trajectories) / num_trained} if num_trained else {}
    )
    branches = [sum(start.branches_from is not None for start in t.starts) for t in trajectories]
    for name, counts in (("sequences", [len(t.rows) for t in trajectories]), ("branches", branches)):
        metrics |= {f"rollout/{name}/mean": _mean(counts), f"rollout/{name}/max": float(max(counts))}
    why = Counter(start.why for t in trajectories for start in t.starts)
    return metrics | {
        f"rollout/new_sequences/{reason}": float(why[reason]) for reason in Start if reason != Start.FIRST
    }


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
