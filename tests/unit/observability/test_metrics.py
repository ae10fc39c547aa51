from __future__ import annotations

import pytest

from rl.observability.metrics import (
    percentile,
    rollout_metrics,
    speed_metrics,
    tool_metrics,
)
from rl.types import StopReason, ToolStatus
from tests.samples import group_of
from tests.unit.observability.examples import make_group, make_trajectory


def test_rollout_metrics_of_two_trajectories() -> None:
    first = make_trajectory(score=1.0)
    second = make_trajectory(score=0.5, index=1, stop_reason=StopReason.LENGTH)
    second.sequences[0].append_sampled([9, 9], [-1.0, -1.0], 1)
    metrics = rollout_metrics([group_of(first, second)])
    assert metrics["critic/score/mean"] == 0.75
    assert (metrics["critic/score/max"], metrics["critic/score/min"]) == (1.0, 0.5)
    assert metrics["reward/right/mean"] == 0.75
    assert metrics["response_length/mean"] == 5.0  # 4 and 6 tokens after the prompt, the tool's among them
    assert metrics["response_length/clip_ratio"] == 0.5
    assert metrics["prompt_length/max"] == 3.0
    assert metrics["num_turns/mean"] == 2.0
    assert metrics["tool_call_counts/mean"] == 1.0
    assert metrics["stop_reason/length"] == 0.5
    assert metrics["rollout/tool_wait_share"] == pytest.approx(0.2)
    assert metrics["rollout/num_trajectories"] == 2.0


def test_rollout_metrics_do_not_depend_on_order() -> None:
    groups = [make_group(score=1.0), make_group("lcm", score=0.0), make_group("lcm", score=None)]
    assert rollout_metrics(groups) == rollout_metrics(groups[::-1])


def test_rollout_metrics_without_trajectories_are_empty() -> None:
    assert rollout_metrics([]) == {}


def test_rollout_metrics_count_failed_rewards_and_leave_them_out_of_the_score() -> None:
    metrics = rollout_metrics([make_group(score=None), make_group(score=1.0)])
    assert metrics["rollout/reward_errors"] == 1.0
    assert metrics["critic/score/mean"] == 1.0


def test_rollout_metrics_count_a_response_at_the_limit_as_clipped() -> None:
    assert rollout_metrics([make_group()], max_response_length=4)["response_length/clip_ratio"] == 1.0
    assert rollout_metrics([make_group()], max_response_length=5)["response_length/clip_ratio"] == 0.0


def test_tool_metrics_count_by_status_and_tool() -> None:
    statuses = (ToolStatus.OK, ToolStatus.ERROR, ToolStatus.TIMEOUT, ToolStatus.OVER_LIMIT)
    metrics = tool_metrics(group_of(*[make_trajectory(status=status) for status in statuses]).trajectories)
    assert metrics["tools/calc/calls"] == 3.0  # the one over the limit never reached it
    assert metrics["tools/calc/errors"] == 1.0
    assert metrics["tools/calc/timeouts"] == 1.0
    assert metrics["tools/over_limit"] == 1.0
    assert metrics["tools/calc/latency_s/p50"] == pytest.approx(0.1)


def test_tool_metrics_name_an_outage_and_what_tools_return() -> None:
    down, back = make_trajectory(status=ToolStatus.UNAVAILABLE), make_trajectory()
    down.turns[0].results[0].num_failed_attempts, down.turns[0].results[0].outage_s = 7, 60.0
    back.turns[0].results[0].num_failed_attempts, back.turns[0].results[0].outage_s = 2, 3.5
    back.turns[0].results[0].metrics, back.turns[0].results[0].reward = {"num_steps": 4.0}, None
    back.turns[0].results[0].has_abandoned_thread = back.turns[0].results[0].met_open_breaker = True
    back.turns[0].results[0].has_abandoned_coroutine, back.turns[0].results[0].blocked_s = True, 4.5
    metrics = tool_metrics(group_of(down, back).trajectories)
    assert metrics["tools/calc/abandoned_coroutines"] == 1.0
    assert metrics["tools/calc/blocked_s"] == 4.5
    assert metrics["tools/calc/unavailable"] == metrics["tools/unavailable"] == 1.0
    assert metrics["tools/calc/failed_attempts"] == 9.0
    assert metrics["tools/calc/retries"] == 8.0  # 6 of the call that was given up, and 2
    assert metrics["tools/calc/breaker_waits"] == 1.0
    assert metrics["tools/calc/outage_s/max"] == 60.0
    assert metrics["tools/calc/abandoned_threads"] == 1.0
    assert metrics["tools/calc/queue_s/p95"] == 0.04
    assert metrics["tools/calc/num_steps/mean"] == 3.0
    assert metrics["tools/calc/reward/mean"] == 0.25


def test_tool_metrics_give_an_unknown_tool_no_metric_of_its_own() -> None:
    metrics = tool_metrics(group_of(make_trajectory(status=ToolStatus.UNKNOWN_TOOL)).trajectories)
    assert metrics["tools/unknown"] == 1.0
    assert not any("calc" in name for name in metrics)


def test_percentile_takes_the_nearest_rank() -> None:
    assert percentile([4.0, 1.0, 3.0, 2.0], 50) == 2.0
    assert percentile([4.0, 1.0, 3.0, 2.0], 95) == 4.0
    assert percentile([7.0], 50) == 7.0


def test_speed_metrics_of_a_step() -> None:
    metrics = speed_metrics(1000, 300, step_s=10.0, gen_s=4.0, num_devices=2)
    assert metrics == {
        "perf/total_num_tokens": 1000.0,
        "perf/time_per_step": 10.0,
        "perf/throughput": 50.0,
        "perf/gen_tokens_per_s": 75.0,
    }
    assert "perf/gen_tokens_per_s" not in speed_metrics(10, 0, 1.0, 0.0, 1)
