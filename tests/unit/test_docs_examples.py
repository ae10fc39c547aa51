"""The tool and the reward that the documentation shows load from the YAML beside them, and do what is said there."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
import yaml

from rl.config.load import load_dataset_config
from rl.data.preprocess import preprocess
from rl.data.prompts import load_prompts
from rl.rewards.registry import load_rewards
from rl.tools.registry import load_toolbox
from rl.types import ToolCall, ToolStatus
from tests.unit.observability.examples import make_trajectory

DOCS = Path(__file__).resolve().parents[2] / "docs"


def python_and_yaml(page: str, heading: str = "") -> tuple[str, str]:
    """The first Python block of a page, from a heading on, that is followed by a YAML block, and that."""
    text = (DOCS / page).read_text().partition(heading)[2] if heading else (DOCS / page).read_text()
    found = re.search(r"```python\n((?:(?!```).)*)```\s*```yaml\n(.*?)```", text, re.S)
    assert found is not None, page
    return found.group(1), found.group(2)


async def test_tools_page_tool_loads_and_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code, settings = python_and_yaml("tools.md", "## Write a class")
    (tmp_path / "my_tools.py").write_text(code)
    (tmp_path / "my_tools.yaml").write_text(settings)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    toolbox = load_toolbox(tmp_path / "my_tools.yaml")
    session = toolbox.open_session("train-1/0")
    try:
        right = await session.execute(ToolCall("divide", {"dividend": 2, "divisor": 3}))
        raised = await session.execute(ToolCall("divide", {"dividend": 2, "divisor": 0}))
        invalid = await session.execute(ToolCall("divide", {"dividend": 2}))
    finally:
        await session.close()
        await toolbox.close()
        sys.modules.pop("my_tools", None)
    assert (right.text, right.status, right.metrics) == ("0.667", ToolStatus.OK, {"num_calls": 1})
    assert (raised.text, raised.status) == ("Error: ValueError: the divisor is 0", ToolStatus.ERROR)
    assert invalid.status is ToolStatus.INVALID_ARGUMENTS


async def test_tools_page_function_loads_and_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code, settings = python_and_yaml("tools.md", "# Tools")
    (tmp_path / "my_functions.py").write_text(code)
    (tmp_path / "my_functions.yaml").write_text(settings)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    toolbox = load_toolbox(tmp_path / "my_functions.yaml")
    session = toolbox.open_session("train-1/0")
    result = await session.execute(ToolCall("convert", {"value": 2}))
    await session.close()
    sys.modules.pop("my_functions", None)
    assert (result.text, result.status) == ("2000.0", ToolStatus.OK)
    assert toolbox.schemas[0]["function"]["parameters"]["properties"]["unit"]["enum"] == ["km", "mi"]


def test_tools_page_class_yaml_is_a_toolbox(tmp_path: Path) -> None:
    section = (DOCS / "tools.md").read_text().partition("## The YAML")[2]
    settings = re.search(r"```yaml\n(.*?)```", section, re.S)
    assert settings is not None
    (tmp_path / "tools.yaml").write_text(settings.group(1))
    assert load_toolbox(tmp_path / "tools.yaml").names == ["code_interpreter"]


async def test_rewards_page_reward_scores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code, settings = python_and_yaml("rewards.md")
    (tmp_path / "my_rewards.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    section = yaml.safe_load(settings)["rl_config"]
    names, kwargs = section["verifier_function"], section["verifier_kwargs"]
    rewards = load_rewards(names, section["verifier_weight"], kwargs, timeout=30.0)
    trajectory = make_trajectory(score=None)
    try:
        scores = await rewards.score(trajectory)
    finally:
        rewards.close()
    assert scores.reward_error is None
    assert scores.score == pytest.approx(1.1)
    assert scores.rewards[f"{names[0]}/used"] == 1.0


async def test_rewards_page_rewards_of_verl_and_trl_score(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    section = (DOCS / "rewards.md").read_text().partition("## Bring a reward from verl or TRL")[2]
    settings, *codes = re.findall(r"```(?:yaml|python)\n(.*?)```", section, re.S)[:3]
    for code in codes:
        (tmp_path / code.splitlines()[0].removeprefix("# ")).write_text(code)
    monkeypatch.chdir(tmp_path)
    rl = yaml.safe_load(settings)["rl_config"]
    rewards = load_rewards(rl["verifier_function"], rl["verifier_weight"], rl["verifier_kwargs"], timeout=30.0)
    trajectory = make_trajectory(score=None)
    trajectory.turns[-1].text = "The sum is 4<|im_end|>"
    try:
        scores = await rewards.score(trajectory)
    finally:
        rewards.close()
    assert scores.reward_error is None
    assert scores.score == pytest.approx(1.1 + 0.5)


def test_data_page_rows_load(tmp_path: Path) -> None:
    questions, demonstration = re.findall(r"```json\n(.*?)```", (DOCS / "data.md").read_text(), re.S)
    (tmp_path / "my_questions.jsonl").write_text(questions)
    (tmp_path / "demonstrations.jsonl").write_text(demonstration)
    assert [prompt.ground_truth for prompt in load_prompts(tmp_path / "my_questions.jsonl")] == ["72", "42"]
    (prompt,) = load_prompts(tmp_path / "demonstrations.jsonl", needs_answer=False)
    assert [message["role"] for message in prompt.messages] == ["user", "assistant", "tool", "assistant"]


def test_data_page_dataset_is_preprocessed(tmp_path: Path) -> None:
    settings = re.search(r"```yaml\n(# configs/datasets/.*?)```", (DOCS / "data.md").read_text(), re.S)
    assert settings is not None
    (tmp_path / "my_math.yaml").write_text(settings.group(1))
    row = {"exercise": "6 * 7?", "worked_solution": "Six sevens.\n#### 42", "instructions": "Be brief.", "level": 3}
    (tmp_path / "raw.jsonl").write_text(f"{json.dumps(row)}\n" * 201)
    overrides = [f"input={tmp_path}/raw.jsonl", f"output_prefix={tmp_path}/my_math"]
    (prompt,) = load_prompts(preprocess(load_dataset_config("my_math", overrides, tmp_path)))
    assert (prompt.ground_truth, prompt.extra, prompt.messages[0]["content"]) == ("42", {"level": 3}, "Be brief.")


@pytest.mark.parametrize("name", sorted(re.findall(r"^\| `([\w`, ]+)` \|", (DOCS / "data.md").read_text(), re.M)))
def test_data_page_names_datasets_that_exist(name: str) -> None:
    for one in name.replace("`", "").split(", "):
        assert load_dataset_config(f"datasets/{one}").input


async def test_tools_page_tool_of_verl_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    section = (DOCS / "tools.md").read_text().partition("## Tools of verl")[2]
    settings, code = re.findall(r"```(?:yaml|python)\n(.*?)```", section, re.S)[:2]
    (tmp_path / "my_verl_tools.py").write_text(code)
    (tmp_path / "tools.yaml").write_text(settings)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    toolbox = load_toolbox(tmp_path / "tools.yaml")
    row = {"extra_info": {"tools_kwargs": {"submit": {"create_kwargs": {"ground_truth": "42"}}}}}
    session = toolbox.open_session("train-1/0", row)
    result = await session.execute(ToolCall("submit", {"answer": "42"}))
    await session.close()
    sys.modules.pop("my_verl_tools", None)
    assert (result.text, result.reward, result.metrics) == ("right", 1.0, {"length": 2.0})


@pytest.mark.parametrize("name", sorted(re.findall(r"^\| `(\w+)` \|", (DOCS / "rewards.md").read_text(), re.M)[:6]))
def test_rewards_page_names_rewards_that_exist(name: str) -> None:
    assert load_rewards([name], [1.0]).rewards[0].name == name
