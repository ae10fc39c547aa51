"""Control groups, by which the kernel limits all memory of a program, including memory that no process reports.

If permitted, the zygote makes one group for its workers, and each worker one below it for its programs. The worker
itself stays outside, because it needs memory to handle a program that has used too much. Standard library only.

Source: Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/memory.rst of Linux.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass

_PREFIX = "turnwise-sandbox-"
_LIMIT = ("memory.max", "memory.limit_in_bytes")
"""The file names of version 2 and of version 1."""
_EVENTS = ("memory.events", "memory.oom_control")
_SETTINGS = {"memory.swap.max": "0", "memory.swappiness": "0", "memory.oom.group": "1"}
_TRIAL_BYTES = 1 << 30


@dataclass(slots=True, frozen=True)
class TopGroup:
    """The parent of the groups of a zygote's workers."""

    folder: int
    """A descriptor, which works after a change of root too."""
    name: str

    def remove(self) -> None:
        """Remove it, unless it still has a child group."""
        with contextlib.suppress(OSError):
            os.rmdir(f"../{self.name}", dir_fd=self.folder)


class Group:
    """The group of one worker's programs."""

    def __init__(self, top: TopGroup, name: str) -> None:
        """Make it, or take over the group of a worker that died."""
        self._top, self._name = top.folder, name
        with contextlib.suppress(FileExistsError):
            os.mkdir(name, dir_fd=self._top)
        self._folder = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self._top)
        for setting, value in _SETTINGS.items():
            with contextlib.suppress(OSError):  # a setting of the other version, or of swap without swap
                _write(self._folder, setting, value)
        self._members = os.open("cgroup.procs", os.O_WRONLY | os.O_CLOEXEC, dir_fd=self._folder)
        self._limit = _open_first(_LIMIT, os.O_WRONLY, self._folder)
        self._events = _open_first(_EVENTS, os.O_RDONLY, self._folder)
        self._limit_bytes = 0

    def admit(self, pid: int) -> None:
        """Move a process into it. The process's later children belong to it too."""
        os.pwrite(self._members, str(pid).encode(), 0)

    def limit(self, num_bytes: int) -> None:
        """Set the memory limit for all its processes together."""
        if num_bytes != self._limit_bytes:
            os.pwrite(self._limit, str(num_bytes).encode(), 0)
            self._limit_bytes = num_bytes

    def num_killed(self) -> int:
        """The number of processes in it that the kernel has killed because of its limit."""
        for line in os.pread(self._events, 4096, 0).splitlines():
            name, _, number = line.partition(b" ")
            if name == b"oom_kill":
                return int(number)
        return 0

    def remove(self) -> None:
        """Remove it. It must have no process."""
        for descriptor in (self._members, self._limit, self._events, self._folder):
            os.close(descriptor)
        with contextlib.suppress(OSError):
            os.rmdir(self._name, dir_fd=self._top)


def make_top_group() -> TopGroup | None:
    """Make a group for the workers of this process, and try it; None if this machine refuses."""
    for folder in _find_folders():
        name = f"{_PREFIX}{os.getpid()}"
        path = f"{folder}/{name}"
        with contextlib.suppress(OSError):
            remove_abandoned_groups(folder)
            os.mkdir(path)
            try:
                with contextlib.suppress(FileNotFoundError):  # version 1 has no such file, and needs none
                    _write(None, f"{path}/cgroup.subtree_control", "+memory")
                top = TopGroup(os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC), name)
                _try(top)
            except OSError:
                os.rmdir(path)
                raise
            return top
    return None


def remove_abandoned_groups(folder: str) -> None:
    """Remove the groups of zygotes that were killed.

    Args:
        folder: Folder of their parent group.
    """
    for name in os.listdir(folder):
        pid = name.removeprefix(_PREFIX)
        if pid != name and not os.path.exists(f"/proc/{pid}"):
            with contextlib.suppress(OSError):  # another process may remove them at the same time
                path = f"{folder}/{name}"
                for inner in [entry for entry in os.listdir(path) if os.path.isdir(f"{path}/{entry}")]:
                    os.rmdir(f"{path}/{inner}")
                os.rmdir(path)


def _try(top: TopGroup) -> None:
    group = Group(top, "trial")
    pid = os.fork()
    if pid == 0:
        signal.pause()
    try:
        group.limit(_TRIAL_BYTES)
        group.num_killed()
        group.admit(pid)
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        group.remove()


def _find_folders() -> Iterator[str]:
    """Folders where a group may be made: below this process's group, or next to it if it has no limit of its own."""
    try:
        with open("/proc/self/cgroup") as file:
            own = [line.rstrip("\n").split(":", 2) for line in file]
        with open("/proc/self/mountinfo") as file:
            mounts = [line.rstrip("\n").split(" - ") for line in file]
    except OSError:
        return
    for _, controllers, path in own:
        for place, kind in mounts:
            root, folder = place.split()[3:5]
            name, _, options = kind.split(" ", 2)
            is_unified = name == "cgroup2" and not controllers
            is_memory = name == "cgroup" and "memory" in controllers.split(",") and "memory" in options.split(",")
            if (is_unified or is_memory) and (path + "/").startswith(root.rstrip("/") + "/"):
                found = (folder + path[len(root.rstrip("/")) :]).rstrip("/")
                yield from _unified_folders(found) if is_unified else [found]


def _unified_folders(own: str) -> Iterator[str]:
    """In version 2 a group other than the root has processes or child groups with memory limits, not both."""
    with contextlib.suppress(OSError):
        if "memory" not in _read(f"{own}/cgroup.subtree_control"):
            _write(None, f"{own}/cgroup.subtree_control", "+memory")
        yield own
    with contextlib.suppress(OSError):
        above = os.path.dirname(own)
        if _read(f"{own}/memory.max") == ["max"] and "memory" in _read(f"{above}/cgroup.subtree_control"):
            yield above


def _read(path: str) -> list[str]:
    with open(path) as file:
        return file.read().split()


def _write(folder: int | None, path: str, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC, dir_fd=folder)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)


def _open_first(names: tuple[str, ...], flags: int, folder: int) -> int:
    for name in names[:-1]:
        with contextlib.suppress(FileNotFoundError):
            return os.open(name, flags | os.O_CLOEXEC, dir_fd=folder)
    return os.open(names[-1], flags | os.O_CLOEXEC, dir_fd=folder)
