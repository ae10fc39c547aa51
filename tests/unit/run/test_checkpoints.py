"""Checkpoints on the disk: every damage is found, `auto` passes over it, the best stays, a full disk is survived."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from rl.__main__ import main
from rl.config.load import compose_config
from rl.config.schema import Config, ResumeMode
from rl.errors import CheckpointError
from rl.observability.log import setup_logging
from rl.observability.run_directory import RunDirectory
from rl.run.auto_resume import with_checkpoint
from rl.run.checkpoints import checkpoint_damages, read_state
from rl.run.resume import resume_problems, why_ended
from rl.run.run import Run
from tests.unit.run.counter import Counter, counted_config, run_steps

FILES = ["manifest.json", "optimizer/exp_avg/moments", "run_state.json", "trainer_state.json", "value"]


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return counted_config(tmp_path)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_steps(counted_config(tmp_path_factory.mktemp("written"))).directory.path


@pytest.fixture
def checkpoint(written: Path, tmp_path: Path) -> Path:
    """The newer of two checkpoints."""
    return Path(shutil.copytree(written, tmp_path / "first")) / "checkpoints" / "step_000004"


def test_manifest_lists_every_other_file_with_size_and_checksum(checkpoint: Path) -> None:
    names = sorted(p.relative_to(checkpoint).as_posix() for p in checkpoint.rglob("*") if p.is_file())
    assert names == FILES
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    assert manifest["format"] == 1
    assert sorted(manifest["files"]) == FILES[1:]
    assert manifest["files"]["value"] == {"size": 2, "sha256": hashlib.sha256(b"40").hexdigest()}
    sums = "".join(f"{entry['sha256']}  {name}\n" for name, entry in manifest["files"].items())
    subprocess.run(["sha256sum", "--check", "--quiet"], cwd=checkpoint, input=sums, text=True, check=True)
    assert checkpoint_damages(checkpoint) == []


def test_files_and_folders_are_on_the_disk_before_the_checkpoint_has_its_name(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    sync, rename = os.fsync, Path.rename

    def note_sync(descriptor: int) -> None:
        sync(descriptor)
        done.append(os.readlink(f"/proc/self/fd/{descriptor}").removeprefix(f"{tmp_path}/first/checkpoints"))

    def note_rename(path: Path, target: Path) -> Path:
        done.append(f"{path.name} is {target.name}")
        return rename(path, target)

    with Run.open(config, "tiny") as run:
        monkeypatch.setattr(os, "fsync", note_sync)
        monkeypatch.setattr(Path, "rename", note_rename)
        run.save(1, Counter(), Counter())
        monkeypatch.undo()
    partial = "/step_000001.partial"
    assert set(done[: len(FILES) - 1]) == {f"{partial}/{name}" for name in FILES[1:]}
    assert done[len(FILES) - 1 :] == [
        f"{partial}/manifest.json", f"{partial}/optimizer/exp_avg", f"{partial}/optimizer", partial,
        "step_000001.partial is step_000001", "",
    ]  # fmt: skip


@pytest.mark.parametrize("spoil", [cut, flip, Path.unlink])
@pytest.mark.parametrize("name", FILES)
def test_each_cut_flipped_or_missing_file_is_named_with_what_to_do(
    checkpoint: Path, name: str, spoil: Callable[[Path], None]
) -> None:
    if name == "manifest.json" and spoil is cut:
        cut(checkpoint / name)  # its last byte is a line break, without which it is whole
    spoil(checkpoint / name)
    (damage,) = checkpoint_damages(checkpoint)
    assert damage.startswith(f"{checkpoint / name}: {'missing' if spoil is Path.unlink else 'damaged'}")
    assert damage.endswith(f" take the one before it, {checkpoint.with_name('step_000002')}.")


def test_several_damaged_files_are_all_named(checkpoint: Path) -> None:
    flip(checkpoint / "value")
    (checkpoint / "trainer_state.json").unlink()
    named = [damage.partition(": ")[0].rpartition("/")[2] for damage in checkpoint_damages(checkpoint)]
    assert named == ["trainer_state.json", "value"]


def test_file_that_the_manifest_does_not_name_is_left_alone(checkpoint: Path) -> None:
    (checkpoint / "notes.txt").write_text("the best so far")
    assert checkpoint_damages(checkpoint) == []


def test_checkpoint_of_a_version_without_manifests_is_whole(checkpoint: Path) -> None:
    (checkpoint / "manifest.json").unlink()
    state = json.loads((checkpoint / "run_state.json").read_text())
    (checkpoint / "run_state.json").write_text(json.dumps({"step": state["step"], "data": state["data"]}))
    assert checkpoint_damages(checkpoint) == []


def test_resume_of_a_damaged_checkpoint_is_refused(config: Config, checkpoint: Path) -> None:
    flip(checkpoint / "optimizer/exp_avg/moments")
    config.megatron_training.resume = str(checkpoint)
    (problem,) = resume_problems(config, "train")
    assert f"megatron_training.resume: {checkpoint}/optimizer/exp_avg/moments: damaged (its SHA-256" in problem.text


def interrupted(config: Config, until: int) -> None:
    with pytest.raises(KeyboardInterrupt):
        run_steps(config, until=until)


@pytest.fixture
def auto(config: Config) -> Config:
    config.megatron_training.resume_mode = ResumeMode.AUTO
    return config


def test_auto_starts_anew_goes_on_and_knows_the_end(
    auto: Config, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    setup_logging()
    assert with_checkpoint(auto) is auto
    assert f"no checkpoint of a run 'first' in {tmp_path}, starts anew" in capfd.readouterr().err
    interrupted(auto, until=3)
    found = with_checkpoint(auto)
    assert found.megatron_training.resume == str(tmp_path / "first/checkpoints/step_000002")
    assert why_ended(found, tmp_path / "first/checkpoints/step_000002") == ""
    finished = run_steps(found).directory
    assert finished.path == tmp_path / "first-2"
    assert [row["seen"] for row in finished.read_metrics()] == [11.0, 22.0, 33.0, 44.0]
    found = with_checkpoint(auto)
    assert found.megatron_training.resume == str(finished.checkpoint(4))
    assert f"{finished.checkpoint(4)} is of step 4" in why_ended(found, finished.checkpoint(4))


def test_auto_passes_over_damage_and_runs_without_a_checkpoint_and_says_so(
    auto: Config, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    auto.megatron_training.save_interval = 1
    interrupted(auto, until=3)
    flip(tmp_path / "first/checkpoints/step_000003/value")
    (tmp_path / "first/checkpoints/step_000002/trainer_state.json").unlink()
    cut(tmp_path / "first/checkpoints/step_000002/value")
    auto.megatron_training.save_interval = 4
    interrupted(with_checkpoint(auto), until=2)  # first-2, which writes no checkpoint
    capfd.readouterr()
    found = with_checkpoint(auto)
    assert found.megatron_training.resume == str(tmp_path / "first/checkpoints/step_000001")
    lines = capfd.readouterr().err.splitlines()
    assert [line.partition("resume_mode: ")[2] for line in lines] == [
        f"skipped {tmp_path}/first-2: it has no checkpoint",
        f"skipped {tmp_path}/first/checkpoints/step_000003: value: damaged (its SHA-256 is not that of manifest.json)",
        f"skipped {tmp_path}/first/checkpoints/step_000002: trainer_state.json: missing (manifest.json lists it), and "
        "1 further file",
        f"continues from {tmp_path}/first/checkpoints/step_000001",
    ]
    assert run_steps(found).directory.path == tmp_path / "first-3"


def test_auto_leaves_runs_of_other_names_alone(auto: Config, tmp_path: Path) -> None:
    interrupted(auto, until=3)
    auto.megatron_training.run_name = "first-2"  # of its own, not the second of `first`
    auto.megatron_training.resume_mode = ResumeMode.PATH
    run_steps(auto)
    (tmp_path / "first-3").mkdir()  # no run
    auto.megatron_training.run_name, auto.megatron_training.resume_mode = "first", ResumeMode.AUTO
    found = with_checkpoint(auto)
    assert found.megatron_training.resume == str(tmp_path / "first/checkpoints/step_000002")
    assert run_steps(found).directory.path == tmp_path / "first-4"
    assert [run.path.name for run in RunDirectory.of_name(tmp_path, "first")] == ["first", "first-4"]


def test_auto_without_a_checkpoint_continues_from_resume_and_never_does_not(auto: Config, checkpoint: Path) -> None:
    auto.megatron_training.run_name = "second"
    auto.megatron_training.resume = str(checkpoint)
    assert with_checkpoint(auto).megatron_training.resume == str(checkpoint)
    auto.megatron_training.resume_mode = ResumeMode.NEVER
    assert with_checkpoint(auto).megatron_training.resume is None
    assert auto.megatron_training.resume == str(checkpoint)


@pytest.mark.parametrize(
    ("written", "metric"),
    [
        ("val-core/all/acc/mean@1", "val-core/all/acc/mean@1"),
        ("-actor/ppo_kl", "-actor/ppo_kl"),
        ("null", None),
    ],
)
def test_best_metric_can_be_given_on_the_command_line(tmp_path: Path, written: str, metric: str | None) -> None:
    (tmp_path / "empty.yaml").write_text("")
    composed = compose_config("empty", [f"megatron_training.best_metric={written}"], tmp_path)
    assert [problem.text for problem in composed.problems] == []
    assert composed.config.megatron_training.best_metric == metric


def test_command_of_a_run_that_auto_finds_finished_ends_with_success(
    auto: Config, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (checkpoint.parents[1] / "again.yaml").write_text(
        yaml.safe_dump({"megatron_training": {"train_iters": 4, "data_path": "rows.jsonl", "run_name": "first"}})
    )
    overrides = [f"megatron_training.output_dir={checkpoint.parents[2]}", "megatron_training.resume_mode=auto"]
    arguments = ["--config-dir", str(checkpoint.parents[1]), "--config-name", "again", *overrides]
    assert main(["sft", *arguments, "actor_config.load=model"]) == 0
    assert f"{checkpoint.parents[1]}: finished already. {checkpoint} is of step 4" in capsys.readouterr().out
    assert main(["sft", *arguments, "actor_config.load=model", "megatron_training.train_iters=5"]) == 2  # no model


def scores(*values: float) -> Callable[[int, dict[str, float]], object]:
    return lambda step, metrics: metrics.update({"score": values[step]})


@pytest.mark.parametrize(
    ("metric", "kept", "value"), [("score", [2, 4], 0.75), ("-score", [3, 4], 0.25), (None, [4], None)]
)
def test_best_checkpoint_stays_beyond_the_newest(
    config: Config, metric: str | None, kept: list[int], value: float | None
) -> None:
    config.megatron_training.best_metric = metric
    config.megatron_training.save_interval = config.megatron_training.max_checkpoints = 1
    run = run_steps(config, during=scores(0.5, 0.75, 0.25, 0.75))  # a later value that is equal is not better
    assert [int(p.name[-6:]) for p in run.directory.complete_checkpoints()] == kept
    best = json.loads(run.directory.summary_file.read_text())["best"]
    expected = metric and {
        "metric": metric, "value": value, "step": kept[0], "checkpoint": str(run.directory.checkpoint(kept[0]))
    }  # fmt: skip
    assert best == expected
    assert read_state(run.directory.checkpoint(4))["best"] == expected


def test_best_value_and_step_survive_a_resume(
    config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config.megatron_training.best_metric = "score"
    config.megatron_training.save_interval = config.megatron_training.max_checkpoints = 1
    with pytest.raises(KeyboardInterrupt):
        run_steps(config, until=2, during=scores(0.9, 0.1))
    config.megatron_training.run_name, config.megatron_training.resume = "second", str(tmp_path / "first")
    resumed = run_steps(config, during=scores(0.0, 0.0, 0.8, 0.2)).directory
    assert f"best score: 0.9 after step 1, in {tmp_path}/first/checkpoints/step_000001" in capsys.readouterr().out
    assert [p.name for p in resumed.complete_checkpoints()] == ["step_000004"]
    assert (tmp_path / "first/checkpoints/step_000001").is_dir()
    config.megatron_training.run_name, config.megatron_training.best_metric = "third", "seen"
    another = run_steps(config).directory
    assert json.loads(another.summary_file.read_text())["best"]["step"] == 4


def test_best_metric_that_is_never_logged_or_no_number_is_told_or_ignored(
    config: Config, capfd: pytest.CaptureFixture[str]
) -> None:
    config.megatron_training.best_metric = "scores"
    config.megatron_training.save_interval = 1
    run_steps(config, during=scores(0.5, 0.5, 0.5, 0.5))
    (told,) = [line for line in capfd.readouterr().err.splitlines() if "training.best_metric:" in line]
    assert "step 1 has no 'scores'. Did you mean 'score'?" in told
    config.megatron_training.run_name, config.megatron_training.best_metric = "second", "score"
    run = run_steps(config, during=scores(float("nan"), 0.5, float("inf"), 0.25))
    assert json.loads(run.directory.summary_file.read_text())["best"]["step"] == 2


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of one megabyte, in memory."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    try:
        subprocess.run(command, check=True, capture_output=True, timeout=20)
    except (OSError, subprocess.SubprocessError) as error:
        pytest.skip(f"a small disk cannot be mounted here, which needs root: {error}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True, timeout=20)  # the run's log is still open


def test_full_disk_keeps_the_last_checkpoint_and_the_run_goes_on_with_room(small_disk: Path) -> None:
    class Large(Counter):
        def save_checkpoint(self, directory: Path) -> None:
            super().save_checkpoint(directory)
            (directory / "model.bin").write_bytes(bytes(300_000))

    config = counted_config(small_disk)
    config.megatron_training.resume_mode = ResumeMode.AUTO
    (small_disk / "another's").write_bytes(bytes(400_000))
    with pytest.raises(CheckpointError, match=rf"the disk of {small_disk} is full, got 0 MB left\. Make room"):
        train(config, Large())
    (kept,) = (small_disk / "first/checkpoints").iterdir()
    assert kept.name == "step_000001"
    assert checkpoint_damages(kept) == []
    (small_disk / "another's").unlink()
    config.megatron_training.max_checkpoints = 1
    shutil.rmtree(small_disk / "first/logs")
    resumed = with_checkpoint(config)
    assert resumed.megatron_training.resume == str(kept)
    resumed.megatron_training.train_iters = 2
    assert train(resumed, Large()).latest_checkpoint() == small_disk / "first-2/checkpoints/step_000002"


def train(config: Config, actor: Counter) -> RunDirectory:
    with Run.open(config, "tiny") as run:
        rows = Counter()
        for step in run.steps(run.resume(actor, rows)):
            with run.step(step):
                run.save(step + 1, actor, rows)
    return run.directory
