"""Resuming: what a checkpoint says against itself and the configuration, told before a process starts."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from rl.config.schema import Config, Device
from rl.data.cursor import prompt_cursor
from rl.errors import CheckpointError, ConfigError
from rl.preflight import preflight, preflight_sft
from rl.run.checkpoints import checkpoint_damages
from rl.run.manifest import seal
from rl.training.actor import Actor
from rl.training.hf_files import read_source_files
from rl.types import Prompt
from tests.tiny import make_tiny_model
from tests.update_case import update_config

ROWS = [{"messages": [{"role": "user", "content": text}], "ground_truth": "2", "data_source": "sums"} for text in "abc"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("tiny"), num_layers=1)


@pytest.fixture(scope="module")
def written(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder with two checkpoints, written by a real actor."""
    run = tmp_path_factory.mktemp("runs") / "first"
    with Actor(update_config(model)) as actor:
        actor.save_checkpoint(run / "checkpoints/step_000002")
    cursor = prompt_cursor([Prompt(f"rows-{i + 1}", ROWS[i]["messages"], "2", "") for i in range(3)], Config())
    cursor.take(4)
    state = {"step": 2, "data": {"cursor": cursor.state_dict(), "buffer": {"useful_share": 1.0, "surplus": []}}}
    (run / "checkpoints/step_000002/run_state.json").write_text(json.dumps(state))
    shutil.copytree(run / "checkpoints/step_000002", run / "checkpoints/step_000004")
    (run / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2}\n')
    return run


@pytest.fixture
def run(written: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(written, tmp_path / "first"))


@pytest.fixture
def config(model: Path, run: Path, tmp_path: Path) -> Config:
    config = Config()
    config.megatron_training.data_path = str(tmp_path / "rows.jsonl")
    Path(config.megatron_training.data_path).write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    config.megatron_training.device = Device.CPU
    config.megatron_training.resume = str(run)
    config.actor_config.load = str(model)
    config.rl_config.max_prompt_length = 400
    config.rl_config.max_total_response_length = 200
    config.generate_config.max_model_len = 600
    config.generate_config.sampling_config.max_tokens = 200
    config.generate_config.kv_cache_memory_gb = 0.1
    config.rl_config.prompt_type = "qwen"
    return config


def test_preflight_takes_a_checkpoint_that_fits(config: Config) -> None:
    assert len(preflight(config)[0]) == 3


def test_preflight_names_the_seed(config: Config) -> None:
    config.megatron_training.seed = 7
    with pytest.raises(
        CheckpointError, match=r"megatron_training.seed: must be that of the run to resume, 1234, got 7\."
    ):
        preflight(config)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (ROWS[:2], "megatron_training.data_path: must have the 3 rows of the run to resume, got 2."),
        (
            [*ROWS[:2], ROWS[0]],
            "megatron_training.data_path: must have the 3 rows of the run to resume, got other rows.",
        ),
    ],
)
def test_preflight_names_the_data_file(config: Config, rows: list[dict], message: str) -> None:
    Path(config.megatron_training.data_path).write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(CheckpointError) as raised:
        preflight(config)
    assert message in str(raised.value)


@pytest.mark.parametrize(
    ("train_iters", "total_epochs", "message"),
    [
        (4, None, "ends after train_iters, 4. Raise that to go on."),
        (100, 2, "has used up total_epochs, 2. Raise that to go on."),
    ],
)
def test_preflight_says_that_a_finished_run_has_nothing_left_to_do(
    config: Config, run: Path, train_iters: int, total_epochs: int | None, message: str
) -> None:
    state = run / "checkpoints/step_000004/run_state.json"
    content = json.loads(state.read_text()) | {"step": 4}
    content["data"]["cursor"] |= {"epoch": 2, "position": 0}
    state.write_text(json.dumps(content))
    config.megatron_training.train_iters, config.megatron_training.total_epochs = train_iters, total_epochs
    with pytest.raises(ConfigError) as raised:
        preflight(config)
    assert f"nothing is left to do: {run}/checkpoints/step_000004" in str(raised.value)
    assert message in str(raised.value)
    content["data"]["buffer"]["surplus"] = [
        '{"prompt": {"id": "rows-1"}, "trajectories": [], "rows": []}'
    ]  # a group that was not trained on
    state.write_text(json.dumps(content))
    if total_epochs:
        preflight(config)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda state: state.update(data=[]), "AttributeError"),
        (lambda state: state["data"].update(cursor=None), "TypeError"),
        (lambda state: state["data"]["cursor"].update(position="a"), "TypeError"),
        (lambda state: state["data"]["cursor"].pop("seed"), "KeyError\\('seed'\\)"),
        (lambda state: state["data"]["buffer"].pop("useful_share"), "KeyError\\('useful_share'\\)"),
        (lambda state: state["data"]["buffer"].update(surplus=["{"]), "JSONDecodeError"),
        (
            lambda state: state["data"]["buffer"].update(
                surplus=[json.dumps({"prompt": {"id": "rows-1"}, "trajectories": [{"sample_index": "first"}]})]
            ),
            "4 validation errors for Trajectory\\)",
        ),
    ],
)
def test_preflight_names_a_place_in_the_data_that_cannot_be_read(
    config: Config, run: Path, spoil: Callable[[dict], object], reason: str
) -> None:
    path = run / "checkpoints/step_000004/run_state.json"
    state = json.loads(path.read_text())
    spoil(state)
    path.write_text(json.dumps(state))
    message = (
        rf"megatron_training.resume: .*step_000004: its place in the data cannot be read \({reason}.*step_000002\."
    )
    with pytest.raises((CheckpointError, ConfigError), match=message):
        preflight(config)


def test_preflight_names_the_command_that_wrote_a_checkpoint(config: Config) -> None:
    with pytest.raises(ConfigError, match="step_000004 was written by `rl train`, got `rl sft`"):
        preflight_sft(config)


def test_preflight_names_what_differs_of_another_model(config: Config, tmp_path: Path) -> None:
    config.actor_config.load = str(make_tiny_model(tmp_path / "other", num_layers=2))
    with pytest.raises(ConfigError, match="the run to resume has another model: num_hidden_layers 1, got 2"):
        preflight(config)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def blank(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


@pytest.mark.parametrize("spoil", [cut, blank])
@pytest.mark.parametrize(
    "name",
    [
        "model.safetensors",
        "optimizer/main_param/model-000-00000.safetensors",
        "optimizer/exp_avg/model-000-00000.safetensors",
        "optimizer/exp_avg_sq/model.safetensors.index.json",
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "trainer_state.json",
        "run_state.json",
    ],
)
def test_preflight_names_each_damaged_file_and_the_checkpoint_to_take(
    config: Config, run: Path, name: str, spoil: Callable[[Path], None]
) -> None:
    spoil(run / "checkpoints/step_000004" / name)
    with pytest.raises(ConfigError) as raised:
        preflight(config)
    assert f"megatron_training.resume: {run}/checkpoints/step_000004/{name}: " in str(raised.value)
    assert f"take the one before it, {run}/checkpoints/step_000002." in str(raised.value)
    assert "Fetch" not in str(raised.value)


@pytest.fixture
def sealed(run: Path) -> Path:
    """The newer checkpoint of the run, as this version writes it."""
    checkpoint = run / "checkpoints/step_000004"
    state = json.loads((checkpoint / "run_state.json").read_text())
    (checkpoint / "run_state.json").write_text(json.dumps(state | {"manifest": "manifest.json"}))
    seal(checkpoint)
    return checkpoint


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 16
    path.write_bytes(content)


def test_every_file_of_a_real_checkpoint_is_found_when_cut_flipped_or_missing(sealed: Path) -> None:
    paths = sorted(path for path in sealed.rglob("*") if path.is_file())
    assert {"manifest.json", "model.safetensors", "tokenizer.json", "run_state.json"} <= {path.name for path in paths}
    assert len(paths) >= 14
    assert checkpoint_damages(sealed) == []
    for path in paths:
        content = path.read_bytes()
        for spoil in (cut, blank, flip, Path.unlink):
            spoil(path)
            (damage,) = checkpoint_damages(sealed)
            assert damage.startswith(f"{path}: ")
            path.write_bytes(content)


def test_preflight_names_a_flipped_bit_that_no_header_shows(config: Config, sealed: Path) -> None:
    assert len(preflight(config)[0]) == 3
    flip(sealed / "optimizer/exp_avg_sq/model-000-00000.safetensors")
    with pytest.raises(ConfigError) as raised:
        preflight(config)
    name = "optimizer/exp_avg_sq/model-000-00000.safetensors"
    assert f"megatron_training.resume: {sealed}/{name}: damaged (its SHA-256" in str(raised.value)
    assert f"take the one before it, {sealed.with_name('step_000002')}." in str(raised.value)


def test_checkpoint_taken_as_a_model_does_not_pass_its_manifest_on(sealed: Path) -> None:
    names = read_source_files(sealed).keys()
    assert "config.json" in names
    assert not {"manifest.json", "run_state.json", "trainer_state.json"} & names


def test_preflight_names_a_tensor_that_is_missing_or_of_another_size(config: Config, run: Path) -> None:
    path = run / "checkpoints/step_000004/optimizer/exp_avg/model-000-00000.safetensors"
    with safe_open(path, framework="pt") as stored:
        tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
    name = "model.layers.0.mlp.up_proj.weight"
    for changed, message in (
        ({n: t for n, t in tensors.items() if n != name}, f"the tensor {name} is missing"),
        (tensors | {name: torch.zeros(2, 2)}, rf"{name}: config.json says .*, got \(2, 2\)"),
    ):
        save_file(changed, path)
        with pytest.raises(ConfigError, match=message):
            preflight(config)


def test_preflight_names_a_broken_line_of_the_metrics_to_be_continued(config: Config, run: Path) -> None:
    (run / "metrics.jsonl").write_text('{"step": 1}\n{"st\n{"step": 3}\n')
    with pytest.raises(ConfigError, match=r"first/metrics.jsonl, row 2: not JSON"):
        preflight(config)


def test_damage_of_the_only_checkpoint_and_of_a_model_have_their_own_cures(
    config: Config, run: Path, model: Path, tmp_path: Path
) -> None:
    shutil.rmtree(run / "checkpoints/step_000002")
    cut(run / "checkpoints/step_000004/model.safetensors")
    with pytest.raises(ConfigError, match="there is none before it: copy it again, or start the run anew"):
        preflight(config)
    config.megatron_training.resume = None
    folder = Path(shutil.copytree(model, tmp_path / "model"))
    for name in ("model.safetensors", "generation_config.json"):
        cut(folder / name)
    config.actor_config.load = str(folder)
    with pytest.raises(ConfigError) as raised:
        preflight(config)
    told = str(raised.value).splitlines()
    assert [re.search(r"(\w+\.\w+): (not|damaged)", line).group(1) for line in told] == [  # type: ignore[union-attr]
        "generation_config.json",
        "model.safetensors",
    ]
    assert all(line.endswith("Fetch the model again.") for line in told)


def test_actor_refuses_a_checkpoint_with_a_damaged_file_that_it_does_not_read(model: Path, run: Path) -> None:
    cut(run / "checkpoints/step_000004/model.safetensors")
    with (
        Actor(update_config(model)) as actor,
        pytest.raises(CheckpointError, match=r"model\.safetensors: not a safetensors"),
    ):
        actor.load_checkpoint(run / "checkpoints/step_000004")


def test_checkpoint_of_an_actor_whose_model_folder_is_gone_is_whole(model: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(model, tmp_path / "model"))
    names = {path.name for path in folder.iterdir()}
    with Actor(update_config(folder)) as actor:
        shutil.rmtree(folder)
        actor.save_checkpoint(tmp_path / "checkpoint")
    assert names <= {path.name for path in (tmp_path / "checkpoint").iterdir()}
    assert (tmp_path / "checkpoint/tokenizer.json").read_bytes() == (model / "tokenizer.json").read_bytes()
