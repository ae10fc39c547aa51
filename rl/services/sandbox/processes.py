"""The processes of a worker's programs, seen and killed from the worker. Standard library alone."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator

from rl.services.sandbox import kernel

_STOP_TIMEOUT_S = 1.0


class Processes:
    """All that a worker's programs have started and that still runs."""

    def __init__(self, proc: int, *, has_pid_namespace: bool, is_private: bool) -> None:
        """Take over what shows them.

        Args:
            proc: A descriptor of a folder /proc, of the worker's namespace or of one around it.
            has_pid_namespace: The worker is process 1 of a namespace, and all else in it its programs'.
            is_private: The folder shows this namespace alone.
        """
        self._proc = proc
        self.is_private = is_private
        """The numbers found are those by which this process may call the others."""
        self._has_pid_namespace = has_pid_namespace
        self._shows_namespace = is_private and has_pid_namespace

    def numbers(self) -> list[int]:
        """Their numbers in the folder, without the worker's own."""
        if self._shows_namespace:
            return [int(name) for name in os.listdir(self._proc) if name.isdigit() and name != "1"]
        return self._descendants()

    def read(self, pid: int | str, name: str) -> bytes:
        """A file that tells about one.

        Raises:
            OSError: It has ended.
        """
        with open(os.open(f"{pid}/{name}", os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._proc), "rb") as file:
            return file.read()

    def links(self, pid: int, name: str) -> Iterator[str]:
        """Where the links of a folder that tells about one lead; nothing if it has ended."""
        with contextlib.suppress(OSError):
            folder = os.open(f"{pid}/{name}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self._proc)
            try:
                for entry in os.listdir(folder):
                    with contextlib.suppress(OSError):
                        yield os.readlink(entry, dir_fd=folder)
            finally:
                os.close(folder)

    def threads(self, pid: int) -> list[int]:
        """Their numbers; none if the process has ended."""
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
        """How many one has open; 0 if it has ended."""
        with contextlib.suppress(OSError):
            number = os.stat(f"{pid}/fd", dir_fd=self._proc).st_size
            return number or sum(1 for _ in self.links(pid, "fd"))  # before Linux 6.2 the size is 0
        return 0

    def kill_all(self) -> dict[int, int]:
        """Kill all and wait for them; orphans come to the worker, so nothing escapes.

        Returns:
            Wait status by process, of this process's own children.
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
        """Stop all where they are; none of them can prevent it."""
        if self._has_pid_namespace:
            self._send_all(signal.SIGSTOP)
            return
        deadline = time.monotonic() + _STOP_TIMEOUT_S
        while (pids := [p for p in self._descendants() if self._runs(p)]) and time.monotonic() < deadline:
            for pid in pids:  # and once more, for those that it forked meanwhile
                with contextlib.suppress(OSError):
                    os.kill(pid, signal.SIGSTOP)

    def continue_all(self) -> None:
        """Let all go on that `stop_all` has stopped."""
        if self._has_pid_namespace:
            self._send_all(signal.SIGCONT)
            return
        for pid in self._descendants():
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGCONT)

    def _send_all(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(-1, number)  # all of the namespace but process 1, in one step that no fork can outrun

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
    """Wait status by process of the children that ended; with options 0 of all, and none is left."""
    statuses: dict[int, int] = {}
    with contextlib.suppress(ChildProcessError):
        while (ended := os.waitpid(-1, options))[0]:
            statuses[ended[0]] = ended[1]
    return statuses


def become_subreaper() -> None:
    """Have the orphans of all descendants reparented to this process.

    Raises:
        OSError: Refused.
    """
    kernel.prctl(kernel.PR_SET_CHILD_SUBREAPER, 1)
