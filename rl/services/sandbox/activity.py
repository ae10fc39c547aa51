"""Whether a program computes or waits, told to the server; and stillness between the programs of a session.

A program that sleeps, or waits for a child or for input, needs no processor: the server gives its place to another. A
session has nothing to do between its programs: all its processes are stopped, so that it costs nothing, and cannot grow
while nobody looks. Standard library alone.
"""

from __future__ import annotations

import contextlib
import os

from rl.services.sandbox.processes import Processes

WAITS, COMPUTES = b"-", b"+"
"""What a worker writes to a program's status, before its outcome."""
REST, GO_ON = b"r", b"g"
"""What the server writes to a session's control."""
_CALM_LOOKS = 3
_COMPUTING = (b"R", b"D")
"""States of a thread that runs, is ready to run, or waits for a disk."""


class Activity:
    """Looks at a program every now and then, and tells when it begins to wait and when it goes on."""

    def __init__(self, processes: Processes, status: int) -> None:
        """Take it that the program computes.

        Args:
            processes: The program's.
            status: Where to tell.
        """
        self._processes, self._status = processes, status
        self.start_over()

    def start_over(self) -> None:
        """Take it again that the program computes: another one has begun in the session."""
        self._num_calm = 0

    def look(self) -> None:
        """Look once. It waits when it was found still several times in a row."""
        is_calm = not self._computes()
        if not is_calm and self._num_calm >= _CALM_LOOKS:
            self._tell(COMPUTES)
        self._num_calm = self._num_calm + 1 if is_calm else 0
        if self._num_calm == _CALM_LOOKS:
            self._tell(WAITS)

    def _computes(self) -> bool:
        return any(map(self._process_computes, self._processes.numbers()))

    def _process_computes(self, pid: int) -> bool:
        state, num_threads = self._state(pid, "stat")
        if state in _COMPUTING or num_threads <= 1:
            return state in _COMPUTING
        threads = self._processes.threads(pid)
        return any(self._state(pid, f"task/{thread}/stat")[0] in _COMPUTING for thread in threads)

    def _state(self, pid: int, name: str) -> tuple[bytes, int]:
        """Of a thread, or of the first one of a process; and how many the process has."""
        try:
            fields = self._processes.read(pid, name).rpartition(b")")[2].split()
            return fields[0], int(fields[17])
        except (OSError, IndexError, ValueError):  # it has ended
            return b"", 0

    def _tell(self, sign: bytes) -> None:
        with contextlib.suppress(OSError):  # nobody reads it any more
            os.write(self._status, sign)


class Rest:
    """Stops all processes of a session, and lets them go on, as the server says."""

    def __init__(self, processes: Processes, control: int) -> None:
        """Let it run.

        Args:
            processes: The session's.
            control: Where the server says it.
        """
        self._processes, self.control = processes, control
        self.is_still = False

    def obey(self) -> bool:
        """Do what was said last; what was said before it does not matter.

        Returns:
            False where the server is gone.
        """
        said = os.read(self.control, 4096)
        self.is_still = said.endswith(REST)
        if self.is_still:
            self._processes.stop_all()
        else:
            self._processes.continue_all()
        return bool(said)
