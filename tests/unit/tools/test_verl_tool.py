"""Tools in verl's form run from verl's YAML."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from rl.errors import ToolError
from rl.tools.base import ToolConfig
from rl.tools.registry import Toolbox, load_toolbox
from rl.tools.verl_tool import VerlTool
from rl.types import ToolCall, ToolStatus
from tests.unit.tools.verl_tools import Submit

FORMS = Path(__file__).with_name("verl_tools.py")
SUBMIT = """
tools:
  - class_name: "{file}:Submit"
    config:
      type: native
      penalty: -0.05
      timeout: 7
      num_workers: 4
    tool_schema:
      type: "function"
      function:
        name: "submit"
        description: "Submit an answer."
        parameters:
          type: "object"
          properties:
            answer:
              type: "string"
              description: "The answer."
          required: ["answer"]
"""
ROW = {"extra_info": {"tools_kwargs": {"submit": {"create_kwargs": {"ground_truth": "42"}}}}}


def load(folder: Path, text: str) -> Toolbox:
    path = folder / "tools.yaml"
    path.write_text(text)
    return load_toolbox(path)


def load_class(folder: Path, name: str) -> Toolbox:
    return load(folder, yaml.safe_dump({"tools": [{"class_name": f"{FORMS}:{name}", "config": {"type": "native"}}]}))


async def test_class_runs_with_the_state_and_kwargs_of_each_trajectory(tmp_path: Path) -> None:
    toolbox = load(tmp_path, SUBMIT.format(file=FORMS))
    assert toolbox.warnings == []
    assert toolbox.schemas[0]["function"]["parameters"]["required"] == ["answer"]
    one, other = toolbox.open_session("p-1/0", ROW), toolbox.open_session("p-2/0")
    wrong = await one.execute(ToolCall("submit", {"answer": "7"}))
    right, elsewhere = await asyncio.gather(
        one.execute(ToolCall("submit", {"answer": "42"})), other.execute(ToolCall("submit", {"answer": "42"}))
    )
    assert (wrong.text, wrong.status, wrong.reward) == ("reward=0.0", ToolStatus.OK, -0.05)
    assert wrong.metrics == {"length": 1.0, "calc_reward": 0.0}
    assert (right.text, right.reward, right.metrics["calc_reward"]) == ("reward=1.0", 0.0, 1.0)
    assert elsewhere.metrics["calc_reward"] == 0.0  # a row without tools_kwargs
    missing = await one.execute(ToolCall("submit", {}))
    assert missing.status is ToolStatus.INVALID_ARGUMENTS
    inner = toolbox.tools["submit"]._inner  # type: ignore[attr-defined]
    assert len(inner._instances) == 2
    await one.close()
    await other.close()
    assert inner._instances == {}
    await toolbox.close()


def test_limits_come_from_the_classes_own_settings(tmp_path: Path) -> None:
    tool = load(tmp_path, SUBMIT.format(file=FORMS)).tools["submit"]
    assert tool.config.default_timeout == 7
    assert tool.run_limit_s == 67  # verl's tools wait for a worker inside `execute`: 60 + 7
    assert tool._inner.config == {"type": "native", "penalty": -0.05, "timeout": 7, "num_workers": 4}  # type: ignore[attr-defined]


async def test_earlier_form_and_its_own_schema(tmp_path: Path) -> None:
    toolbox = load_class(tmp_path, "Image")
    assert toolbox.names == ["count"]
    session = toolbox.open_session("p-1/0")
    assert (await session.execute(ToolCall("count", {}))).text == "a cat\n(image)"
    await session.close()


async def test_keyword_arguments_of_create_and_execute(tmp_path: Path) -> None:
    toolbox = load_class(tmp_path, "Early")
    kwargs = {"create_kwargs": {"start": 5, "other": 1}, "execute_kwargs": {"step": 3}}
    session = toolbox.open_session("p-1/0", {"extra_info": {"tools_kwargs": {"count": kwargs}}})
    assert [(await session.execute(ToolCall("count", {}))).text for _ in range(2)] == ["8", "11"]
    await session.close()


async def test_exception_is_an_error_result(tmp_path: Path) -> None:
    session = load_class(tmp_path, "Broken").open_session("p-1/0")
    result = await session.execute(ToolCall("count", {}))
    assert (result.text, result.status) == ("Error: ValueError: no luck", ToolStatus.ERROR)
    await session.close()


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("Raises", r"tools\[1\].class_name: '.*:Raises' raised KeyError: 'url'. Correct it."),
        ("Unusual", r"has a `create` with trajectory_id, as this project's tools. Derive the class "),
        ("ToolResponse", "is not a tool"),
    ],
)
def test_class_that_cannot_be_used_is_an_error(tmp_path: Path, name: str, reason: str) -> None:
    with pytest.raises(ToolError, match=reason):
        load_class(tmp_path, name)


@pytest.mark.parametrize(
    ("class_name", "reason"),
    [
        (
            "mine.py:Mine",
            "'mine.py:Mine' needs the package verl, which is not installed. Install it, or remove the base",
        ),
        ("verl.tools.gsm8k_tool.Gsm8kTool", "needs the package verl, which is not installed"),
        ("verl.tools.search_tool.SearchTool", "The class is 'rl.tools.search_tool.SearchTool' here"),
        ("verl.tools.sandbox_fusion_tools.SandboxFusionTool", "The class is 'rl.tools.retool.ReTool' here"),
    ],
)
def test_missing_verl_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, class_name: str, reason: str) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "mine.py").write_text("from verl.tools.base_tool import BaseTool\nclass Mine(BaseTool): ...\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ToolError, match=reason):
        load(tmp_path, yaml.safe_dump({"tools": [{"class_name": class_name, "config": {"type": "native"}}]}))


def test_default_reward_of_the_base_class_is_not_asked(tmp_path: Path) -> None:
    class BaseTool:
        async def calc_reward(self, instance_id: str, **kwargs: Any) -> float:
            return 0.0

    BaseTool.calc_reward.__qualname__ = "BaseTool.calc_reward"
    schema = {"type": "function", "function": {"name": "a", "parameters": {}}}
    assert not VerlTool(ToolConfig(), schema, BaseTool())._has_reward
    assert VerlTool(ToolConfig(), schema, object.__new__(Submit))._has_reward
