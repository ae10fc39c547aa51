"""Where configurations and the files they name are found: from any working folder, and of an installed package."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from rl.__main__ import main
from rl.config.kinds import Place
from rl.config.load import compose_config, load_dataset_config
from rl.config.paths import locate, path_keys
from rl.config.schema import Config, DatasetConfig
from rl.config.sources import shipped_folder
from rl.data.preprocess import preprocess
from rl.data.prompts import load_prompts
from rl.errors import ConfigError
from rl.tools.entries import read_entries
from rl.tools.registry import load_toolbox

ROOT = Path(__file__).resolve().parents[3]
NAME = "my_rewards.py:good"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's own project, which is the working folder: it builds on a shipped configuration."""
    folder = tmp_path / "my project"
    (folder / "configs" / "datasets").mkdir(parents=True)
    (folder / "configs" / "my.yaml").write_text(
        "defaults: [dapo_smollm2_135m_retool, override /model: null, _self_]\n"
        "actor_config: {load: weights}\n"
        "megatron_training: {data_path: rows.jsonl, eval_data_path: null, output_dir: out}\n"
        "rl_config:\n"
        f"  verifier_function: [{NAME}, format]\n"
        "  verifier_weight: [1.0, 0.1]\n"
        f"  verifier_kwargs: {{'{NAME}': {{bonus: 0.1}}}}\n"
        f"  filter_groups_metric: {NAME}/used\n"
        "  tool_config_path: my_tools.yaml\n"
    )
    (folder / "configs" / "my_tools.yaml").write_text("tools: [{function: rl.tools.calculator:calculator}]\n")
    (folder / "configs" / "datasets" / "rows.yaml").write_text("input: raw.jsonl\noutput_prefix: made/rows\n")
    (folder / "my_rewards.py").write_text("def good(trajectory, bonus=0.0): return {'score': 1.0, 'used': bonus}\n")
    (folder / "rows.jsonl").write_text("")
    (folder / "raw.jsonl").write_text("")
    monkeypatch.chdir(folder)
    return folder


def test_own_configuration_builds_on_a_shipped_one(project: Path) -> None:
    config = compose_config("my").config
    assert config.model.hidden_size == 0  # the group is left out
    assert config.rl_config.prompt_type == "qwen_retool"  # base/smollm2_135m_retool, shipped
    assert config.rl_config.tool_config_path == str(project / "configs" / "my_tools.yaml")
    assert (config.megatron_training.data_path, config.rl_config.verifier_function[0]) == ("rows.jsonl", NAME)


@pytest.mark.parametrize("name", ["my", "my.yaml", "configs/my", "configs/my.yaml", "{project}/configs/my.yaml"])
def test_a_configuration_goes_by_its_name_or_its_path(project: Path, name: str) -> None:
    assert compose_config(name.format(project=project)).config.actor_config.load == "weights"


@pytest.mark.parametrize("by", ["folder", "path"])
def test_files_beside_the_configuration_are_found_from_any_folder(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    monkeypatch.chdir(tmp_path)
    own = project / "configs"
    config = (compose_config("my", (), own) if by == "folder" else compose_config(str(own / "my"))).config
    reward = f"{project}/{NAME}"
    assert config.megatron_training.data_path == str(project / "rows.jsonl")
    assert config.megatron_training.output_dir == "out"  # to be written: in the working folder
    assert config.actor_config.load == "weights"  # nowhere: as it was written
    assert config.rl_config.verifier_function == [reward, "format"]
    assert config.rl_config.verifier_kwargs[reward] == {"bonus": 0.1}
    assert config.rl_config.filter_groups_metric == f"{reward}/used"
    dataset = load_dataset_config("datasets/rows", (), own)
    assert (dataset.input, dataset.output_prefix) == (str(project / "raw.jsonl"), "made/rows")


def test_the_working_folder_comes_first_and_the_package_last(project: Path) -> None:
    shipped = compose_config("my", ["rl_config.tool_config_path=./configs/tools/calculator.yaml"]).config
    assert shipped.rl_config.tool_config_path == str(shipped_folder() / "tools" / "calculator.yaml")
    (project / "my_tools.yaml").write_text("")
    assert compose_config("my").config.rl_config.tool_config_path == "my_tools.yaml"
    (project / "configs" / "tools").mkdir()
    (project / "configs" / "tools" / "calculator.yaml").write_text("")
    config = compose_config("my", ["rl_config.tool_config_path=configs/tools/calculator.yaml"]).config
    assert config.rl_config.tool_config_path == "configs/tools/calculator.yaml"


def test_home_is_written_as_in_a_shell(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    config = compose_config("my", ["actor_config.load=~/m", "megatron_training.output_dir=~/runs"]).config
    assert (config.actor_config.load, config.megatron_training.output_dir) == ("/home/me/m", "/home/me/runs")
    assert locate("./~", ()) == "./~"


def test_own_files_take_the_place_of_shipped_ones(project: Path) -> None:
    (project / "configs" / "model").mkdir()
    (project / "configs" / "model" / "smollm2_135m.yaml").write_text("hidden_size: 77\n")
    assert compose_config("dapo_smollm2_135m_retool").config.model.hidden_size == 77
    (project / "configs" / "play.yaml").write_text("defaults: [play, _self_]\n")
    with pytest.raises(ConfigError, match=r"its `defaults` come back to a file that they began with. Rename it"):
        compose_config("play")


def test_a_tool_file_finds_what_stands_beside_it(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tools = project / "configs" / "my_tools.yaml"
    (project / "configs" / "corpus.jsonl").write_text("")
    (project / "configs" / "mine.py").write_text("")
    tools.write_text("tools: [{class_name: 'mine.py:Mine', config: {corpus_path: corpus.jsonl}}]\n")
    monkeypatch.chdir(tmp_path)
    (entry,) = read_entries(tools)
    assert entry.target == str(project / "configs" / "mine.py:Mine")
    assert entry.settings["corpus_path"] == str(project / "configs" / "corpus.jsonl")


def test_preprocess_reads_and_writes_names_with_a_colon(project: Path) -> None:
    (project / "a:b.jsonl").write_text('{"q": "1 + 1", "a": "2"}\n')
    overrides = ["input=a:b.jsonl", "output_prefix=x:made/c:d", "map_keys.prompt=q", "map_keys.response=a"]
    written = preprocess(load_dataset_config("datasets/rows", overrides))
    assert written == Path("x:made/c:d.parquet")
    assert [prompt.ground_truth for prompt in load_prompts(written)] == ["2"]


def test_the_rule_holds_for_these_keys() -> None:
    assert path_keys(Config, Place.INPUT) == (
        "megatron_training.tokenizer_name_or_path",
        "megatron_training.data_path",
        "megatron_training.eval_data_path",
        "megatron_training.resume",
        "megatron_training.replay",
        "actor_config.load",
        "rl_config.tool_config_path",
    )
    assert path_keys(Config, Place.OUTPUT) == ("megatron_training.output_dir",)
    assert path_keys(Config, Place.CODE) == (
        "rl_config.environment",
        "rl_config.rollout_function",
        "rl_config.agent_function",
    )
    assert path_keys(DatasetConfig, Place.INPUT) == ("input",)
    assert path_keys(DatasetConfig, Place.OUTPUT) == ("output_prefix",)


def test_validate_runs_in_a_users_project(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    overrides = ["~rl_config.verifier_kwargs.reasoning_gym", "rl_config.filter_groups_metric=score"]
    code = main(["validate", "--config-name", "my", "megatron_training.data_path=later.jsonl", *overrides])
    shown = capsys.readouterr().out
    assert "my: The configuration is valid." in shown, shown
    assert code == 0


def test_an_installed_package_brings_its_configurations(tmp_path: Path) -> None:
    build = [sys.executable, "setup.py", "-q", "egg_info", "-e", str(tmp_path), "build", "-b", str(tmp_path / "build")]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True, timeout=120)
    script = (
        "from rl.config.load import compose_config; config = compose_config('dapo_smollm2_135m_retool').config\n"
        "print(config.rl_config.prompt_type, config.rl_config.tool_config_path)"
    )
    installed = tmp_path / "build" / "lib"
    (tmp_path / "elsewhere").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path / "elsewhere",
        env={**os.environ, "PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout.split() == ["qwen_retool", str(installed / "rl/configs/tools/retool_config.yaml")], done.stderr
    shipped = {path.relative_to(ROOT / "configs") for path in (ROOT / "configs").rglob("*.yaml")}
    assert {
        path.relative_to(installed / "rl/configs") for path in (installed / "rl/configs").rglob("*.yaml")
    } == shipped


def test_shipped_tools_load_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = compose_config("play").config.rl_config.tool_config_path
    assert load_toolbox(Path(str(path))).names == ["calculator"]
