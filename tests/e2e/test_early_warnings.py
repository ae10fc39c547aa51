"""Runs made bad on purpose, on the real engine and the real actor: each is caught by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.e2e.commands import TIMEOUT_S, finish, start, steps_of

pytestmark = pytest.mark.timeout(2 * TIMEOUT_S)


def raised(workspace: Path, name: str, *overrides: str) -> dict[str, dict[str, object]]:
    """The warnings of a run in one process, by name."""
    patience = "megatron_training.early_warning.patience=2"
    output = finish(start("train", workspace, name, "rl_config.in_process=true", patience, *overrides))
    path = workspace / "runs" / name / "warnings.jsonl"
    found = {line["name"]: line for line in map(json.loads, path.read_text().splitlines())} if path.exists() else {}
    for warning in found:
        assert f"{warning}: " in output  # it is told where the user looks
    return found


def test_a_parser_of_another_format_and_a_reward_of_length_are_caught(workspace: Path, cold_started: Path) -> None:
    found = raised(
        workspace,
        "deaf",
        f"actor_config.load={cold_started}",
        "rl_config.tool_parser_format=text_environment",
        "rl_config.verifier_function=[tests/e2e/length_reward.py:pays_length]",
    )
    assert {"unread_calls", "length_reward"} <= found.keys()
    assert found["length_reward"]["value"] > 0.99
    for name in ("unread_calls", "length_reward"):
        assert found[name]["trajectories"]
        assert [step[f"warnings/{name}"] for step in steps_of(workspace, "deaf")] == [0.0, 1.0]


def test_a_learning_rate_a_hundred_times_too_high_is_caught(workspace: Path, cold_started: Path) -> None:
    """The cold start learned at 0.003. One update at 0.3 leaves a random policy, whose answers do not end."""
    found = raised(
        workspace,
        "hot",
        f"actor_config.load={cold_started}",
        "actor_config.lr=0.3",
        "megatron_training.train_iters=3",
    )
    assert {"entropy_rise", "clipped_responses"} <= found.keys()
    assert found["clipped_responses"]["trajectories"]
