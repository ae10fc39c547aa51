"""Environments, rollout functions and agents of the user's, as the docs show them, with the real engine."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.commands import ROOT, TIMEOUT_S, finish, start, steps_of

pytestmark = pytest.mark.timeout(2 * TIMEOUT_S)

VARIED = "rl_config.verifier_function=[environment,'tests/e2e/length_reward.py:sampled_digits']"


def example(name: str, folder: Path, page_name: str = "environments.md") -> Path:
    """A file that the page shows, written to a folder."""
    page = (ROOT / "docs" / page_name).read_text()
    (code,) = (c for c in re.findall(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE) if f"# {name}" in c)
    (folder / name).write_text(code)
    return folder / name


def train(workspace: Path, name: str, *overrides: str) -> tuple[list[dict[str, float]], list[dict[str, Any]]]:
    """The metrics of each step of a run, and its trajectories."""
    weights = "rl_config.verifier_weight=[1.0,1.0]"
    finish(start("train", workspace, name, "rl_config.tool_config_path=null", VARIED, weights, *overrides))
    files = sorted((workspace / "runs" / name / "trajectories").glob("step*"))
    return steps_of(workspace, name), [json.loads(line) for file in files for line in file.read_text().splitlines()]


def test_a_model_learns_in_an_environment_of_several_turns(workspace: Path) -> None:
    file = example("guess.py", workspace)
    steps, trajectories = train(
        workspace,
        "guess",
        f"rl_config.environment={file}:GuessTheNumber",
        "rl_config.environment_kwargs={largest: 3, max_guesses: 3}",
        "rl_config.turn_credit_coef=0.5",
        "generate_config.sampling_config.max_tokens=40",
    )
    assert len(steps) == 2
    assert len(trajectories) == 32
    for metrics in steps:
        # Log-probs agree, so the actor was trained on the very tokens that the engine saw.
        assert metrics["training/rollout_probs_diff_max"] < 1e-3
        assert metrics["rollout/as_sampled_share"] == 1
        assert metrics["actor/grad_norm"] > 0
        assert 0 <= metrics["reward/environment/mean"] <= 1
        assert metrics["stop_reason/environment_failed"] == 0
    assert all(t["messages"][-1]["content"].endswith("Guess my number from 1 to 3.") for t in trajectories)
    for trajectory in trajectories:
        *earlier, last = trajectory["turns"]
        hints = [message["content"] for turn in earlier for message in turn["messages"]]
        assert len(hints) == len(earlier)
        assert set(hints) <= {"Higher.", "Lower.", "Say a number."}
        if trajectory["rewards"]["environment"]:
            assert last["messages"][0]["content"] == "Right."
            assert trajectory["turn_rewards"] == [0.0] * len(earlier) + [1.0]
    assert any(len(t["turns"]) > 1 for t in trajectories)


def test_a_model_learns_in_a_rollout_function(workspace: Path) -> None:
    file = example("refine.py", workspace)
    steps, trajectories = train(
        workspace,
        "refine",
        f"rl_config.rollout_function={file}:refine",
        "rl_config.rollout_function_kwargs={rounds: 1}",
        "generate_config.sampling_config.max_tokens=40",
        "megatron_training.train_iters=1",
    )
    assert len(steps) == 1
    assert steps[0]["training/rollout_probs_diff_max"] < 1e-3
    assert steps[0]["rollout/as_sampled_share"] == 1
    assert "environment/first_was_right" in trajectories[0]["rewards"]
    assert {len(t["turns"]) for t in trajectories} == {2}


def test_a_model_learns_behind_an_agent_on_the_openai_package(workspace: Path) -> None:
    file = example("agent.py", workspace, "agents.md")
    steps, trajectories = train(
        workspace,
        "agent",
        f"rl_config.agent_function={file}:solve",
        "generate_config.sampling_config.max_tokens=40",
        "megatron_training.train_iters=1",
    )
    assert len(steps) == 1
    assert steps[0]["training/rollout_probs_diff_max"] < 1e-3
    assert steps[0]["rollout/as_sampled_share"] == 1
    assert steps[0]["actor/grad_norm"] > 0
    assert steps[0]["stop_reason/environment_failed"] == 0
    assert {t["environment"]["score"] for t in trajectories} <= {0.0, 1.0}
    assert all(turn["is_trained"] for t in trajectories for turn in t["turns"])
