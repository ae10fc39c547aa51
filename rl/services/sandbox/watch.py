"""What a program uses while it runs: too much ends it, and many processes give way to its neighbours.

Where there is a control group the kernel bounds memory, and is asked whether it had to kill. Elsewhere memory is
counted from what the kernel tells: what processes hold beyond the worker that they were forked from, their page tables,
their files in memory, the buffers of their sockets, and shared memory that they keep without mapping all of it.
Standard library alone.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Sequence

from rl.services.sandbox import kernel
from rl.services.sandbox.box import Box
from rl.services.sandbox.cgroup import Group
from rl.services.sandbox.processes import Processes
from rl.services.sandbox.socket_memory import BUFFER_BYTES, socket_bytes

_MANY = 16
"""Threads of one program that its neighbours would notice."""
_NICE, _NICE_GROUP = 19, 5
"""64 processes, or sessions, of the first niceness weigh as much as one of none; one session of the second a third."""
_THREAD_BYTES = 32 << 10
"""What the kernel needs for one at least."""
_FIELDS = re.compile(rb"^(VmRSS|VmPTE|VmSwap|Threads|NSsid):\s+(\d+)", re.MULTILINE)
_SHARED_WITHOUT_A_FILE = b"/dev/zero (deleted)"


class Watch:
    """Looks at one program, from its start to its end."""

    def __init__(self, processes: Processes, box: Box, group: Group | None, memory_bytes: int) -> None:
        """Begin, before the program's code runs.

        Args:
            processes: The program's.
            box: Its files.
            group: Of control, where there is one; its limit is set here.
            memory_bytes: What all processes and files may use together.

        Raises:
            OSError: The group refuses.
        """
        self._processes, self._box, self._group = processes, box, group
        self._memory_bytes = memory_bytes
        self._own_bytes = _fields(processes, "self").get(b"VmRSS", 0) << 10
        if group is not None:
            group.limit(memory_bytes + self._own_bytes)
            self._num_killed = group.num_killed()
        else:
            self._shared_bytes = kernel.shared_memory_bytes()

    def has_too_much(self) -> bool:
        """Give way to others where there are many processes or threads; tell whether all use too much memory."""
        pids = self._processes.numbers()
        used = threads = 0
        sessions = set()
        for pid in pids:
            fields = _fields(self._processes, pid)
            sessions.add(fields.get(b"NSsid"))
            threads += fields.get(b"Threads", 0)
            used += max(0, (fields.get(b"VmRSS", 0) << 10) - self._own_bytes)
            used += fields.get(b"VmPTE", 0) + fields.get(b"VmSwap", 0) << 10
        if threads > _MANY and self._processes.is_private:
            _give_way(pids, _NICE if len(sessions) > _MANY else _NICE_GROUP)
        if self._group is not None:
            return self.was_stopped()
        used += threads * _THREAD_BYTES + self._box.memory_bytes()
        return used + self._hidden_bytes(pids, self._memory_bytes - used) > self._memory_bytes

    def was_stopped(self) -> bool:
        """Whether the kernel has killed one of its processes because all used too much."""
        return self._group is not None and self._group.num_killed() > self._num_killed

    def _hidden_bytes(self, pids: Sequence[int], left: int) -> int:
        """What counts for no process, where it might be more than what is left; at most one look in detail at each."""
        hidden = 0
        if BUFFER_BYTES * sum(self._processes.num_descriptors(pid) for pid in pids) > left:
            hidden += socket_bytes(self._processes, pids)
        shared = kernel.shared_memory_bytes() - self._shared_bytes - self._box.memory_bytes()
        if hidden + shared > left and any(self._shares_without_a_file(pid) for pid in pids):
            hidden += shared  # of all the machine, but nobody tells how much of it is this program's
        return hidden

    def _shares_without_a_file(self, pid: int) -> bool:
        try:
            return _SHARED_WITHOUT_A_FILE in self._processes.read(pid, "maps")
        except OSError:
            return False


def _fields(processes: Processes, pid: int | str) -> dict[bytes, int]:
    """Some of what a process's file `status` tells; empty where it has ended. Sizes are in KiB."""
    try:
        return {name: int(number) for name, number in _FIELDS.findall(processes.read(pid, "status"))}
    except OSError:
        return {}


def _give_way(pids: Sequence[int], group_niceness: int) -> None:
    """Leave processes, all threads of each, the time that nobody else wants; they cannot take it back."""
    for pid in pids:
        with contextlib.suppress(OSError):
            for thread in map(int, os.listdir(f"/proc/{pid}/task")):
                os.setpriority(os.PRIO_PROCESS, thread, _NICE)
                os.sched_setscheduler(thread, os.SCHED_IDLE, os.sched_param(0))
            with open(f"/proc/{pid}/autogroup", "w") as file:  # the kernel may share time by session first
                file.write(str(group_niceness))
