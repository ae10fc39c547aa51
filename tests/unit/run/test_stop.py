"""SIGTERM and SIGUSR1: the run saves after its step and ends with a code of its own."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from rl import __main__ as command
from rl.config.schema import Config, ResumeMode
from rl.errors import StoppedError
from rl.run.auto_resume import with_checkpoint
from rl.run.checkpoints import checkpoint_damages
from tests.unit.run.counter import Counter, counted_config, run_steps


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return counted_config(tmp_path)


def send(number: signal.Signals) -> None:
    os.kill(os.getpid(), number)
    time.sleep(0.01)  # the handler runs between two instructions


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_signal_saves_after_the_step_and_says_how_to_go_on(
    config: Config, tmp_path: Path, number: signal.Signals, capfd: pytest.CaptureFixture[str]
) -> None:
    before = [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGUSR1)]
    with pytest.raises(StoppedError) as stopped:
        run_steps(config, during=lambda step, metrics: send(number) if step == 2 else None)
    assert f"{number.name}: the run saves after this step and ends." in capfd.readouterr().err
    assert str(stopped.value) == (
        f"{number.name}: the run has ended. To resume after step 3, give the same command with "
        f"megatron_training.resume={tmp_path / 'first'}, and another run_name if one is set."
    )
    assert checkpoint_damages(tmp_path / "first/checkpoints/step_000003") == []
    assert not (tmp_path / "first/summary.json").exists()
    assert [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGUSR1)] == before
    config.megatron_training.run_name, config.megatron_training.resume = "second", str(tmp_path / "first")
    assert [row["seen"] for row in run_steps(config).directory.read_metrics()] == [11.0, 22.0, 33.0, 44.0]


def test_step_that_has_its_checkpoint_is_not_saved_again(config: Config, tmp_path: Path) -> None:
    config.megatron_training.resume_mode = ResumeMode.AUTO
    with pytest.raises(StoppedError, match=r"To go on after step 2, saved in .*first, give the same command again\."):
        run_steps(config, during=lambda step, metrics: send(signal.SIGTERM) if step == 1 else None)
    assert [p.name for p in (tmp_path / "first/checkpoints").iterdir()] == ["step_000002"]
    assert run_steps(with_checkpoint(config)).directory.path == tmp_path / "first-2"


def test_signal_in_the_last_step_changes_nothing(config: Config) -> None:
    run = run_steps(config, during=lambda step, metrics: send(signal.SIGTERM) if step == 3 else None)
    assert run.directory.summary_file.is_file()


def test_second_sigterm_interrupts_at_once_and_a_second_sigusr1_does_not(config: Config, tmp_path: Path) -> None:
    def twice(step: int, metrics: dict[str, float]) -> None:
        if step == 2:
            send(signal.SIGUSR1)
            send(signal.SIGUSR1)
            metrics["between"] = 1.0
            send(signal.SIGTERM)

    with pytest.raises(KeyboardInterrupt):
        run_steps(config, during=twice)
    assert [p.name for p in (tmp_path / "first/checkpoints").iterdir()] == ["step_000002"]


def test_signal_before_the_first_step_saves_nothing(config: Config, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run_steps(config, until=3)
    config.megatron_training.run_name, config.megatron_training.resume = "second", str(tmp_path / "first")
    loaded = Counter.load_checkpoint

    def signalled(self: Counter, directory: Path) -> None:
        loaded(self, directory)
        send(signal.SIGTERM)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(StoppedError, match="Nothing was saved since the resume"):
        patch.setattr(Counter, "load_checkpoint", signalled)
        run_steps(config)
    assert list((tmp_path / "second/checkpoints").iterdir()) == []


def test_command_that_was_stopped_has_its_own_exit_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(argv: list[str]) -> int:
        raise StoppedError("SIGTERM: the run has ended.")

    monkeypatch.setitem(command.COMMANDS, "train", stop)
    assert command.main(["train"]) == 75
    assert capsys.readouterr().err == "SIGTERM: the run has ended.\n"
