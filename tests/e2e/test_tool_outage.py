"""A real sandbox is killed while trajectories use it, and comes back: nothing is lost, and the metrics tell."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from rl.config.schema import Config
from rl.inference.fake import FakeEngine
from rl.observability.metrics import rollout_metrics
from rl.rollout.agent_loop import AgentLoop
from rl.rollout.dialog import Dialog, load_dialog
from rl.rollout.group import run_group
from rl.types import Prompt, Sampling, StopReason, ToolCall, Trajectory
from tests.tiny import make_tiny_tokenizer

ROOT = Path(__file__).resolve().parents[2]
NUM_TRAJECTORIES, NUM_CALLS = 8, 3
PROGRAM = "import time\ntime.sleep(0.2)\nprint(6 * 7)"


class Sandbox:
    """A sandbox on a port of its own, which can be killed and started again."""

    def __init__(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port: int = probe.getsockname()[1]
        self.start()

    def start(self) -> None:
        command = [sys.executable, "-m", "rl", "sandbox", "--port", str(self.port), "--workers", "4"]
        self.process = subprocess.Popen(command, cwd=ROOT, start_new_session=True)

    def kill(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(10)


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    server = Sandbox()
    yield server
    server.kill()


def speaking(dialog: Dialog) -> FakeEngine:
    """An engine that calls the code interpreter in every turn but the last."""
    tokenizer, (end,) = dialog.renderer.tokenizer, dialog.renderer.end_of_turn_ids
    call = dialog.parser.render(ToolCall("code_interpreter", {"code": PROGRAM}))
    first = dialog.renderer.render_prompt(PROMPT.messages).count(end)

    def say(token_ids: list[int]) -> list[int]:
        num_turns = (token_ids.count(end) - first) // 2  # each ends once, and so does the tool's
        text = call if num_turns < NUM_CALLS else "The answer is \\boxed{42}."
        return [*tokenizer.encode(text, add_special_tokens=False), end]

    return FakeEngine(say, stop_token_ids={end})


PROMPT = Prompt("train-1", [{"role": "user", "content": "What is 6 * 7?"}], "42", "test")


async def test_sandbox_killed_and_restarted_loses_no_trajectory(
    sandbox: Sandbox, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = Config()
    config.megatron_training.tokenizer_name_or_path = str(make_tiny_tokenizer(tmp_path))
    rl = config.rl_config
    rl.multi_turn_enable, rl.max_tool_calls, rl.max_total_response_length = True, NUM_CALLS, 1500
    rl.tool_config_path = str(ROOT / "configs/tools/retool_config.yaml")
    url = f"http://127.0.0.1:{sandbox.port}/run_code"
    dialog = load_dialog(config, tool_overrides={"code_interpreter": {"sandbox_fusion_url": url}})
    assert dialog.toolbox is not None
    engine = speaking(dialog)

    async def score(trajectory: Trajectory) -> None:
        trajectory.score = 1.0

    loop = AgentLoop(engine, dialog.renderer, dialog.toolbox, dialog.parser, config)
    step = asyncio.ensure_future(run_group(loop, PROMPT, NUM_TRAJECTORIES, Sampling(1.0, 500), score))
    async with asyncio.timeout(120):
        while len(engine.requests) <= NUM_TRAJECTORIES:  # until some are in their second turn
            await asyncio.sleep(0.01)
        sandbox.kill()
        while "Calls wait until its service answers" not in caplog.text:
            await asyncio.sleep(0.01)
        sandbox.start()
        group = await step
        await dialog.toolbox.close()
    assert [t.stop_reason for t in group.trajectories] == [StopReason.FINISHED] * NUM_TRAJECTORIES
    texts = [result.text for t in group.trajectories for turn in t.turns for result in turn.results]
    assert texts == ["42"] * NUM_TRAJECTORIES * NUM_CALLS
    metrics = rollout_metrics([group])
    assert metrics["stop_reason/finished"] == 1.0
    assert metrics["critic/score/mean"] == 1.0
    assert metrics["tools/unavailable"] == metrics["tools/code_interpreter/unavailable"] == 0.0
    assert metrics["tools/code_interpreter/failed_attempts"] >= 5.0
    assert metrics["tools/code_interpreter/outage_s/max"] > 0.0
    assert "its service answers again" in caplog.text
