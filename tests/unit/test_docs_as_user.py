"""Every YAML that the documentation shows, as a user would use it: a file beside a shipped configuration."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from rl.__main__ import main
from rl.config.keys import field_types
from rl.config.load import compose_config
from rl.config.problems import Severity
from rl.config.schema import Config
from rl.preflight import inspect_run

ROOT = Path(__file__).resolve().parents[2]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.DOTALL | re.MULTILINE)
FILE_NAME = re.compile(r"\A# (\w+\.(?:py|yaml))\n")
PAGES = sorted(path for pattern in ("README.md", "docs/*.md", "examples/**/*.md") for path in ROOT.glob(pattern))
BASES = ("dapo_smollm2_135m_retool", "grpo_smollm2_135m_retool", "dapo_smollm2_135m_search")
BASE_OF = {"parallelism.md": ("dapo_qwen25_7b_multi_turn", "dapo_qwen25_7b_search")}
"""Pages that are about other sizes than those of the example."""


def snippets(path: Path, language: str) -> list[str]:
    return [code for found, code in BLOCK.findall(path.read_text()) if found == language]


def is_run(code: str) -> bool:
    node = yaml.safe_load(code)
    return isinstance(node, dict) and bool(set(node) & set(field_types(Config)))


def is_tools(code: str) -> bool:
    """MCP's needs a server of the user's."""
    node = yaml.safe_load(code)
    return isinstance(node, dict) and "tools" in node and not any("mcp" in entry for entry in node["tools"])


def page_cases(wanted: object) -> list[object]:
    return [
        pytest.param(path, code, id=f"{path.name}-{number}")
        for path in PAGES
        for number, code in enumerate(snippets(path, "yaml"))
        if wanted(code)  # type: ignore[operator]
    ]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with the shipped configurations, in which commands run."""
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)  # as `python -m rl` does
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


def write_python(page: Path, project: Path) -> None:
    for code in snippets(page, "python"):
        if named := FILE_NAME.match(code):
            (project / named[1]).write_text(code)


def errors_of(name: str, *overrides: str) -> list[str]:
    composed = compose_config(name, overrides)
    problems = [*composed.problems, *inspect_run(composed.config, composed.given, is_strict=False)]
    return [problem.text for problem in problems if problem.severity is Severity.ERROR]


@pytest.mark.parametrize(("page", "code"), page_cases(is_run))
def test_settings_of_a_page_are_valid_over_a_shipped_configuration(page: Path, code: str, project: Path) -> None:
    write_python(page, project)
    for base in BASE_OF.get(page.name, BASES):
        defaults = "" if "defaults" in yaml.safe_load(code) else f"defaults: [{base}, _self_]\n"
        (project / "configs/mine.yaml").write_text(defaults + code)
        assert errors_of("mine") == [], base


@pytest.mark.parametrize(("page", "code"), page_cases(is_tools))
def test_tools_of_a_page_are_valid_in_a_shipped_configuration(page: Path, code: str, project: Path) -> None:
    write_python(page, project)
    named = FILE_NAME.match(code)
    file = named[1] if named else "tools.yaml"
    (project / file).write_text(code)
    assert errors_of(BASES[0], f"rl_config.tool_config_path={file}") == []


def test_a_reward_of_ones_own_is_told_what_it_inherits(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The command itself, with README's reward in a file beside the quickstart's configuration."""
    (code,) = (code for code in snippets(ROOT / "README.md", "yaml") if is_run(code))
    write_python(ROOT / "README.md", project)
    (project / "configs/mine.yaml").write_text(f"defaults: [{BASES[0]}, _self_]\n{code}")
    assert main(["validate", "--config-name", "mine"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "verifier_kwargs.reasoning_gym: has no effect, because verifier_function does not name it." in shown
    code = code.replace("verifier_kwargs: {", "verifier_kwargs: {reasoning_gym: null, ")
    (project / "configs/mine.yaml").write_text(f"defaults: [{BASES[0]}, _self_]\n{code}")
    assert main(["validate", "--config-name", "mine"]) == 0
    assert "has no effect" not in capsys.readouterr().out


def test_a_reward_of_ones_own_takes_arguments_from_the_command_line(project: Path) -> None:
    write_python(ROOT / "README.md", project)
    name = "my_rewards.py:short_and_right"
    chosen = f"rl_config.verifier_function=['{name}']"
    given = f'rl_config.verifier_kwargs={{"{name}": {{"limit": 150}}}}'
    composed = compose_config(BASES[0], [chosen, given])
    assert composed.config.rl_config.verifier_kwargs[name] == {"limit": 150}
    assert errors_of(BASES[0], chosen, given) == []
    (wrong,) = errors_of(BASES[0], chosen, given.replace("limit", "limt"))
    assert wrong.startswith(f"rl_config.verifier_kwargs.{name}: unknown name 'limt'. Did you mean 'limit'?")
    (wrong,) = errors_of(BASES[0], chosen, given.replace("short_and_right", "short_or_right"))
    assert f"Did you mean '{name}'?" in wrong
