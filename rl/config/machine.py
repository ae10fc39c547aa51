"""Free memory of this machine, or of the container that this process runs in."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil

from rl.errors import ConfigError

_GROUPS = Path("/sys/fs/cgroup")
_VERSION_1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
_VERSION_2 = ("memory.max", "memory.current", "inactive_file")
_ASK_DEVICES = """
import json, torch
print(json.dumps([torch.cuda.mem_get_info(i) for i in range(torch.cuda.device_count())]))
"""
_ASK_TIMEOUT_S = 120.0


def free_memory_bytes() -> int:
    """Memory that a run may take: what is available on the machine, or less under a container's limit."""
    try:
        groups = Path("/proc/self/cgroup").read_text()
    except OSError:  # not Linux
        groups = ""
    return min([psutil.virtual_memory().available, *limited_room(groups)])


def free_shared_bytes() -> int:
    """Free bytes in /dev/shm."""
    return shutil.disk_usage("/dev/shm").free


def free_device_memory() -> list[tuple[int, int]]:
    """Free and total bytes of each accelerator that CUDA_VISIBLE_DEVICES shows.

    A child process asks, because asking leaves a context of half a gigabyte on each device.

    Raises:
        ConfigError: The accelerators do not answer.
    """
    command = [sys.executable, "-c", _ASK_DEVICES]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=_ASK_TIMEOUT_S, check=True)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        reason = str(error.stderr or error).strip().rpartition("\n")[2]
        raise ConfigError(
            f"megatron_training.device: the accelerators do not answer, got '{reason}'. "
            "Look at `nvidia-smi`, or set cpu."
        ) from error
    return [(free, total) for free, total in json.loads(answer.stdout)]


def limited_room(groups: str, root: Path = _GROUPS) -> Iterator[int]:
    """Free bytes under each memory limit of a process, from its own control group up.

    Args:
        groups: Lines of /proc/PID/cgroup, `number:controllers:path`; number 0 is the hierarchy of version 2.
        root: Where the hierarchies are mounted.

    Yields:
        Bytes; cached file pages count as free, since the kernel reclaims them first.
    """
    for number, controllers, place in (line.split(":", 2) for line in groups.splitlines()):
        if number != "0" and "memory" not in controllers.split(","):
            continue
        top, files = (root, _VERSION_2) if number == "0" else (root / "memory", _VERSION_1)
        own = top / place.lstrip("/")
        for group in (own, *own.parents):
            if group.is_relative_to(top) and (group / files[0]).is_file():
                yield from _room(group, *files)


def _room(group: Path, limit: str, used: str, reclaimable: str) -> Iterator[int]:
    allowed = (group / limit).read_text().strip()
    if allowed != "max":
        statistics = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        yield max(0, int(allowed) - int((group / used).read_text()) + int(statistics.get(reclaimable, 0)))
