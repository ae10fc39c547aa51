"""Every YAML file that the project ships composes, and means what the code understands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from rl.config.check import check_section
from rl.config.keys import key_paths
from rl.config.load import compose_config, load_dataset_config
from rl.config.problems import Severity
from rl.config.schema import Config, DatasetConfig, ModelConfig
from rl.config.sources import shipped_folder
from rl.config.validate import find_problems
from rl.observability.detectors import DETECTORS
from rl.preflight import inspect_run
from rl.tools.registry import load_toolbox

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


def names(pattern: str) -> list[str]:
    return sorted(str(path.relative_to(CONFIGS).with_suffix("")) for path in CONFIGS.glob(pattern))


def test_shipped_folder_is_the_projects_own() -> None:
    assert shipped_folder() == CONFIGS


@pytest.mark.parametrize("name", [name for name in names("*.yaml") if name != "play"])
def test_run_configuration_has_no_problem(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(CONFIGS.parent)
    composed = compose_config(name, (), CONFIGS)
    problems = [*composed.problems, *inspect_run(composed.config, composed.given, is_strict=False)]
    assert [problem.text for problem in problems if problem.severity is not Severity.NOTE] == []


def test_play_configuration_has_no_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(CONFIGS.parent)
    composed = compose_config("play", (), CONFIGS)
    problems = [*composed.problems, *find_problems(composed.config, composed.given)]
    assert [problem.text for problem in problems if problem.severity is not Severity.NOTE] == []


@pytest.mark.parametrize("name", names("model/*.yaml"))
def test_model_configuration_is_complete(name: str) -> None:
    node = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
    model, problems = check_section(ModelConfig, node, "model")
    assert not problems
    assert model.model_type in ("llama", "qwen2", "qwen3")
    assert set(node) >= set(ModelConfig.__dataclass_fields__) - {"head_dim"}
    assert model.num_attention_heads % model.num_key_value_heads == 0
    assert model.head_dim or model.hidden_size % model.num_attention_heads == 0


@pytest.mark.parametrize("name", names("tools/*.yaml"))
def test_tool_configuration_builds_its_tools(name: str) -> None:
    assert load_toolbox(CONFIGS / f"{name}.yaml").names


@pytest.mark.parametrize("name", names("datasets/*.yaml"))
def test_dataset_configuration_names_input_and_output(name: str) -> None:
    config = load_dataset_config(name, (), CONFIGS)
    assert config.input
    assert config.output_prefix


def test_every_yaml_is_covered_by_a_test_above() -> None:
    known = {"", "base", "model", "tools", "datasets"}
    folders = {str(path.parent.relative_to(CONFIGS)).replace(".", "") for path in CONFIGS.rglob("*.y*ml")}
    assert folders <= known


def test_every_key_is_read_by_some_code() -> None:
    code = "\n".join(path.read_text() for path in (CONFIGS.parent / "rl").rglob("*.py") if path.parent.name != "config")
    read = set(re.findall(r"\.([a-z][a-z0-9_]*)", code)) | set(DETECTORS)  # the keys of early_warning
    names_by_section = {path: path.rpartition(".")[2] for cls in (Config, DatasetConfig) for path in key_paths(cls)}
    unread = {path for path, name in names_by_section.items() if name not in read and not path.startswith("model.")}
    assert unread == set()
