"""Replaying: what a recording says against itself and the configuration, told before a process starts."""

from __future__ import annotations

import logging
import shutil
from copy import deepcopy
from pathlib import Path

import pytest

from rl.config.problems import Severity
from rl.config.schema import Config
from rl.config.validate import find_problems
from rl.errors import ConfigError
from rl.observability.run_directory import RunDirectory
from rl.preflight import inspect_run, preflight, preflight_replay
from rl.rollout.replay import Replay, find_recorded_steps
from rl.run.replay import replay_problems
from tests.recorded_run import Engine, make_config, sampling, train
from tests.tiny import make_tiny_tokenizer


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, RunDirectory]:
    """A run of three steps, of which the first and the third are recorded."""
    config = make_config(tmp_path_factory.mktemp("replay"))
    config.megatron_training.record_tokens_every, config.generate_config.dtype = 3, "float32"
    with sampling(config, Engine()) as rollouts:
        return config, train(config, rollouts)


@pytest.fixture
def run(written: tuple[Config, RunDirectory], tmp_path: Path) -> RunDirectory:
    return RunDirectory(Path(shutil.copytree(written[1].path, tmp_path / "recorded")))


@pytest.fixture
def config(written: tuple[Config, RunDirectory], run: RunDirectory) -> Config:
    config = deepcopy(written[0])
    config.megatron_training.run_name, config.megatron_training.replay = "again", str(run.path)
    return config


def refused(config: Config) -> str:
    with pytest.raises(ConfigError) as raised:
        preflight_replay(config)
    return str(raised.value)


def test_preflight_takes_a_recording_without_data_rewards_and_services(config: Config, run: RunDirectory) -> None:
    assert not Path(config.megatron_training.data_path).is_file()
    assert [step.place.step for step in preflight_replay(config)] == [0, 2]
    config.megatron_training.replay = str(run.tokens_file(3))
    assert [step.place.step for step in preflight_replay(config)] == [2]


def test_a_source_without_a_recording_is_refused(config: Config, run: RunDirectory, tmp_path: Path) -> None:
    for missing in (tmp_path / "none", run.tokens_file(2), run.config_file):
        config.megatron_training.replay = str(missing)
        assert f"megatron_training.replay: {missing}: must be a run directory or the tokens file" in refused(config)
    config.megatron_training.replay = str(tmp_path)
    assert "not a run directory (config.yaml is missing)" in refused(config)
    shutil.rmtree(run.tokens)
    config.megatron_training.replay = str(run.path)
    assert "no step's tokens are recorded. Take a run with megatron_training.record_tokens_every" in refused(config)


def test_damaged_files_are_refused(config: Config, run: RunDirectory) -> None:
    whole = run.tokens_file(3).read_bytes()
    run.tokens_file(3).write_bytes(whole[:-20])
    assert "step_000003.parquet: cannot be read as recorded tokens" in refused(config)
    run.tokens_file(3).write_bytes(whole)
    shutil.copyfile(run.step_file(2), run.step_file(1))
    assert "step_000001.parquet: must have the" in refused(config)
    assert "The files are not of one step" in refused(config)
    run.step_file(1).unlink()
    assert "step_000001.jsonl: the step's trajectories are missing" in refused(config)


def test_another_tokenizer_is_refused_by_a_token_that_differs(config: Config, tmp_path: Path) -> None:
    model = Path(shutil.copytree(config.actor_config.load, tmp_path / "other"))
    make_tiny_tokenizer(model, vocab_size=300)
    config.actor_config.load = str(model)
    message = refused(config)
    assert "megatron_training.replay: was recorded with another tokenizer: token" in message
    assert "Set the model that sampled it in actor_config.load" in message


def test_steps_keep_their_numbers_so_the_run_must_reach_them(config: Config, run: RunDirectory) -> None:
    config.megatron_training.replay, config.megatron_training.train_iters = str(run.tokens_file(3)), 2
    assert "train_iters: must be at least 3, the first recorded step, got 2" in refused(config)


def test_another_temperature_is_warned_of(config: Config, caplog: pytest.LogCaptureFixture) -> None:
    config.generate_config.sampling_config.temperature = 1.0
    with caplog.at_level(logging.WARNING, logger="rl"):
        preflight_replay(config)
    assert "the recorded tokens were sampled with 0.7, got 1, so" in caplog.text


def weights_warnings(config: Config) -> list[str]:
    return [p.text for p in replay_problems(config) if "was sampled with the weights" in p.text]


def test_a_step_of_other_weights_is_warned_of(config: Config, run: RunDirectory) -> None:
    (gap,) = weights_warnings(config)  # steps 1 and 3 are recorded, so the update of step 2 is missing
    assert "step 3 was sampled with the weights after step 2, got those after 1 updates" in gap
    config.megatron_training.replay = str(run.tokens_file(3))
    (later,) = weights_warnings(config)
    assert "step 3 was sampled with the weights after step 2, got those after 0 updates" in later
    assert f"Set megatron_training.resume={run.checkpoint(2)}" in later
    config.megatron_training.resume = str(run.checkpoint(2))
    assert weights_warnings(config) == []
    config.megatron_training.replay, config.megatron_training.resume = str(run.tokens_file(1)), None
    assert weights_warnings(config) == []


def test_validate_checks_the_recording_in_place_of_data_and_services(config: Config, run: RunDirectory) -> None:
    assert [p.text for p in inspect_run(config, is_strict=True) if p.severity is Severity.ERROR] == []
    run.step_file(3).unlink()
    found = [p.text for p in inspect_run(config, is_strict=False) if p.severity is Severity.ERROR]
    assert len(found) == 1 and "step_000003.jsonl: the step's trajectories are missing" in found[0]


def test_half_runs_do_not_mix() -> None:
    config = Config()
    config.megatron_training.rollout_only = True
    config.megatron_training.replay, config.megatron_training.resume = "runs/a", "runs/b"
    found = {p.text.partition(":")[0]: p.text for p in find_problems(config) if "rollout_only" in p.text}
    assert "Remove one" in found["megatron_training.replay"]
    assert "Set actor_config.load to the checkpoint instead" in found["megatron_training.resume"]


def test_rollout_only_tells_what_it_does_not_read() -> None:
    config = Config()
    training = config.megatron_training
    training.rollout_only, training.record_tokens_every = True, 0
    training.profile_step, training.eval_data_path, training.eval_interval = 2, {"sums": "sums.parquet"}, 5
    given = frozenset(f"megatron_training.{key}" for key in ("profile_step", "eval_data_path", "eval_interval"))
    found = [(p.severity, p.text) for p in find_problems(config, given) if "rollout_only" in p.text]
    errors = [text for severity, text in found if severity is Severity.ERROR]
    assert len(errors) == 1 and errors[0].startswith("megatron_training.record_tokens_every: must be above 0")
    warnings = {text.partition(":")[0] for severity, text in found if severity is Severity.WARNING}
    assert warnings == given
    training.record_tokens_every, training.rollout_only = 10, False
    assert [p.text for p in find_problems(config, given) if "rollout_only" in p.text] == []


def test_a_checkpoint_of_a_replay_is_resumed_by_a_replay_alone(config: Config) -> None:
    replayed = train(config, Replay(find_recorded_steps(Path(str(config.megatron_training.replay)))))
    config.megatron_training.run_name, config.megatron_training.resume = "third", str(replayed.checkpoint(1))
    preflight_replay(config)
    config.megatron_training.replay = None
    with pytest.raises(ConfigError, match="was written by a replay, which has no place in the data"):
        preflight(config)
