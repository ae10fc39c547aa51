"""The class for TextArena's games that docs/environments.md shows. Skipped where the package is not installed."""

from __future__ import annotations

from pathlib import Path

import pytest

from rl.chat.parsers import PARSERS
from rl.chat.renderer import Renderer
from rl.config.schema import Config
from rl.rollout.agent_loop import AgentLoop
from rl.types import Prompt, Sampling, StopReason
from tests import chat_templates
from tests.chat_templates import byte_level
from tests.fakes import ScriptedEngine, said

pytest.importorskip("textarena", reason="the package textarena is not installed")

PAGE = Path(__file__).resolve().parents[3] / "docs/environments.md"


async def test_a_game_of_textarena_is_an_environment(tmp_path: Path):
    code = PAGE.read_text().partition("```python\n# arena.py\n")[2].partition("```")[0]
    assert code.count("\n") <= 30
    (tmp_path / "arena.py").write_text(code)
    renderer = Renderer(byte_level(chat_templates.CHATML), "empty", [])
    script = [said(renderer.encoder.encode(f"[{i}]<|im_end|>", behind=True)) for i in range(1, 21)]
    config = Config()
    config.rl_config.multi_turn_enable = True
    config.rl_config.environment = f"{tmp_path}/arena.py:Arena"
    config.rl_config.environment_kwargs = {"name": "GuessTheNumber-v0"}
    loop = AgentLoop(ScriptedEngine(script), renderer, None, PARSERS["hermes"], config)
    trajectory = await loop.run(Prompt("p", [{"role": "user", "content": "Play."}], "", "test"), 0, Sampling(1.0, 99))
    assert (trajectory.failure, trajectory.stop_reason) == (None, StopReason.FINISHED)
    assert "Guess The Number" in trajectory.prompt.messages[0]["content"]
    *hints, _ = [turn.messages for turn in trajectory.turns]
    assert {hint["content"].splitlines()[-1] for (hint,) in hints} == {"[GAME] The target number is higher."}
    assert trajectory.environment is not None
    assert 0 <= trajectory.environment["score"] <= 1
