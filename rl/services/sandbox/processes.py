"""Finds, stops and kills the processes of a worker's programs, from the worker. Standard library only."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator

from rl.services.sandbox import kernel

_STOP_TIMEOUT_S = 1.0


class Processes:
    """All running processes of a worker's programs."""

    def __init__(self, proc: int, *, has_pid_namespace: bool, is_private: bool) -> None:
        """Take over a view of them.

        Args:
            proc: Descriptor of a folder /proc, of the worker's pid namespace or of one around it.
            has_pid_namespace: The worker is process 1 of a namespace that holds only its programs otherwise.
            is_private: The folder shows this namespace only.
        """
        self._proc = proc
        self.is_private = is_private
        """The process ids found are valid in this process."""
        self._has_pid_namespace = has_pid_namespace
        self._shows_namespace = is_private and has_pid_namespace

    def numbers(self) -> list[int]:
        """Their process ids in the folder, without the worker's."""
        if self._shows_namespace:
            return [int(name) for name in os.listdir(self._proc) if name.isdigit() and name != "1"]
        return self._descendants()

    def read(self, pid: int | str, name: str) -> bytes:
        """Read a file of /proc about a process.

        Raises:
            OSError: The process has ended.
        """
        with open(os.open(f"{pid}/{name}", os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._proc), "rb") as file:
            return file.read()

    def links(self, pid: int, name: str) -> Iterator[str]:
        """Targets of the links in a folder of /proc about a process; none if the process has ended."""
        with contextlib.suppress(OSError):
            folder = os.open(f"{pid}/{name}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self._proc)
            try:
                for entry in os.listdir(folder):
                    with contextlib.suppress(OSError):
                        yield os.readlink(entry, dir_fd=folder)
            finally:
                os.close(folder)

    def threads(self, pid: int) -> list[int]:
        """Thread ids of a process; none if it has ended."""
        try:
            folder = os.open(f"{pid}/task", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self._proc)
        except OSError:
            return []
        try:
            return [int(name) for name in os.listdir(folder)]
        except OSError:
            return []
        finally:
            os.close(folder)

    def num_descriptors(self, pid: int) -> int:
        """The number of open descriptors of a process; 0 if it has ended."""
        with contextlib.suppress(OSError):
            number = os.stat(f"{pid}/fd", dir_fd=self._proc).st_size
            return number or sum(1 for _ in self.links(pid, "fd"))  # before Linux 6.2 the size is 0
        return 0

    def kill_all(self) -> dict[int, int]:
        """Kill all and wait for them. Orphans become children of the worker, so none escapes.

        Returns:
            Wait statuses of this process's own children, by process id.
        """
        if self._has_pid_namespace:
            self._send_all(signal.SIGKILL)
            return reap(0)
        statuses: dict[int, int] = {}
        while pids := self._descendants():
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            statuses |= reap(os.WNOHANG)
            time.sleep(0.001)
        return statuses

    def stop_all(self) -> None:
        """Stop all. They cannot prevent it."""
        if self._has_pid_namespace:
            self._send_all(signal.SIGSTOP)
            return
        deadline = time.monotonic() + _STOP_TIMEOUT_S
        while (pids := [p for p in self._descendants() if self._runs(p)]) and time.monotonic() < deadline:
            for pid in pids:  # repeated for processes that were forked meanwhile
                with contextlib.suppress(OSError):
                    os.kill(pid, signal.SIGSTOP)

    def continue_all(self) -> None:
        """Let the processes continue that `stop_all` has stopped."""
        if self._has_pid_namespace:
            self._send_all(signal.SIGCONT)
            return
        for pid in self._descendants():
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGCONT)

    def _send_all(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(-1, number)  # all of the namespace except process 1, atomically with respect to fork

    def _runs(self, pid: int) -> bool:
        try:
            return self.read(pid, "stat").rpartition(b")")[2].split()[0] not in (b"T", b"t", b"Z", b"X")
        except (OSError, IndexError):
            return False

    def _descendants(self) -> list[int]:
        children: dict[int, list[int]] = {}
        for name in os.listdir(self._proc):
            if name.isdigit():
                with contextlib.suppress(OSError, IndexError):
                    parent = int(self.read(name, "stat").rpartition(b")")[2].split()[1])
                    children.setdefault(parent, []).append(int(name))
        found, queue = [], [int(os.readlink("self", dir_fd=self._proc))]
        while queue:
            queue.extend(children.get(queue[0], []))
            found.extend(children.get(queue.pop(0), []))
        return found


def reap(options: int) -> dict[int, int]:
    """Wait statuses by process id, of the children that ended, or with options 0 of all children."""
    statuses: dict[int, int] = {}
    with contextlib.suppress(ChildProcessError):
        while (ended := os.waitpid(-1, options))[0]:
            statuses[ended[0]] = ended[1]
    return statuses


def become_subreaper() -> None:
    """Make this process the parent of its descendants' orphans."""
    kernel.prctl(kernel.PR_SET_CHILD_SUBREAPER, 1)
