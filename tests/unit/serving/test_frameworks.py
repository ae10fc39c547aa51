"""Agents of frameworks, as docs/agents.md shows them, unmodified. Skipped where a framework is not installed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from rl.types import StopReason
from tests.fakes import ScriptedEngine
from tests.unit.serving.parts import PROMPT, SAMPLING, agent_loop, ids, make_config, saying, text_of

PAGE = Path(__file__).resolve().parents[3] / "docs/agents.md"
ADD = '<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": 2}}\n</tool_call>'
CHAT = "[[ ## reasoning ## ]]\nOne and two.\n\n[[ ## answer ## ]]\n3\n\n[[ ## completed ## ]]"


def example(name: str, folder: Path) -> Path:
    """A file that the page shows, written to a folder."""
    found = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    (code,) = (code for code in found if code.startswith(f"# {name}"))
    (folder / name).write_text(code)
    return folder / name


@pytest.mark.parametrize(
    ("package", "name", "texts"),
    [
        ("dspy", "dspy_agent.py", [CHAT]),
        ("dspy", "dspy_agent.py", ["No such form.", '{"reasoning": "One and two.", "answer": "3"}']),
        ("agents", "sdk_agent.py", [ADD, "3"]),
    ],
)
async def test_an_agent_of_a_framework_is_trained_on_what_was_sampled(
    tmp_path: Path, package: str, name: str, texts: list[str]
):
    pytest.importorskip(package)
    engine = ScriptedEngine([saying(text) for text in texts])
    config = make_config("plain", agent_function=f"{example(name, tmp_path)}:solve", max_total_response_length=2000)
    async with agent_loop(engine, config) as loop:
        trajectory = await loop.run(PROMPT, 0, SAMPLING)
    assert (trajectory.stop_reason, trajectory.environment) == (StopReason.FINISHED, {"score": 1.0})
    assert trajectory.num_sampled == sum(len(ids(text)) + 1 for text in texts)
    assert text_of(trajectory.sequences[-1]).endswith(f"{texts[-1]}<|im_end|>")
    # What the engine was asked is what stands before each answer: nothing was rendered anew.
    for request in engine.requests:
        assert any(s.token_ids[: len(request.token_ids)].tolist() == request.token_ids for s in trajectory.sequences)
