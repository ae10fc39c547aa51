"""Reports whether a program computes or waits, and pauses a session between its programs. Standard library only.

A program that sleeps, or waits for a child or for input, needs no processor, so the server gives its slot to another.
Between two programs of a session all its processes are stopped: they cost nothing and cannot grow unobserved.
"""

from __future__ import annotations

import contextlib
import os

from rl.services.sandbox.processes import Processes

WAITS, COMPUTES = b"-", b"+"
"""A worker writes these to a program's status, before its outcome."""
PAUSE, RESUME = b"p", b"r"
"""The server writes these to a session's control."""
_IDLE_CHECKS = 3
_COMPUTING = (b"R", b"D")
"""States of a thread that runs, is ready to run, or waits for a disk."""


class Activity:
    """Checks a program at intervals, and reports when it begins to wait and when it continues."""

    def __init__(self, processes: Processes, status: int) -> None:
        """Assume that the program computes.

        Args:
            processes: The program's processes.
            status: Descriptor to report to.
        """
        self._processes, self._status = processes, status
        self.reset()

    def reset(self) -> None:
        """Assume again that the program computes, because the next one has begun in the session."""
        self._num_idle = 0

    def check(self) -> None:
        """Check once. The program waits if several checks in a row found it idle."""
        is_idle = not self._computes()
        if not is_idle and self._num_idle >= _IDLE_CHECKS:
            self._report(COMPUTES)
        self._num_idle = self._num_idle + 1 if is_idle else 0
        if self._num_idle == _IDLE_CHECKS:
            self._report(WAITS)

    def _computes(self) -> bool:
        return any(map(self._process_computes, self._processes.numbers()))

    def _process_computes(self, pid: int) -> bool:
        state, num_threads = self._state(pid, "stat")
        if state in _COMPUTING or num_threads <= 1:
            return state in _COMPUTING
        threads = self._processes.threads(pid)
        return any(self._state(pid, f"task/{thread}/stat")[0] in _COMPUTING for thread in threads)

    def _state(self, pid: int, name: str) -> tuple[bytes, int]:
        """The state of a thread, or of a process's first thread; and the number of threads in the process."""
        try:
            fields = self._processes.read(pid, name).rpartition(b")")[2].split()
            return fields[0], int(fields[17])
        except (OSError, IndexError, ValueError):  # it has ended
            return b"", 0

    def _report(self, sign: bytes) -> None:
        with contextlib.suppress(OSError):  # nobody reads it any more
            os.write(self._status, sign)


class Pause:
    """Stops all processes of a session and lets them continue, as the server commands."""

    def __init__(self, processes: Processes, control: int) -> None:
        """Let the session run.

        Args:
            processes: The session's processes.
            control: Descriptor of the server's commands.
        """
        self._processes, self.control = processes, control
        self.is_paused = False

    def apply(self) -> bool:
        """Apply the latest command; earlier ones are obsolete. False if the server is gone."""
        commands = os.read(self.control, 4096)
        self.is_paused = commands.endswith(PAUSE)
        if self.is_paused:
            self._processes.stop_all()
        else:
            self._processes.continue_all()
        return bool(commands)
