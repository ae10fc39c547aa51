"""A run of Ray that is interrupted: no process and no shared memory of its workers stays, of killed ones neither."""

from __future__ import annotations

import os
import signal
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path

import psutil
import pytest
import ray

from rl.cluster.endings import adopting_orphans, descendants, note_shared_memory
from rl.cluster.launch import _ray
from rl.config.schema import Config


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
    with pytest.raises(KeyboardInterrupt), adopting_orphans(), _ray(Config()):
        holders = [Holder.remote() for _ in range(2)]  # type: ignore[attr-defined]
        held = ray.get([holder.hold.remote() for holder in holders])
        blocks = [Path("/dev/shm") / name for name, _ in held]
        assert all(block.exists() for block in blocks)
        note_shared_memory(tmp_path)
        assert {name for name, _ in held} <= set((tmp_path / "blocks").read_text().split())
        os.kill(held[0][1], signal.SIGKILL)
        raise KeyboardInterrupt
    assert [block.exists() for block in blocks] == [False, False]
    assert running(here) == before
