"""Rollouts that run ahead of the training, with the real engine, actor and publishes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.commands import TIMEOUT_S, finish, start, steps_of

pytestmark = pytest.mark.timeout(2 * TIMEOUT_S)

NUM_STEPS, PROMPTS, SAMPLES = 5, 4, 4


def test_each_group_is_trained_once_within_the_bound_and_its_versions_are_those_that_were_published(
    workspace: Path,
) -> None:
    finish(
        start(
            "train", workspace, "ahead", "rl_config.tool_config_path=null", "rl_config.max_staleness=1",
            "rl_config.environment=tests/e2e/waiting_environment.py:WaitingEnvironment",
            "rl_config.environment_kwargs={longest_s: 2}", "generate_config.sampling_config.max_tokens=24",
            f"megatron_training.train_iters={NUM_STEPS}", "megatron_training.save_interval=100",
            "megatron_training.eval_before_train=false", "megatron_training.eval_after_train=false",
        )
    )  # fmt: skip
    run = workspace / "runs" / "ahead"
    steps = steps_of(workspace, "ahead")
    assert len(steps) == NUM_STEPS
    trajectories = [t for n in range(1, NUM_STEPS + 1) for t in lines_of(run / f"trajectories/step_{n:06d}.jsonl")]
    assert len({t["id"] for t in trajectories}) == NUM_STEPS * PROMPTS * SAMPLES
    assert max(metrics["rollout/staleness/max"] for metrics in steps) == 1
    publishes = sorted(
        (span["start"], span["end"])
        for file in (run / "timeline").iterdir()
        for span in json.loads(file.read_text())
        if span["name"] == "update_weights" and span["who"].startswith("rollout")
    )
    assert len(publishes) == NUM_STEPS  # and version 0 before the first step
    for number, metrics in enumerate(steps):
        for trajectory in lines_of(run / f"trajectories/step_{number + 1:06d}.jsonl"):
            begun, ended = trajectory["started_at"], trajectory["started_at"] + trajectory["wall_s"]
            oldest = sum(end < begun for _, end in publishes)
            newest = sum(start < ended for start, _ in publishes)
            assert oldest <= min(trajectory["policy_versions"])
            assert max(trajectory["policy_versions"]) <= newest
            assert 0 <= number - min(trajectory["policy_versions"]) <= 1
        assert metrics["rollout/as_sampled_share"] == 1


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]
