"""A run of Ray that is interrupted: no process and no shared memory of its workers stays, of killed ones neither."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path

import psutil
import pytest
import ray

from rl.cluster.endings import adopting_orphans, descendants, end_belongings, terminated_like_interrupted
from rl.cluster.launch import _ray
from rl.config.schema import Config
from rl.services.owned_folder import owned_folder


@ray.remote(num_cpus=0)
class Holder:
    """Has shared memory as vLLM's processes do, and with it a resource tracker of `multiprocessing` as its child."""

    def hold(self) -> tuple[str, int]:
        """Name of the block, and the process that has it."""
        self.block = SharedMemory(create=True, size=8)
        return self.block.name, os.getpid()


def running(process: psutil.Process) -> set[psutil.Process]:
    return {child for child in descendants(process) if child.status() != psutil.STATUS_ZOMBIE}


def test_interrupted_ray_leaves_no_process_and_no_shared_memory(tmp_path: Path) -> None:
    here = psutil.Process()
    before = running(here)
    blocks: list[Path] = []
    with (
        pytest.raises(KeyboardInterrupt),
        terminated_like_interrupted(),  # the clean-up ignores signals
        owned_folder("turnwise-run-", Path("/tmp")) as folder,
        adopting_orphans(),
        _ray(Config(), folder, tmp_path),
    ):
        holders = [Holder.remote() for _ in range(2)]  # type: ignore[attr-defined]
        held = ray.get([holder.hold.remote() for holder in holders])
        blocks = [Path("/dev/shm") / name for name, _ in held]
        assert all(block.exists() for block in blocks)
        os.kill(held[0][1], signal.SIGKILL)
        raise KeyboardInterrupt
    assert [block.exists() for block in blocks] == [False, False]
    assert running(here) == before


KILLED_RUN = """
import os, pathlib, signal, sys, ray
from rl.cluster.endings import adopting_orphans, noting_belongings
from rl.cluster.launch import _ray
from rl.config.schema import Config
from rl.services.owned_folder import owned_folder
from rl.services.owned_folder import OwnedFolder
from tests.distributed.test_endings import Holder
folder = OwnedFolder(sys.argv[1], pathlib.Path("/tmp")).path
with adopting_orphans(), _ray(Config(), folder, folder):
    with noting_belongings(folder):
        holder = Holder.remote()
        print(ray.get(holder.hold.remote())[0], flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_the_next_run_ends_what_a_killed_driver_has_left() -> None:
    """The driver has no time to clean up; some of Ray's processes live on for half a minute by themselves."""
    prefix = f"turnwise-run-{os.getpid()}-"  # of this test alone: others may run beside it
    script = [sys.executable, "-c", KILLED_RUN, prefix]
    killed = subprocess.run(script, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, timeout=120)
    assert killed.returncode == -signal.SIGKILL
    block = Path("/dev/shm") / killed.stdout.split()[-1]
    (left,) = Path("/tmp").glob(f"{prefix}*")
    noted = [pid for pid, _ in json.loads((left / "belongings.json").read_text())["processes"]]
    with owned_folder(prefix, Path("/tmp"), on_abandoned=end_belongings):
        pass
    assert len(noted) > 3
    assert not block.exists() and not left.exists()
    _, alive = psutil.wait_procs([psutil.Process(pid) for pid in noted if psutil.pid_exists(pid)], timeout=10)
    assert not [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]
