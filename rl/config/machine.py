"""What this machine, or the container this process is in, has to spare."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import psutil

_GROUPS = Path("/sys/fs/cgroup")
_VERSION_1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
_VERSION_2 = ("memory.max", "memory.current", "inactive_file")


def free_memory_bytes() -> int:
    """Memory that a run may still take: what the machine has available, or less under a container's limit."""
    try:
        groups = Path("/proc/self/cgroup").read_text()
    except OSError:  # not Linux
        groups = ""
    return min([psutil.virtual_memory().available, *limited_room(groups)])


def free_shared_bytes() -> int:
    """Room in /dev/shm."""
    return shutil.disk_usage("/dev/shm").free


def limited_room(groups: str, root: Path = _GROUPS) -> Iterator[int]:
    """What is left under each memory limit on a process, from its own control group up.

    Args:
        groups: Lines of /proc/PID/cgroup, `number:controllers:path`; number 0 is the hierarchy of version 2.
        root: Where the hierarchies are mounted.

    Yields:
        Bytes; cached file pages, which the kernel gives up first, count as free.
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
