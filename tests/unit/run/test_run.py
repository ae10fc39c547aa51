from __future__ import annotations

import errno
import io
import json
import logging
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from rl.batches import UpdateReport
from rl.config.kinds import TrackerName
from rl.config.schema import Config
from rl.errors import CheckpointError, ConfigError, DataError, RolloutError, TrainingError
from rl.observability.run_directory import RunDirectory
from rl.observability.timeline import step_spans
from rl.observability.tracker_clients import CLIENTS, Client
from rl.observability.trackers import Tracker
from rl.run.checkpoints import find_checkpoint
from rl.run.run import Run
from tests.samples import AtHand
from tests.unit.observability.examples import make_group
from tests.unit.run.counter import Counter, counted_config, run_steps


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return counted_config(tmp_path)


def test_run_leaves_everything_in_its_directory(config: Config, tmp_path: Path) -> None:
    run = run_steps(config)
    rows = run.directory.read_metrics()
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert rows[0]["perf/total_num_tokens"] == 7.0
    assert rows[0]["timing_s/step"] >= rows[0]["timing_s/gen"]
    assert json.loads(run.directory.summary_file.read_text())["tokens"] == 28.0
    assert sorted(p.name for p in run.directory.checkpoints.iterdir()) == ["step_000002", "step_000004"]
    assert len(list(run.directory.trajectories.glob("step_*.jsonl"))) == 4
    assert yaml.safe_load(run.directory.config_file.read_text())["megatron_training"]["train_iters"] == 4
    assert "torch 2." in run.directory.versions_file.read_text()


def test_timeline_has_the_driver_and_what_workers_did_within_the_step(config: Config) -> None:
    run = run_steps(config)
    metrics = run.directory.read_metrics()[1]
    spans = [span for span in step_spans(run.directory, 2) if span.trajectory is None]
    assert [(span.who, span.name) for span in spans] == [
        ("driver", "step"),
        ("driver", "gen"),
        ("actor 0", "update_on"),
    ]
    for span in spans[:2]:
        assert span.end - span.start == pytest.approx(metrics[f"timing_s/{span.name}"], abs=1e-5)


def test_resumed_run_goes_on_from_its_last_checkpoint(config: Config, tmp_path: Path) -> None:
    whole = run_steps(config)
    config.megatron_training.run_name = "second"
    with pytest.raises(KeyboardInterrupt):
        run_steps(config, until=3)
    assert not (tmp_path / "second/summary.json").exists()
    config.megatron_training.run_name = "third"
    config.megatron_training.resume = str(tmp_path / "second")
    resumed = run_steps(config)
    assert [row["seen"] for row in resumed.directory.read_metrics()] == [11.0, 22.0, 33.0, 44.0]
    assert json.loads(resumed.directory.summary_file.read_text())["tokens"] == 28.0
    assert [r["seen"] for r in whole.directory.read_metrics()] == [r["seen"] for r in resumed.directory.read_metrics()]


def test_resumed_run_keeps_the_early_warnings_of_its_steps(config: Config, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run_steps(config, until=3)  # its checkpoint is of step 2
    lines = [{"step": 1, "name": "repetition"}, {"step": 3, "name": "length_drift"}]
    (tmp_path / "first/warnings.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    config.megatron_training.run_name = "second"
    config.megatron_training.resume = str(tmp_path / "first")
    assert run_steps(config).directory.read_warnings() == lines[:1]


def test_early_warning_ends_the_run_after_its_step_is_written(config: Config, tmp_path: Path) -> None:
    config.megatron_training.early_warning.patience = 2
    config.megatron_training.early_warning.stop = {"entropy_low": 0.001}
    with (
        pytest.raises(TrainingError, match=r"step 3: .* entropy_low: .* is 0, at most 0.001 in 2 steps in a row"),
        Run.open(config, "tiny") as run,
    ):
        for step in run.steps(run.resume(Counter(), Counter())):
            with run.step(step) as metrics:
                metrics["actor/entropy"] = 0.0 if step else 0.5
                metrics.record([make_group()], AtHand())
                if run.is_save_due(step):
                    run.save(step + 1, Counter(), Counter())
    assert [row["warnings/entropy_low"] for row in run.directory.read_metrics()] == [0.0, 0.0, 1.0]
    assert run.directory.latest_checkpoint() == tmp_path / "first/checkpoints/step_000002"
    assert [line["action"] for line in run.directory.read_warnings()] == ["stop"]


def test_run_stops_after_skipped_steps_in_a_row_and_keeps_them(config: Config, tmp_path: Path) -> None:
    config.rl_config.max_skipped_steps = 2
    message = rf"2 steps in a row\. .* {tmp_path}/first/skipped/step_000003\.jsonl"
    with pytest.raises(TrainingError, match=message), Run.open(config, "tiny") as run:
        for step in run.steps(run.resume(Counter(), Counter())):
            with run.step(step) as metrics:
                group = make_group()
                offending = [group.trajectories[0].id] if step else []
                metrics.record_update(UpdateReport({"actor/skipped_steps": float(bool(step))}, offending))
                metrics.record([group], AtHand())
    assert [row["actor/skipped_steps"] for row in run.directory.read_metrics()] == [0.0, 1.0, 1.0]
    assert sorted(p.name for p in run.directory.skipped.iterdir()) == ["step_000002.jsonl", "step_000003.jsonl"]


def test_run_interrupted_while_its_processes_end_is_finished(config: Config, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), Run.open(config, "tiny") as run:
        for step in run.steps(run.resume(Counter(), Counter())):
            with run.step(step):
                pass
        raise KeyboardInterrupt
    assert json.loads((tmp_path / "first/summary.json").read_text())["steps"] == 4


def test_interrupted_run_says_how_to_resume(config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(KeyboardInterrupt):
        run_steps(config, until=3)
    told = f"To resume after step 2, give the same command with megatron_training.resume={tmp_path / 'first'}, and"
    assert f"interrupted. {told}" in capsys.readouterr().out


def test_a_service_without_a_checkpoint_says_that_it_kept_the_groups(
    config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(KeyboardInterrupt), Run.open(config, "tiny") as run:
        run.directory.journal.mkdir()
        (run.directory.journal / "00000000.json").write_text("{}")
        raise KeyboardInterrupt
    told = "the groups of clients are kept: to train on them first, give the same command with "
    assert f"{told}megatron_training.resume={tmp_path / 'first'}, and" in capsys.readouterr().out
    assert (tmp_path / "first" / "journal").is_dir()


def test_failed_run_says_how_to_resume_once(config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RolloutError), Run.open(config, "tiny") as run:
        with run.step(0) as metrics:
            metrics["seen"] = 1.0
        run.save(1, Counter(), Counter())
        raise RolloutError("no rollout worker is left.")
    assert capsys.readouterr().out.count("To resume after step 1, give the same command with") == 1


def test_checkpoint_cut_off_by_a_kill_is_no_checkpoint(config: Config, tmp_path: Path) -> None:
    run_steps(config)
    for suffix in (".partial", ".partial.writing"):
        (tmp_path / f"first/checkpoints/step_000005{suffix}").mkdir()
    assert find_checkpoint(tmp_path / "first").name == "step_000004"


def test_only_the_newest_checkpoints_are_kept(config: Config, tmp_path: Path) -> None:
    config.megatron_training.save_interval = 1
    config.megatron_training.max_checkpoints = 2
    run_steps(config)
    assert sorted(p.name for p in (tmp_path / "first/checkpoints").iterdir()) == ["step_000003", "step_000004"]


def test_failed_checkpoint_leaves_nothing_and_earlier_ones_stay(config: Config, tmp_path: Path) -> None:
    class FailsSecondTime(Counter):
        def save_checkpoint(self, directory: Path) -> None:
            super().save_checkpoint(directory)
            if directory.name.startswith("step_000002"):
                raise OSError("Input/output error")

    message = "the checkpoint after step 2 could not be written to .*first.* .Input/output error"
    with pytest.raises(CheckpointError, match=message), Run.open(config, "tiny") as run:
        for step in (1, 2):
            run.save(step, FailsSecondTime(), Counter())
    left = list(tmp_path.glob("*/checkpoints/*"))
    assert [p.name for p in left] == ["step_000001"]


def test_checkpoint_whose_place_in_the_data_cannot_be_written_keeps_what_was_trained(
    config: Config, tmp_path: Path
) -> None:
    class Unwritable(Counter):
        def state_dict(self) -> dict[str, Any]:
            return {"value": b"\xff"}

    with pytest.raises(CheckpointError, match=r"step_000001\.partial: the place in the data could not be written"):
        run_with(config, lambda run: run.save(1, Counter(), Unwritable()))
    (kept,) = tmp_path.glob("*/checkpoints/*")
    assert (kept.name, (kept / "value").read_text()) == ("step_000001.partial", "0")


def run_with(config: Config, work: Callable[[Run], object]) -> None:
    """Train one step, which does `work` before its metrics are written."""
    with Run.open(config, "tiny") as run:
        for step in run.steps(run.resume(Counter(), Counter())):
            with run.step(step):
                work(run)


class FullDisk(Counter):
    def save_checkpoint(self, directory: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")


def test_full_disk_at_the_first_checkpoint_names_what_stays(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=3_000_000))
    with pytest.raises(CheckpointError) as raised:
        run_with(config, lambda run: run.save(1, FullDisk(), Counter()))
    assert str(raised.value) == (
        f"megatron_training.output_dir: the disk of {tmp_path} is full, got 3 MB left. Make room, or keep fewer "
        "checkpoints with megatron_training.max_checkpoints, then start the run again."
    )
    assert f"no step was completed; the logs are in {tmp_path}/first-failed-1" in capsys.readouterr().err


def test_full_disk_later_says_how_to_resume_once(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    message = rf"the disk of {tmp_path} is full, .*, then resume the run\."
    with pytest.raises(CheckpointError, match=message), Run.open(config, "tiny") as run:
        with run.step(0):
            run.save(1, Counter(), Counter())
        monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=3_000_000))
        run.save(2, FullDisk(), Counter())
    assert capsys.readouterr().out.count("To resume after step 1, give the same command with") == 1


def test_full_disk_while_metrics_are_written_is_told_too(config: Config, tmp_path: Path) -> None:
    def fill(run: Run) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(CheckpointError, match=f"the disk of {tmp_path} is full"):
        run_with(config, fill)


def test_run_that_fails_of_a_bug_says_how_to_resume(config: Config, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ZeroDivisionError), Run.open(config, "tiny") as run:
        with run.step(0):
            pass
        run.save(1, Counter(), Counter())
        raise ZeroDivisionError
    assert capsys.readouterr().out.count("To resume after step 1, give the same command with") == 1


def test_second_run_of_a_name_is_refused(config: Config) -> None:
    run_steps(config)
    with pytest.raises(ConfigError, match=r"run_name: .*first exists already"):
        run_steps(config)


@pytest.mark.parametrize("error", [ConfigError("a worker did not start."), KeyboardInterrupt()])
def test_run_that_fails_before_its_first_metric_gives_its_name_free(
    config: Config, tmp_path: Path, error: BaseException
) -> None:
    for _ in range(2):
        with pytest.raises(type(error)), Run.open(config, "tiny"):
            raise error
    assert (tmp_path / "first-failed-1/config.yaml").is_file()
    assert (tmp_path / "first-failed-2/logs/driver.log").is_file()
    assert run_steps(config).directory.path == tmp_path / "first"


def test_what_is_said_after_a_run_was_set_aside_lands_in_its_log(config: Config, tmp_path: Path) -> None:
    """Python closes the log files first and destroys objects then, some of which warn."""
    with pytest.raises(KeyboardInterrupt), Run.open(config, "tiny"):
        raise KeyboardInterrupt
    for handler in logging.getLogger().handlers:
        handler.close()
    logging.getLogger("py.warnings").warning("subprocess 7 is still running")
    assert "subprocess 7 is still running" in (tmp_path / "first-failed-1/logs/driver.log").read_text()


def test_run_that_fails_later_keeps_its_name(config: Config, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run_steps(config, until=1)
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["first"]


def test_runs_without_a_name_never_share_a_folder(config: Config) -> None:
    config.megatron_training.run_name = None
    paths = {RunDirectory.create(config, "folder/tiny").path for _ in range(3)}
    assert len(paths) == 3
    assert all(path.name.startswith("tiny-") for path in paths)


def test_resume_without_a_checkpoint_is_an_error(config: Config, tmp_path: Path) -> None:
    RunDirectory.create(config, "tiny")
    with pytest.raises(CheckpointError, match="has no complete checkpoint"):
        find_checkpoint(tmp_path / "first")
    with pytest.raises(CheckpointError, match="is not there"):
        find_checkpoint(tmp_path / "absent")


def test_checkpoint_cut_off_while_written_does_not_count(config: Config, tmp_path: Path) -> None:
    run = run_steps(config)
    (run.directory.checkpoints / "step_000006.partial").mkdir()
    assert find_checkpoint(run.directory.path).name == "step_000004"


def test_resume_names_a_checkpoint_of_another_command(config: Config, tmp_path: Path) -> None:
    run = run_steps(config)
    config.megatron_training.resume, config.megatron_training.run_name = str(run.directory.path), "second"
    state = run.directory.checkpoint(4) / "run_state.json"
    state.write_text(json.dumps({"step": 4, "data": {"cursor": {}}}))
    with pytest.raises(CheckpointError, match=r"run_state.json: its place in the data has no 'value'. Resume with"):
        run_steps(config)


def test_evaluation_has_a_line_for_each_set(config: Config, capsys: pytest.CaptureFixture[str]) -> None:
    groups = [make_group(score=score) for score in (1.0, 0.0, 1.0)]
    for group, name in zip(groups, ("math", "math", "qa"), strict=True):
        group.prompt = replace(group.prompt, evaluation_set=name)
    with Run.open(config, "run") as run:
        run.log_evaluation(3, groups[:1], AtHand())
        run.log_evaluation(6, groups, AtHand())
        metrics = run.directory.read_metrics()
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("evaluation")]
    assert lines == [
        "evaluation after step 3: accuracy 1.000 on 1 question, 95 % interval 0.207 to 1.000",
        "evaluation after step 6, math: accuracy 0.500 on 2 questions, 95 % interval 0.095 to 0.905",
        "evaluation after step 6, qa: accuracy 1.000 on 1 question, 95 % interval 0.207 to 1.000",
        "evaluation after step 6, all: accuracy 0.667 on 3 questions, 95 % interval 0.208 to 0.939",
    ]
    assert "val-core/gcd/acc/mean@1" in metrics[0]
    assert "val-core/math/acc/mean@1" in metrics[1]
    assert run.directory.evaluation_file(6).is_file()


def test_is_evaluation_due_every_eval_interval_and_at_the_end(config: Config) -> None:
    config.megatron_training.eval_interval = 3
    with Run.open(config, "tiny") as run:
        assert [run.is_evaluation_due(step) for step in range(4)] == [False, False, True, True]
        config.megatron_training.eval_interval = 0
        assert [run.is_evaluation_due(step) for step in range(4)] == [False, False, False, True]


def test_metrics_file_with_a_last_line_cut_off_is_readable(config: Config) -> None:
    run = run_steps(config)
    with run.directory.metrics_file.open("a") as stream:
        stream.write('{"step": 5, "se')
    assert len(run.directory.read_metrics()) == 4
    with run.directory.metrics_file.open("a") as stream:
        stream.write("\n{}\n")
    with pytest.raises(DataError, match="row 5: not JSON"):
        run.directory.read_metrics()


def test_not_a_number_is_written_as_null(config: Config) -> None:
    with Run.open(config, "tiny") as run, run.step(0) as metrics:
        metrics["actor/grad_norm"] = float("nan")
    assert run.directory.read_metrics()[0]["actor/grad_norm"] is None


def test_resumed_run_gives_its_trackers_the_earlier_steps(config: Config, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config.megatron_training.trackers = [TrackerName.TENSORBOARD]
    with pytest.raises(KeyboardInterrupt):
        run_steps(config, until=3)
    config.megatron_training.run_name, config.megatron_training.resume = "second", str(tmp_path / "first")
    events = EventAccumulator(str(run_steps(config).directory.tensorboard)).Reload()
    assert [(e.step, e.value) for e in events.Scalars("seen")] == [(1, 11.0), (2, 22.0), (3, 33.0), (4, 44.0)]


def test_tracker_that_is_not_installed_is_refused(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    config.megatron_training.trackers = [TrackerName.WANDB]
    with pytest.raises(ConfigError, match=r"trackers: wandb needs the package wandb.* Run `pip install wandb`"):
        run_steps(config)


def test_tracker_that_does_not_start_frees_the_name(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(directory: RunDirectory, config: Config) -> Tracker:
        raise ConnectionError("no route to host")

    monkeypatch.setitem(CLIENTS, TrackerName.WANDB, Client("json", refuse, "Run `wandb login`."))
    config.megatron_training.trackers = [TrackerName.WANDB]
    with pytest.raises(ConfigError, match="wandb did not start"):
        run_steps(config)
    assert not (tmp_path / "first").exists()


def test_port_in_use_is_refused_before_the_directory_is_made(config: Config, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        config.megatron_training.prometheus_port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match="prometheus_port: cannot listen"):
            run_steps(config)
    assert not list(tmp_path.iterdir())


def test_progress_in_a_pipe_is_a_line_a_step() -> None:
    from rich.console import Console

    from rl.observability.progress import RunProgress

    out = io.StringIO()
    with RunProgress(2, target=Console(file=out)) as progress:
        progress.begin(0)
        progress.groups(1, 8)
        progress.step(1, {"critic/score/mean": 0.25, "perf/total_num_tokens": 100.0, "perf/time_per_step": 2.0})
    assert out.getvalue().startswith("step 1/2  reward 0.250  50 tokens/s  2.0 s  left ")
    assert out.getvalue().count("\n") == 1


def test_progress_on_a_terminal_shows_the_step_and_the_reward() -> None:
    from rich.console import Console

    from rl.observability.progress import RunProgress

    out = io.StringIO()
    with RunProgress(2, target=Console(file=out, force_terminal=True, width=120)) as progress:
        progress.begin(0)
        progress.step(1, {"critic/score/mean": 0.25})
    assert "1/2" in out.getvalue()
    assert "reward 0.250" in out.getvalue()
