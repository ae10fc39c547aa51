"""`rl doctor` on a machine and a configuration that are broken on purpose."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from rl.__main__ import main
from rl.config.load import Composed
from rl.config.schema import Config
from rl.doctor import machine
from rl.doctor.findings import Check, Finding, Status, ok
from rl.doctor.run import _MEANINGS, _judge, check_generation, check_output, configuration_checks
from rl.errors import ServiceError
from rl.preflight import run_checks
from rl.run.parts import RunParts
from tests.tiny import make_tiny_model

ROOT = Path(__file__).resolve().parents[2]


def texts(findings: Iterable[Finding], status: Status) -> list[str]:
    return [finding.text for finding in findings if finding.status is status]


def test_a_check_that_does_not_end_is_a_failure_and_hides_no_other() -> None:
    ended = threading.Event()

    def hangs() -> Iterator[Finding]:
        ended.wait(60)
        yield ok("late")

    (found,) = Check("x", hangs, deadline_s=0.05, on_deadline="Look at it.").run()
    ended.set()
    assert found == Finding(Status.FAIL, "no answer within 0 s. Look at it.")


def test_errors_of_a_check_are_failures() -> None:
    def refuses() -> list[Finding]:
        raise ServiceError("sandbox: did not start. Do this.")

    def is_broken() -> list[Finding]:
        raise KeyError("x")

    assert Check("x", refuses).run() == [Finding(Status.FAIL, "sandbox: did not start. Do this.")]
    assert texts(Check("x", is_broken).run(), Status.FAIL)[0].startswith("the check itself failed with KeyError: 'x'")


def test_another_version_of_torch_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, version in (("torch", "2.5.1"), ("rich", "1.0")):
        folder = tmp_path / f"{name}-{version}.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    monkeypatch.syspath_prepend(tmp_path)
    found = list(machine.check_packages())
    assert texts(found, Status.FAIL) == [
        "torch: tested is 2.13.0, installed is 2.5.1. Runs may not start. Run scripts/setup.sh."
    ]
    assert "rich 1.0 (" in texts(found, Status.WARN)[0]


def test_a_low_limit_of_open_files_ends_with_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (512, hard))
    try:
        assert main(["doctor"]) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    line = next(line for line in capsys.readouterr().out.splitlines() if "open files" in line)
    assert line.startswith("fail open files: a process may open 512 files: a run ends with 'Too many open files'.")
    assert "Raise it with `ulimit -n " in line


@pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("unshare") is None, reason="mounting a small /dev/shm needs root and unshare"
)
def test_a_small_shared_memory_and_a_full_disk_are_named(tmp_path: Path) -> None:
    make_tiny_model(tmp_path / "model", "qwen2", tied=True, num_heads=2, num_kv_heads=1)
    (tmp_path / "small").mkdir()
    script = f"""
import sys
from pathlib import Path
from rl.config.load import Composed
from rl.config.schema import Config
from rl.doctor.machine import check_shared_memory
from rl.doctor.run import check_output
config = Config()
config.actor_config.load, config.megatron_training.output_dir = {str(tmp_path / "model")!r}, {str(tmp_path / "small")!r}
for finding in (*check_shared_memory(), *check_output(config)):
    sys.stdout.write(f"{{finding.status}} {{finding.text}}\\n")
"""
    mounts = f"mount -t tmpfs -o size=64m tmpfs /dev/shm && mount -t tmpfs -o size=1m tmpfs {tmp_path}/small"
    command = ["unshare", "-m", "sh", "-c", f'{mounts} && exec {sys.executable} -c "$SCRIPT"']
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"SCRIPT": script}, capture_output=True, text=True, timeout=120
    )
    if "mount" in done.stderr:
        pytest.skip(f"this container may not mount: {done.stderr.strip()[-80:]}")
    shared, disk = done.stdout.splitlines()
    assert shared.startswith("fail 64 MiB are free in /dev/shm: no run fits.")
    assert disk.startswith(f"fail {tmp_path}/small: 1 MiB are free, a checkpoint and the one that replaces it need ")


def test_many_checkpoints_that_do_not_fit_are_a_warning(tmp_path: Path) -> None:
    make_tiny_model(tmp_path / "model", "qwen2", tied=True, num_heads=2, num_kv_heads=1)
    config = Config()
    config.actor_config.load, config.megatron_training.output_dir = str(tmp_path / "model"), str(tmp_path)
    config.megatron_training.train_iters, config.megatron_training.save_interval = 100_000_000, 1
    (found,) = check_output(config)
    assert found.status is Status.WARN
    assert "100000000 checkpoints need " in found.text
    assert found.text.endswith("megatron_training.max_checkpoints keeps fewer.")
    config.megatron_training.max_checkpoints = 1
    assert [finding.status for finding in check_output(config)] == [Status.OK]


def test_engine_that_fails_is_told_with_its_reason() -> None:
    config = Config()
    config.generate_config.dtype, config.megatron_training.bf16 = "float32", False
    assert texts(check_generation(config), Status.FAIL) == [
        "actor_config.load: no model in '', so there is nothing to try."
    ]
    (died,) = _judge(config, -9, "Loading\n")
    assert died.text.startswith("the engine or the actor failed: it was killed, probably for lack of memory.")
    (failed,) = _judge(config, 1, "INFO\nValueError: no kernel\nRolloutError: vLLM did not start\n")
    assert failed.text.startswith("the engine or the actor failed: RolloutError: vLLM did not start.")
    answer = 'turnwise doctor: {"start_s": 9.0, "generate_s": 0.5, "text": " 4", "num_tokens": 2, "difference": %s}\n'
    (same,) = _judge(config, 0, answer % "1e-6")
    assert same == Finding(
        Status.OK, "' 4' after 9 s of loading, 0.50 s; log-probs of engine and actor differ by at most 1.0e-06"
    )
    (other,) = _judge(config, 0, answer % "0.5")
    assert other.status is Status.FAIL
    assert "they do not have the same model" in other.text


def test_every_check_of_a_run_and_of_a_replay_has_a_meaning() -> None:
    config, names = Config(), set[str]()
    for replay in (None, "runs/a"):
        config.megatron_training.replay = replay
        names |= set(run_checks(RunParts(config), frozenset(), is_strict=True))
    assert names == set(_MEANINGS)


def test_a_replay_is_checked_without_services_and_engine() -> None:
    config = Config()
    config.rl_config.multi_turn_enable, config.rl_config.tool_config_path = True, "tools.yaml"
    engine = {"embedded services", "two tokens"}
    for replay, expected in ((None, engine), ("runs/a", set())):
        config.megatron_training.replay = replay
        names = {check.name for check in configuration_checks(Composed(config, frozenset(), ()), with_engine=True)}
        assert names & engine == expected


INTERRUPTED = """
import sys, threading
from pathlib import Path
from rl.config.schema import Config
from rl.doctor.run import check_generation

folder, config = Path(sys.argv[1]), Config()
config.actor_config.load, sys.executable = str(folder), str(folder / "engine")
threading.Thread(target=lambda: list(check_generation(config)), daemon=True).start()
sys.stdout.write((folder / "started").read_text())  # waits for the engine
raise KeyboardInterrupt
"""


def test_an_interrupt_leaves_no_engine_and_no_folder(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (temporary := tmp_path / "temporary").mkdir()
    os.mkfifo(tmp_path / "started")
    (tmp_path / "engine").write_text(f"#!/bin/sh\necho $$ > {tmp_path}/started\nsleep 600 & wait\n")
    (tmp_path / "engine").chmod(0o755)
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED, str(tmp_path)],
        capture_output=True, text=True, timeout=60, cwd=ROOT, env=os.environ | {"TMPDIR": str(temporary)},
    )  # fmt: skip
    assert "KeyboardInterrupt" in done.stderr
    status = Path("/proc", done.stdout.strip(), "status")
    assert done.stdout.strip().isdecimal() and not status.exists()
    assert list(temporary.glob("turnwise-doctor-*")) == []
