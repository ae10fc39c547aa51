from __future__ import annotations

import asyncio

import pytest

from rl.chat.parsers import PARSERS
from rl.chat.renderer import Renderer
from rl.config.schema import Config
from rl.errors import RolloutError
from rl.rollout.agent_loop import AgentLoop
from rl.rollout.group import run_group
from rl.types import Generation, Prompt, Sampling, Scores, StopReason, Trajectory
from tests.fakes import ScriptedEngine, said, word_tokenizer

PROMPT = Prompt("p", [{"role": "user", "content": "what"}], "42", "test")


def make_loop(engine: ScriptedEngine) -> AgentLoop:
    return AgentLoop(engine, Renderer(word_tokenizer(), "empty", []), None, PARSERS["hermes"], Config())


class OutOfOrderEngine(ScriptedEngine):
    """Sample 0 waits until sample 1 has been scored; sample 2 meets a dead engine."""

    def __init__(self) -> None:
        super().__init__([])
        self.is_second_scored = asyncio.Event()

    async def generate(self, token_ids: list[int], sampling: Sampling, *, session_id: str) -> Generation:
        if session_id == "p/0":
            await self.is_second_scored.wait()
        if session_id == "p/2":
            raise RolloutError("engine 0: died. See its log.")
        return said([14, 2])


async def test_run_group_scores_each_trajectory_when_it_ends_and_keeps_their_order():
    engine = OutOfOrderEngine()
    scored = []

    async def score(trajectory: Trajectory) -> Scores:
        scored.append(trajectory.id)
        engine.is_second_scored.set()
        return Scores(1.0)

    async with asyncio.timeout(5):
        group = await run_group(make_loop(engine), PROMPT, 3, Sampling(1.0, 8), score)
    assert scored == ["p/1", "p/0"]
    assert [t.id for t in group.trajectories] == ["p/0", "p/1", "p/2"]
    assert [t.score for t in group.trajectories] == [1.0, 1.0, None]
    assert group.trajectories[2].stop_reason is StopReason.ENGINE_FAILED


async def test_run_group_lets_a_bug_through():
    async def score(trajectory: Trajectory) -> Scores:
        raise KeyError("a bug")

    with pytest.raises(ExceptionGroup) as caught:
        await run_group(make_loop(ScriptedEngine([said([2])])), PROMPT, 1, Sampling(1.0, 8), score)
    assert caught.group_contains(KeyError, match="a bug")
