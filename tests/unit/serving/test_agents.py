"""Agent functions on the real `openai` package, over HTTP, in real processes, with a scripted engine."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from rl.chat.parsers import PARSERS
from rl.chat.renderer import Renderer
from rl.config.schema import Config
from rl.errors import ConfigError
from rl.rollout.agent_loop import AgentLoop
from rl.rollout.headers import headers_of, rows_of
from rl.serving.agents import load_agent_function
from rl.types import Generation, StopReason, Trajectory
from tests.fakes import ScriptedEngine, answering
from tests.unit.serving.agents import ADD
from tests.unit.serving.parts import (
    CALL,
    HEAD,
    PROMPT,
    SAMPLING,
    agent_loop,
    make_config,
    run,
    saying,
    text_of,
    tokenizer,
)


async def test_an_agent_samples_the_same_tokens_as_the_agent_loop_with_the_same_tool():
    script = [saying(CALL), saying("3 ")]
    own = await run("with_a_tool", script)
    config = Config()
    config.rl_config.multi_turn_enable = True
    parser = PARSERS["hermes"].for_tools([ADD])
    renderer = Renderer(tokenizer(), "empty", [ADD], parser)
    built_in = AgentLoop(ScriptedEngine(script), renderer, answering("two"), parser, config)
    other = await built_in.run(PROMPT, 0, SAMPLING)
    (sequence,), (expected,) = own.sequences, other.sequences
    assert text_of(sequence).endswith(
        f"{CALL}<|im_end|>\n<|im_start|>user\n<tool_response>\ntwo\n</tool_response><|im_end|>\n"
        "<|im_start|>assistant\n3 <|im_end|>"
    )
    assert list(sequence.token_ids) == list(expected.token_ids)
    assert list(sequence.loss_mask) == list(expected.loss_mask)
    assert sequence.num_sampled == len(script[0].token_ids) + len(script[1].token_ids)
    assert (own.stop_reason, own.environment) == (StopReason.FINISHED, {"score": 1.0})
    assert [turn.calls[0].arguments if turn.calls else None for turn in own.turns] == [{"a": 1}, None]


async def test_tokens_of_another_temperature_are_not_trained_on():
    trajectory = await run("plain", [saying("think"), saying("answer"), saying("3")])
    assert trajectory.environment == {"score": 0.5, "texts": '["think", "answer"]', "turn_scores": [0.0, 1.0, 2.0]}
    assert [text_of(s) for s in trajectory.sequences] == [f"{HEAD}{w}<|im_end|>" for w in ("think", "answer", "3")]
    assert [s.num_sampled > 0 for s in trajectory.sequences] == [True, True, False]
    assert [turn.is_trained for turn in trajectory.turns] == [True, True, False]
    (header,), _ = headers_of([trajectory.without_tokens()], rows_of([trajectory]))
    assert header.turn_tokens == [trajectory.turns[0].num_tokens, trajectory.turns[1].num_tokens, 0]
    assert len(header.rows) == 2


async def test_what_an_agent_raises_ends_one_trajectory():
    trajectory = await run("raises", [])
    assert trajectory.stop_reason is StopReason.ENVIRONMENT_FAILED
    assert trajectory.failure == "tests.unit.serving.agents:raises: KeyError: 'no such room'"


async def test_a_result_that_is_no_score_is_told():
    trajectory = await run("returns_text", [])
    assert trajectory.failure is not None and "returned 'good' as score" in trajectory.failure


async def test_an_agent_that_does_not_expect_the_end_of_its_budget_has_the_score_0():
    trajectory = await run("endless", [saying("3")] * 9, max_total_response_length=30)
    # 2 tokens are sampled, 13 are between two turns: the third turn has no room in 30.
    assert [turn.num_tokens for turn in trajectory.turns] == [2, 2]
    assert (trajectory.stop_reason, trajectory.response_length) == (StopReason.LENGTH, 2 + 13 + 2)
    assert trajectory.environment == {"score": 0.0}


async def test_an_agent_that_blocks_its_process_is_killed_and_the_next_one_runs(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("rl.serving.agents._GRACE_S", 0.2)
    async with agent_loop(ScriptedEngine([]), make_config("blocks_or_not", trajectory_timeout=3.0)) as loop:
        blocked = await loop.run(replace(PROMPT, id="blocks"), 0, SAMPLING)
        following = await loop.run(PROMPT, 0, SAMPLING)
    assert (blocked.stop_reason, following.stop_reason) == (StopReason.DEADLINE, StopReason.FINISHED)


async def test_much_data_for_a_blocked_process_holds_up_nothing(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("rl.serving.agents._GRACE_S", 0.2)
    large = replace(PROMPT, id="blocks", extra={"text": "x" * 3_000_000})
    async with agent_loop(ScriptedEngine([]), make_config("blocks_or_not", trajectory_timeout=3.0)) as loop:
        runs = await asyncio.gather(*(loop.run(large, i, SAMPLING) for i in range(3)))
    assert {run.stop_reason for run in runs} <= {StopReason.DEADLINE, StopReason.ENVIRONMENT_FAILED}


async def test_requests_that_outlive_their_agent_add_no_tokens(tmp_path: Path):
    asked = tmp_path / "asked"

    class Engine(ScriptedEngine):
        async def generate(self, *given: Any, **named: Any) -> Generation:
            if self.requests:
                asked.touch()
            return await super().generate(*given, **named)

    engine = Engine([saying("3")], hangs=True)
    async with agent_loop(engine, make_config("leaves_a_request")) as loop:
        trajectory = await loop.run(replace(PROMPT, extra={"asked": str(asked)}), 0, SAMPLING)
    assert (trajectory.stop_reason, trajectory.environment) == (StopReason.FINISHED, {"score": 1.0})
    assert [sequence.num_sampled for sequence in trajectory.sequences if sequence.num_sampled] == [2]


async def test_scores_of_turns_must_be_as_many_as_the_answers():
    trajectory = await run("too_few_scores", [saying("3"), saying("4")])
    assert trajectory.failure is not None and "returned 1 turn_scores, not one for each of 2" in trajectory.failure


async def test_a_turn_that_the_agent_gave_up_has_no_score():
    class Engine(ScriptedEngine):
        asked = False

        async def generate(self, *given: Any, **named: Any) -> Generation:
            if not self.asked:
                self.asked = True
                await asyncio.Event().wait()
            return saying("3")

    async with agent_loop(Engine([]), make_config("gives_up_once")) as loop:
        trajectory = await loop.run(PROMPT, 0, SAMPLING)
    assert trajectory.environment is not None
    given = trajectory.environment["turn_scores"]
    assert dict(zip((turn.num_tokens for turn in trajectory.turns), given, strict=True)) == {0: 0.0, 2: 0.25}


async def test_a_process_that_dies_is_no_fault_of_the_model():
    trajectory = await run("dies", [])
    assert (trajectory.stop_reason, trajectory.environment) == (StopReason.ENVIRONMENT_FAILED, None)


async def test_a_process_that_died_between_two_agents_is_started_again():
    async with agent_loop(ScriptedEngine([]), make_config("starts_a_child")) as loop:
        first = await loop.run(PROMPT, 0, SAMPLING)
        child = psutil.Process(pid_of(first)).parent()
        assert child is not None
        os.kill(child.pid, signal.SIGKILL)
        later = [await loop.run(PROMPT, i, SAMPLING) for i in range(2)]
    assert later[-1].stop_reason is StopReason.FINISHED
    # What an agent started ends with its process.
    assert not [p for p in (pid_of(t) for t in (first, *later) if t.environment) if is_running(p)]


def pid_of(trajectory: Trajectory) -> int:
    assert trajectory.environment is not None
    return int(trajectory.environment["pid"].removeprefix("pid "))


def is_running(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


async def test_a_long_error_is_cut():
    trajectory = await run("raises_much", [])
    assert trajectory.failure is not None and len(trajectory.failure) < 3000


async def test_an_agent_reaches_the_endpoint_past_a_proxy(monkeypatch: pytest.MonkeyPatch):
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert (await run("waits", [saying("3")])).stop_reason is StopReason.FINISHED


async def test_the_deadline_ends_an_agent_that_waits_for_the_model():
    engine = ScriptedEngine([], hangs=True)
    async with agent_loop(engine, make_config("waits", trajectory_timeout=4.0)) as loop:
        trajectory = await loop.run(PROMPT, 0, SAMPLING)
    assert (trajectory.stop_reason, len(engine.requests)) == (StopReason.DEADLINE, 1)


async def test_a_dead_engine_is_told_whatever_the_agent_does():
    assert (await run("waits", [])).stop_reason is StopReason.ENGINE_FAILED


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("tests.unit.serving.agents:nothing", "nothing"),
        ("tests.unit.serving.agents:AgentClient", "is a class"),
        ("tests.unit.serving.agents:json", "not a class or function"),
    ],
)
def test_a_name_that_is_no_agent_is_refused(name: str, expected: str):
    config = make_config("plain", agent_function=name)
    with pytest.raises(ConfigError, match=expected):
        load_agent_function(config.rl_config)


def test_keyword_arguments_that_an_agent_lacks_are_refused():
    with pytest.raises(ConfigError, match="answer"):
        load_agent_function(make_config("with_a_tool", agent_function_kwargs={"answr": json.dumps(1)}).rl_config)
