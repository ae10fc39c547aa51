"""The agent loop with the real toolbox and parser, and with an engine that publishes interrupt."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from rl.chat.parsers import PARSERS
from rl.chat.renderer import Renderer, load_tokenizer
from rl.chat.self_test import check_renderer
from rl.config.schema import Config
from rl.inference.fake import FakeEngine
from rl.rollout.agent_loop import AgentLoop
from rl.rollout.group import run_group
from rl.tools.base import Tool, ToolConfig
from rl.tools.registry import Toolbox
from rl.types import Prompt, Sampling, Scores, StopReason, ToolCall, ToolStatus, Trajectory, WeightUpdate
from tests.fakes import word_tokenizer
from tests.tiny import make_tiny_tokenizer

SCHEMA = {
    "type": "function",
    "function": {
        "name": "add",
        "parameters": {
            "type": "object",
            "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
            "required": ["a", "b"],
        },
    },
}
PARSER = PARSERS["hermes"]


class Adder(Tool):
    """Adds what the row says to its sums."""

    async def create(self, trajectory_id: str, row: Mapping[str, Any] | None = None) -> int:
        return (row or {})["more"]

    def execute(self, state: int, arguments: dict) -> str:
        return str(arguments["a"] + arguments["b"] + state)


async def test_agent_loop_with_real_tools_lets_the_model_mend_its_call(tmp_path: Path):
    toolbox = Toolbox([Adder(ToolConfig(), SCHEMA)])
    renderer = Renderer(load_tokenizer(make_tiny_tokenizer(tmp_path)), "qwen_retool", toolbox.schemas)
    check_renderer(renderer, PARSER)
    calls = [ToolCall("subtract", {}), ToolCall("add", {"a": 2}), ToolCall("add", {"a": 2, "b": 3})]
    said = [PARSER.render(call) + "<|im_end|>" for call in calls] + ["\\boxed{5}<|im_end|>"]
    turns = iter([renderer.tokenizer.encode(text) for text in said])
    config = Config()
    config.rl_config.multi_turn_enable, config.rl_config.max_tool_calls = True, 3
    loop = AgentLoop(FakeEngine(lambda ids: next(turns), stop_token_ids=[2]), renderer, toolbox, PARSER, config)
    question = [{"role": "user", "content": "2 + 3?"}]
    trajectory = await loop.run(Prompt("p", question, "5", "sums", {"more": 10}), 0, Sampling(1.0, 200))

    statuses = [result.status for turn in trajectory.turns for result in turn.results]
    assert statuses == [ToolStatus.UNKNOWN_TOOL, ToolStatus.INVALID_ARGUMENTS, ToolStatus.OK]
    assert trajectory.turns[2].results[0].text == "15"
    assert (trajectory.stop_reason, trajectory.response_text) == (StopReason.FINISHED, "\\boxed{5}<|im_end|>")
    # The template's own rendering of the whole conversation is, token for token, what was put together.
    messages = [*question]
    for turn in trajectory.turns[:-1]:
        messages.append({"role": "assistant", "content": turn.text.removesuffix("<|im_end|>")})
        messages += [{"role": "tool", "content": result.text} for result in turn.results]
    (sequence,) = trajectory.sequences
    assert sequence.token_ids.tolist() == renderer.render_prompt(messages) + renderer.tokenizer.encode(said[-1])
    sampled = [i for i, m in zip(sequence.token_ids, sequence.loss_mask, strict=True) if m]
    assert renderer.decode(sampled) == "".join(said)


async def test_run_group_goes_on_over_weight_publishes():
    # Each trajectory counts on from its last token, so that a token lost or doubled by an interruption would show.
    engine = FakeEngine(lambda ids: [*range(max(ids[-1] + 1, 5), 30), 2], stop_token_ids=[2], seconds_per_token=0.002)
    loop = AgentLoop(engine, Renderer(word_tokenizer(), "empty", []), None, PARSER, Config())

    async def score(trajectory: Trajectory) -> Scores:
        return Scores(0.0)

    prompt = Prompt("p", [{"role": "user", "content": "what"}], "", "")
    running = asyncio.create_task(run_group(loop, prompt, 4, Sampling(1.0, 100), score))
    for version in (1, 2):
        while len(engine.requests) < 4 * version:
            await asyncio.sleep(0)
        await engine.update_weights(WeightUpdate(version, ()))
    group = await running
    for trajectory in group.trajectories:
        (sequence,) = trajectory.sequences
        assert sequence.token_ids.tolist() == [1, 10, 2, 3, *range(5, 30), 2]
        assert trajectory.stop_reason is StopReason.FINISHED
        versions = sequence.versions[sequence.prompt_length :]
        assert versions[-1] == 2 and (np.diff(versions) >= 0).all() and (versions >= 0).all()
        assert trajectory.turns[0].num_tokens == 26
    assert {request[2].max_tokens for request in engine.requests[:4]} == {100}
