"""An environment on a real OpenEnv server. Skipped where the package openenv is not installed."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from rl.chat.parsers import PARSERS
from rl.chat.renderer import Renderer
from rl.config.schema import Config
from rl.integrations.openenv import OpenEnv, OpenEnvError
from rl.rollout.agent_loop import AgentLoop
from rl.rollout.environment_code import load_environment
from rl.types import Prompt, Sampling, StopReason, Trajectory
from tests import chat_templates
from tests.chat_templates import byte_level
from tests.fakes import ScriptedEngine, said

pytest.importorskip("openenv", reason="the package openenv is not installed")

import uvicorn
from fastmcp import FastMCP
from openenv.core.env_server import Action, Environment, Observation, State, create_fastapi_app
from openenv.core.env_server.mcp_environment import MCPEnvironment
from openenv.core.env_server.mcp_types import CallToolAction, CallToolObservation

PROMPT = Prompt("p", [{"role": "user", "content": "Play."}], "7", "test", {"number": 7})
RENDERER = Renderer(byte_level(chat_templates.CHATML), "empty", [])


class Guess(Action):
    number: int


class Hint(Observation):
    hint: str


class Game(Environment[Guess, Hint, State]):
    """Guess the number; its start comes from the row or the seed."""

    SUPPORTS_CONCURRENT_SESSIONS = True

    def reset(self, seed: int | None = None, episode_id: str | None = None, number: int | None = None) -> Hint:
        self._number = number if number is not None else 5
        return Hint(hint="From 1 to 9.")

    def step(self, action: Guess, timeout_s: float | None = None, **kwargs: Any) -> Hint:
        if action.number < 0:
            raise KeyError("no such number")
        right = action.number == self._number
        return Hint(hint="Right." if right else "Wrong.", reward=float(right), done=right)

    @property
    def state(self) -> State:
        return State()


class ToolGame(MCPEnvironment):
    """The same by a call of an MCP tool."""

    SUPPORTS_CONCURRENT_SESSIONS = True

    def __init__(self) -> None:
        server = FastMCP("game")

        @server.tool
        def guess(number: int) -> str:
            """Guess a number."""
            return "Right." if number == 7 else "Wrong."

        super().__init__(server)

    def reset(self, seed: int | None = None, episode_id: str | None = None, **kwargs: Any) -> Observation:
        return Observation()

    def _step_impl(self, action: Any, timeout_s: float | None = None, **kwargs: Any) -> Observation:
        raise NotImplementedError

    def step(self, action: Any, timeout_s: float | None = None, **kwargs: Any) -> Observation:
        return self._rewarded(super().step(action, timeout_s, **kwargs))

    async def step_async(self, action: Any, timeout_s: float | None = None, **kwargs: Any) -> Observation:
        return self._rewarded(await super().step_async(action, timeout_s, **kwargs))

    def _rewarded(self, observation: Observation) -> Observation:
        observation.done = "Right." in str(observation)
        observation.reward = float(observation.done)
        return observation

    @property
    def state(self) -> State:
        return State()


@contextmanager
def serving(environment: Any, action: Any, observation: Any, max_concurrent_envs: int = 8) -> Iterator[str]:
    app = create_fastapi_app(environment, action, observation, max_concurrent_envs=max_concurrent_envs)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive(), "the server did not start"
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(10)


@pytest.fixture(scope="module")
def game() -> Iterator[str]:
    with serving(Game, Guess, Hint) as url:
        yield url


async def play(base_url: str, *texts: str, prompt_type: str = "empty", **kwargs: Any) -> Trajectory:
    config = Config()
    config.rl_config.multi_turn_enable, config.rl_config.max_tool_calls = True, 4
    config.rl_config.environment = "rl.integrations.openenv:OpenEnv"
    config.rl_config.environment_kwargs = {"base_url": base_url, **kwargs}
    script = [said(RENDERER.encoder.encode(f"{text}<|im_end|>", behind=True)) for text in texts]
    loop = AgentLoop(ScriptedEngine(script), RENDERER, None, PARSERS["hermes"], config)
    return await loop.run(PROMPT, 0, Sampling(temperature=1.0, max_tokens=500))


async def test_text_becomes_the_only_field_of_the_action(game: str):
    trajectory = await play(game, "I say 3", "7", reset_columns=["number"])
    assert (trajectory.stop_reason, trajectory.failure) == (StopReason.FINISHED, None)
    assert trajectory.environment == {"score": 1.0, "turn_scores": [0.0, 1.0]}
    assert trajectory.prompt.messages[0]["content"] == "Play.\n\nFrom 1 to 9."
    assert [turn.messages[0]["content"] for turn in trajectory.turns] == ["Wrong.", "Right."]


async def test_an_action_that_the_schema_refuses_is_told_to_the_model(game: str):
    trajectory = await play(game, "no idea", "5")
    (hint,) = trajectory.turns[0].messages
    assert hint["content"].startswith("Error: number: Input should be a valid integer")
    assert trajectory.environment == {"score": 1.0, "turn_scores": [0.0, 1.0]}


@pytest.mark.parametrize(
    ("texts", "kwargs", "reason"),
    [
        (("-1",), {}, "EXECUTION_ERROR: 'no such number'"),
        (("1",), {"observation_field": "hints"}, "an observation has the fields hint"),
    ],
)
async def test_what_the_server_does_wrong_ends_the_trajectory(game: str, texts: Any, kwargs: Any, reason: str):
    trajectory = await play(game, *texts, **kwargs)
    assert trajectory.stop_reason is StopReason.ENVIRONMENT_FAILED
    assert reason in (trajectory.failure or "")


async def test_a_full_server_says_what_to_do():
    with serving(Game, Guess, Hint, max_concurrent_envs=1) as url:
        first = OpenEnv(base_url=url)
        await first.reset(seed=1)
        trajectory = await play(url, "1")
        await first.close()
    assert "Raise max_concurrent_envs" in (trajectory.failure or "")


async def test_mcp_tools_of_the_server_are_tools_of_the_model():
    with serving(ToolGame, CallToolAction, CallToolObservation) as url:
        calls = [f'<tool_call>\n{{"name": "guess", "arguments": {{"number": {n}}}}}\n</tool_call>' for n in (3, 7)]
        trajectory = await play(url, *calls, with_tools=True)
    assert (trajectory.failure, trajectory.stop_reason) == (None, StopReason.FINISHED)
    assert [turn.results[0].text for turn in trajectory.turns] == ["Wrong.", "Right."]
    assert trajectory.environment == {"score": 1.0, "turn_scores": [0.0, 1.0]}


def test_tools_have_the_servers_schema():
    with serving(ToolGame, CallToolAction, CallToolObservation) as url:
        rl = Config().rl_config
        rl.environment = "rl.integrations.openenv:OpenEnv"
        rl.environment_kwargs = {"base_url": url, "with_tools": True}
        code = load_environment(rl)
    assert code is not None
    (tool,) = code.tools
    assert (tool["function"]["name"], tool["function"]["description"]) == ("guess", "Guess a number.")
    assert tool["function"]["parameters"]["properties"]["number"]["type"] == "integer"


async def test_a_server_that_is_not_there_is_named():
    with pytest.raises(OpenEnvError, match=r"http://127\.0\.0\.1:9: no OpenEnv server answers"):
        await OpenEnv(base_url="http://127.0.0.1:9").reset(seed=1)
