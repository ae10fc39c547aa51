"""Measures what a program uses while it runs: too much memory ends it, and many threads lower its priority.

With a control group the kernel limits the memory, and the monitor asks whether the kernel had to kill. Without one,
the monitor adds up what the kernel reports: memory of the processes beyond that of the worker they were forked from,
page tables, files in memory, socket buffers, and shared memory that is no longer mapped completely. Standard library
only.
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
"""A program with more threads would slow down its neighbors."""
_NICE, _NICE_GROUP = 19, 5
"""64 processes, or sessions, with the first niceness weigh as much as one with niceness 0; a session with the second
weighs a third."""
_THREAD_BYTES = 32 << 10
"""The least that the kernel needs for a thread."""
_FIELDS = re.compile(rb"^(VmRSS|VmPTE|VmSwap|Threads|NSsid):\s+(\d+)", re.MULTILINE)
_SHARED_WITHOUT_A_FILE = b"/dev/zero (deleted)"


class UsageMonitor:
    """Monitors one program, from its start to its end."""

    def __init__(self, processes: Processes, box: Box, group: Group | None, memory_bytes: int) -> None:
        """Start before the program's code runs.

        Args:
            processes: The program's processes.
            box: Its files.
            group: Its control group, if there is one; its limit is set here.
            memory_bytes: Limit for all processes and files together.

        Raises:
            OSError: The group refuses the limit.
        """
        self._processes, self._box, self._group = processes, box, group
        self._memory_bytes = memory_bytes
        self._own_bytes = _fields(processes, "self").get(b"VmRSS", 0) << 10
        if group is not None:
            group.limit(memory_bytes + self._own_bytes)
            self._num_killed = group.num_killed()
        else:
            self._shared_bytes = kernel.shared_memory_bytes()

    def exceeds_memory(self) -> bool:
        """Whether the program uses too much memory. Also lowers its priority if it has many threads."""
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
            _lower_priority(pids, _NICE if len(sessions) > _MANY else _NICE_GROUP)
        if self._group is not None:
            return self.was_killed()
        used += threads * _THREAD_BYTES + self._box.memory_bytes()
        return used + self._hidden_bytes(pids, self._memory_bytes - used) > self._memory_bytes

    def was_killed(self) -> bool:
        """Whether the kernel has killed one of its processes because of the group's limit."""
        return self._group is not None and self._group.num_killed() > self._num_killed

    def _hidden_bytes(self, pids: Sequence[int], left: int) -> int:
        """Memory that belongs to no process. Looks at the details only if it could exceed the bytes that are left."""
        hidden = 0
        if BUFFER_BYTES * sum(self._processes.num_descriptors(pid) for pid in pids) > left:
            hidden += socket_bytes(self._processes, pids)
        shared = kernel.shared_memory_bytes() - self._shared_bytes - self._box.memory_bytes()
        if hidden + shared > left and any(self._shares_without_a_file(pid) for pid in pids):
            hidden += shared  # the whole machine's: the kernel does not report this program's part of it
        return hidden

    def _shares_without_a_file(self, pid: int) -> bool:
        try:
            return _SHARED_WITHOUT_A_FILE in self._processes.read(pid, "maps")
        except OSError:
            return False


def _fields(processes: Processes, pid: int | str) -> dict[bytes, int]:
    """Some fields of a process's file `status`, sizes in KiB; empty if the process has ended."""
    try:
        return {name: int(number) for name, number in _FIELDS.findall(processes.read(pid, "status"))}
    except OSError:
        return {}


def _lower_priority(pids: Sequence[int], group_niceness: int) -> None:
    """Let all threads of the processes run only when nothing else wants to. The processes cannot undo this."""
    for pid in pids:
        with contextlib.suppress(OSError):
            for thread in map(int, os.listdir(f"/proc/{pid}/task")):
                os.setpriority(os.PRIO_PROCESS, thread, _NICE)
                os.sched_setscheduler(thread, os.SCHED_IDLE, os.sched_param(0))
            with open(f"/proc/{pid}/autogroup", "w") as file:  # the kernel may share time by session first
                file.write(str(group_niceness))
