"""The command: files that it writes and refuses, datasets, tools, frameworks."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from rl.__main__ import main
from rl.config.load import load_dataset_config
from rl.errors import ConfigError
from rl.migrate.command import migrate
from rl.migrate.read import Framework, read_source

GRPO = """
model_name_or_path: ./m
dataset_name: a/b
num_generations: 4
num_processes: 1
reward_funcs: [accuracy_reward]
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_command_writes_the_file_and_prints_summary_and_verdict(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "grpo.yaml").write_text(GRPO)
    assert main(["migrate", "grpo.yaml"]) == 0
    shown = capsys.readouterr().out
    assert "num_generations -> rl_config.n_samples_per_prompt" in shown
    assert "wrote configs/grpo.yaml\nconfigs/grpo.yaml: The configuration is valid.\n" in shown
    written = yaml.safe_load((here / "configs/grpo.yaml").read_text())
    assert written["megatron_training"]["global_batch_size"] == 2  # 8 completions / 4


def test_command_fails_where_validate_does(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "grpo.yaml").write_text(f"{GRPO}use_peft: true\n")
    assert main(["migrate", "grpo.yaml", "-o", "mine.yaml"]) == 2
    shown = capsys.readouterr().out
    assert "missing here: 1\n  LoRA: use_peft\n" in shown
    assert "error megatron_training.lora_r: this setting is not available here" in shown
    assert "mine.yaml: 1 errors." in shown


def test_an_existing_file_is_not_overwritten(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "grpo.yaml").write_text(GRPO)
    (here / "mine.yaml").write_text("rl_config: {}\n")
    assert main(["migrate", "grpo.yaml", "-o", "mine.yaml"]) == 2
    assert "mine.yaml: exists already" in capsys.readouterr().err
    assert (here / "mine.yaml").read_text() == "rl_config: {}\n"


@pytest.mark.parametrize(
    ("name", "content", "framework"),
    [
        ("a.yaml", "rl_config: {n_samples_per_prompt: 4}", Framework.MINDSPEED),
        ("a.yaml", "data: {train_batch_size: 4}\nactor_rollout_ref: {}", Framework.VERL),
        ("a.sh", "main data.train_batch_size=4", Framework.VERL),
        ("a.json", '{"num_generations": 4}', Framework.TRL),
    ],
)
def test_framework_is_recognized(name: str, content: str, framework: Framework, here: Path) -> None:
    (here / name).write_text(content)
    assert read_source(here / name).framework is framework


def test_framework_of_ambiguous_keys_must_be_named(here: Path) -> None:
    (here / "a.yaml").write_text("seed: 1\n")
    with pytest.raises(ConfigError, match="Say whose it is: --from mindspeed, verl or trl"):
        migrate(here / "a.yaml")
    assert "seed: 1" in next(iter(migrate(here / "a.yaml", framework=Framework.TRL).texts.values()))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.yaml", None, "no such file"),
        ("a.json", "{", "line 1: is not valid JSON"),
        ("a.json", "[1]", "must hold one object, got list"),
        ("a.sh", "echo hello", "has no override such as data.train_batch_size=256"),
        ("a.yaml", "tools: 3", "needs a list `tools`"),
    ],
)
def test_unreadable_files_are_reported(name: str, content: str | None, message: str, here: Path) -> None:
    if content is not None:
        (here / name).write_text(content)
    with pytest.raises(ConfigError, match=message):
        migrate(here / name)


DATASET = {
    "input": "./dataset/dapo-math-17k.parquet",
    "tokenizer_name_or_path": "./qwen25-7b",
    "output_prefix": "./dataset/data",
    "handler_name": "Math17kAlpacaStyleInstructionHandler",
    "tokenizer_type": "HuggingFaceTokenizer",
    "workers": 8,
    "log_interval": 1000,
    "prompt_type": "qwen_retool",
    "dataset_additional_keys": ["labels"],
    "map_keys": {"prompt": "prompt", "query": "", "response": "reward_model", "system": ""},
}


def test_dataset_yaml_becomes_one_for_preprocess(here: Path) -> None:
    (here / "math.yaml").write_text(yaml.safe_dump(DATASET))
    assert main(["migrate", "math.yaml"]) == 0
    config = load_dataset_config("datasets/math")
    assert config.map_keys["response"] == "reward_model.ground_truth"
    assert config.prompt_type == "qwen_retool"
    assert config.dataset_additional_keys == []
    assert config.output_prefix == "./dataset/data"


def test_pairwise_dataset_is_named_as_dpo(here: Path) -> None:
    keys = DATASET | {"handler_name": "AlpacaStylePairwiseHandler", "prompt_type": "qwen3", "enable_thinking": True}
    (here / "pairs.yaml").write_text(yaml.safe_dump(keys))
    summary = migrate(here / "pairs.yaml").summary
    assert "missing here: 1\n  DPO: handler_name\n" in summary
    assert "prompt_type: No such template here" in summary
    assert "enable_thinking: The template decides it" in summary


SEARCH = {
    "class_name": "mindspeed_rl.tools.search_tool.SearchTool",
    "config": {"retrieval_service_url": "http://localhost:8080/retrieve", "topk": 3, "depth": 2, "type": "native"},
    "tool_schema": {"type": "function", "function": {"name": "search", "parameters": {"properties": {}}}},
}


def test_tool_yaml_alone(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "search.yaml").write_text(yaml.safe_dump({"tools": [SEARCH]}))
    assert main(["migrate", "search.yaml"]) == 0
    (tool,) = yaml.safe_load((here / "configs/tools/search.yaml").read_text())["tools"]
    assert tool["class_name"] == "rl.tools.search_tool.SearchTool"
    assert "depth" not in tool["config"]
    shown = capsys.readouterr().out
    assert "tools[1].config.depth: unknown setting, left out. Got 2" in shown
    assert "tools[1].config.retrieval_service_url: 8080 is the sandbox's port" in shown


def test_tool_config_option_names_the_tools_of_the_run(here: Path) -> None:
    (here / "search.yaml").write_text(yaml.safe_dump({"tools": [SEARCH]}))
    (here / "run.yaml").write_text("rl_config: {n_samples_per_prompt: 4}\n")
    done = migrate(here / "run.yaml", here / "configs/mine.yaml", here / "search.yaml")
    assert list(done.texts) == [here / "configs/mine.yaml", here / "configs/tools/mine.yaml"]
    written = yaml.safe_load(done.texts[here / "configs/mine.yaml"])
    assert written["rl_config"]["multi_turn_enable"] is True
    assert written["rl_config"]["tool_config_path"] == str(here / "configs/tools/mine.yaml")


def test_text_in_comments_cannot_end_them(here: Path) -> None:
    (here / "a.yaml").write_text('rl_config: {"odd\\nkey": "x\\nrl_config: 1", n_samples_per_prompt: 4}\n')
    text = next(iter(migrate(here / "a.yaml").texts.values()))
    assert set(yaml.safe_load(text)) == {"actor_config", "rl_config", "generate_config"}
