"""Environments of the package verifiers, unmodified. Skipped where it is not installed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rl.data.prompts import load_prompts
from rl.types import Prompt, StopReason, Trajectory
from tests.fakes import ScriptedEngine
from tests.unit.serving.parts import SAMPLING, agent_loop, make_config, saying, text_of

pytest.importorskip("verifiers", reason="the package verifiers is not installed")

from rl.integrations.verifiers import load, write_prompts

GAMES = "tests.unit.integrations.verifiers_game"
MESSAGES = [{"role": "system", "content": "Say a number."}, {"role": "user", "content": "Guess."}]
PROMPT = Prompt("p", MESSAGES, "7", "verifiers", {"row": '{"info": {"level": 2}}'})
CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 3, "b": 4}}\n</tool_call>'


async def roll_out(name: str, *texts: str, **env_args: Any) -> tuple[Trajectory, ScriptedEngine]:
    engine = ScriptedEngine([saying(text) for text in texts])
    config = make_config("plain", max_total_response_length=2000)
    config.rl_config.agent_function = "rl.integrations.verifiers:solve"
    config.rl_config.agent_function_kwargs = {"env_id": f"{GAMES}:{name}", "env_args": env_args}
    async with agent_loop(engine, config) as loop:
        return await loop.run(PROMPT, 0, SAMPLING), engine


async def test_a_multi_turn_environment_is_trained_on_what_was_sampled():
    trajectory, engine = await roll_out("load_game", "3", "9", "7")
    assert (trajectory.failure, trajectory.stop_reason) == (None, StopReason.FINISHED)
    assert trajectory.environment == {"found": 1.0, "turns": 3.0, "num_turns": 3.0, "score": 1.0}
    (sequence,) = trajectory.sequences
    assert text_of(sequence).endswith(
        "9<|im_end|>\n<|im_start|>user\nLower.<|im_end|>\n<|im_start|>assistant\n7<|im_end|>"
    )
    for request in engine.requests:
        assert sequence.token_ids[: len(request.token_ids)].tolist() == request.token_ids


async def test_the_environments_limits_end_it():
    trajectory, _ = await roll_out("load_game", "3", "4", max_turns=2)
    assert trajectory.environment == {"found": 0.0, "turns": 2.0, "num_turns": 2.0, "score": 0.0}


async def test_a_tool_environment_calls_its_tools():
    trajectory, _ = await roll_out("load_tools", CALL, "7")
    assert trajectory.failure is None
    assert trajectory.environment is not None
    assert (trajectory.environment["score"], trajectory.environment["total_tool_calls"]) == (1.0, 1.0)


@pytest.mark.parametrize(
    ("name", "reason"),
    [("load_game", "ValueError: invalid literal"), ("load_groups", "compares the rollouts of a group")],
)
async def test_what_the_environment_raises_ends_one_trajectory(name: str, reason: str):
    trajectory, _ = await roll_out(name, "seven")
    assert trajectory.stop_reason is StopReason.ENVIRONMENT_FAILED
    assert reason in (trajectory.failure or "")


def test_the_datasets_of_an_environment_become_prompts(tmp_path: Path):
    (file,) = write_prompts(load(f"{GAMES}:load_game", "{}"), tmp_path)
    (prompt,) = load_prompts(file)
    assert (prompt.messages, prompt.ground_truth) == (MESSAGES, "7")
    row = json.loads(prompt.extra["row"])
    assert (row["answer"], row["info"], row["example_id"]) == ("7", {"level": 2}, 0)
