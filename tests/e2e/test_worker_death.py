"""A worker that is killed in the middle of a run ends it: named, with the way to resume, and nothing left behind."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tests.e2e.commands import TIMEOUT_S, ended, start
from tests.e2e.test_tool_outage import wait_until


def shared_memory_of(processes: list[psutil.Process]) -> set[Path]:
    """What they have mapped of /dev/shm: rings between vLLM's processes, semaphores, OpenMP's marks."""
    mapped: set[Path] = set()
    for process in processes:
        with suppress(psutil.Error):  # a program in the sandbox, gone or another user's
            mapped |= {Path(region.path) for region in process.memory_maps()}
    return {path for path in mapped if path.is_relative_to("/dev/shm") and path.exists()}


def folders_with_a_lock_of(pid: int) -> list[Path]:
    """Locks of the folders that a run has for itself, as files that its driver holds open."""
    opened = [Path(file.path) for file in psutil.Process(pid).open_files()]
    return [path for path in opened if path.parent.name.startswith("turnwise-run-")]


@pytest.mark.timeout(2 * TIMEOUT_S)
def test_killed_actor_ends_the_run_which_tells_how_to_resume_and_leaves_nothing(workspace: Path) -> None:
    run = start("train", workspace, "killed", "megatron_training.train_iters=1000")
    folder = workspace / "runs" / "killed"
    with ended(run):
        wait_until((folder / "checkpoints" / "step_000001").exists, run)
        processes = psutil.Process(run.pid).children(recursive=True)
        (actor,) = [p for p in processes if "".join(p.cmdline()).startswith("ray::ActorWorker")]
        shared = shared_memory_of(processes)
        folders = [path.parent for path in folders_with_a_lock_of(run.pid)]
        assert any(path.name.startswith("psm_") for path in shared)
        actor.kill()
        output, _ = run.communicate(timeout=TIMEOUT_S)
    told = output.replace("\n", "")
    assert run.returncode == 2
    assert "the actor's" in told and "the worker process died" in told
    assert f"megatron_training.resume={folder}" in told
    assert "Traceback" not in output
    assert not [process for process in processes if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]
    assert not [path for path in shared if path.exists()]
    assert {path.parent for path in folders} == {Path("/dev/shm"), Path("/tmp")}
    assert not [path for path in folders if path.exists()]
    assert "(raylet)" not in output
