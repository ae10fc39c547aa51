"""A worker: keeps one program after the other, from its start to the end of all its processes. Standard library alone.

    zygote ── worker (process 1 of its namespace) ── program ── whatever it forks
                                                     └─ the next program is forked in advance, and waits for its code

A job comes as descriptors: payload (`rl.services.job`), status, and the program's stdin, stdout and stderr or, for a
session, a socket for its cells. The outcome goes to status. A status pipe without a reader ends the program too.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import time
from dataclasses import asdict, dataclass, field, replace
from typing import Any, NoReturn

from rl.services import isolation as layers_of
from rl.services import kernel, program
from rl.services.box import MAX_BYTES, Box, read_files
from rl.services.isolation import Isolation
from rl.services.job import Job, parse_files, receive, write_files

_HIGHEST_DESCRIPTOR = 1024
_TICK_S = 0.05
_MANY = 16
"""Threads of one program that its neighbours would notice."""
_NICE, _NICE_GROUP = 19, 5
"""64 processes, or sessions, of the first niceness weigh as much as one of none; one session of the second a third."""
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


def keep_programs(jobs: socket.socket, isolation: Isolation, directory: str, uid: int) -> NoReturn:
    """Run jobs until the server goes away.

    Args:
        jobs: Shared with the other workers; whoever is free takes the next.
        isolation: What works here.
        directory: For the program's folder, where the file tree is not private.
        uid: The programs' user.
    """
    place = _furnish_place(isolation, directory, uid)
    while True:
        ready = _prepare(place)
        message, descriptors = receive(jobs, 1)
        if not message:
            kill_all(has_pid_namespace=isolation.layers["pid"])
            place.box.remove()
            os._exit(0)
        _keep(ready, descriptors, place)
        place.box.clear()


def keep_session(descriptors: list[int], isolation: Isolation, directory: str, uid: int) -> NoReturn:
    """Run one job, an interpreter that goes on until the server closes it."""
    place = _furnish_place(isolation, directory, uid)
    _keep(_prepare(place), descriptors, place)
    place.box.remove()
    os._exit(0)


@dataclass(slots=True, frozen=True)
class _Place:
    """Where a worker's programs live."""

    isolation: Isolation
    uid: int
    box: Box
    file_rules: int | None


@dataclass(slots=True)
class _Program:
    pid: int
    channel: socket.socket
    """For its job."""
    statuses: dict[int, int] = field(default_factory=dict)
    """Of the children that ended, by process."""


def _furnish_place(isolation: Isolation, directory: str, uid: int) -> _Place:
    owner = uid if isolation.layers["own_uid"] else None
    box = Box(directory, owner, is_mounted=isolation.layers["mount"])
    os.environ.update(HOME=box.work, TMPDIR=box.tmp, USER="sandbox")
    return _Place(isolation, uid, box, layers_of.build_file_rules(isolation, box.root))


def _prepare(place: _Place) -> _Program:
    """Fork a program that has everything but its code: done ahead, this takes no time of a request's."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pid = os.fork()
    if pid == 0:
        _be_program(theirs, place)
    theirs.close()
    return _Program(pid, ours)


def _be_program(channel: socket.socket, place: _Place) -> NoReturn:
    _close_others({channel.fileno(), place.file_rules or 0})
    os.setsid()
    os.chdir(place.box.work)
    layers_of.confine(place.isolation, place.uid, place.file_rules)
    message, descriptors = receive(channel, program.LARGEST_MESSAGE)
    channel.close()
    if not message:
        os._exit(0)
    job = Job(**json.loads(message))
    layers_of.limit_resources(job.address_space, job.cpu_s)
    if job.is_session:
        program.serve_cells(socket.socket(fileno=descriptors[0]), place.box.work)
    program.take_streams(descriptors)
    if not job.command:
        program.run_python(job.file, place.box.work)
    for number in (signal.SIGINT, signal.SIGPIPE):
        signal.signal(number, signal.SIG_DFL)
    try:
        os.execvp(job.command[0], job.command)
    except OSError as error:
        os.write(2, f"{job.command[0]}: {error.strerror}\n".encode())
        os._exit(127)


def _close_others(kept: set[int]) -> None:
    """Close all descriptors but the standard ones and these."""
    first = 3
    for descriptor in sorted(kept):
        os.closerange(first, descriptor)
        first = max(first, descriptor + 1)
    os.closerange(first, _HIGHEST_DESCRIPTOR)


def _keep(ready: _Program, descriptors: list[int], place: _Place) -> None:
    payload, status, *rest = descriptors
    outcome: dict[str, Any]
    files: dict[str, bytes] = {}
    with open(payload, "rb") as file:
        header, given = parse_files(file.read())
    job = Job(**header)
    try:
        for name, content in given.items():
            place.box.write(name, content)
    except OSError as error:
        outcome = {"error": str(error)}
        kill_all(has_pid_namespace=place.isolation.layers["pid"])
    else:
        outcome = _run(ready, job, rest, status, place)
        files = read_files(place.box.work, job.fetch, MAX_BYTES)
    finally:
        ready.channel.close()
        for descriptor in rest:
            os.close(descriptor)
    with contextlib.suppress(OSError), open(status, "wb") as pipe:
        write_files(pipe, outcome, files)


def _run(ready: _Program, job: Job, streams: list[int], status: int, place: _Place) -> dict[str, Any]:
    """Hand the program its job, wait for its end or its deadline, and kill whatever is left of it."""
    start = time.monotonic()
    own_pages = _pages("self")
    with contextlib.suppress(OSError):  # it died before it had anything to do; its status tells
        socket.send_fds(ready.channel, [json.dumps(asdict(replace(job, fetch=()))).encode()], streams)
    while streams:
        os.close(streams.pop())
    reason = _await_end(ready, status, start + job.timeout, job.memory_bytes, own_pages, place)
    ready.statuses |= kill_all(has_pid_namespace=place.isolation.layers["pid"])
    elapsed = time.monotonic() - start
    wait_status = ready.statuses.get(ready.pid)
    code = None if wait_status is None else os.waitstatus_to_exitcode(wait_status)
    is_late = reason == "time"
    return {
        "return_code": None if is_late else code,
        "timed_out": is_late,
        "out_of_memory": reason == "memory",
        "execution_time": elapsed,
    }


def _await_end(ready: _Program, status: int, deadline: float, memory_bytes: int, own_pages: int, place: _Place) -> str:
    """Wait until the program ends, its time is up, it uses too much, or nobody reads its status.

    Returns:
        Why: `end`, `time`, `memory` or `nobody`.
    """
    ended = os.pidfd_open(ready.pid)
    poll = select.poll()
    poll.register(ended, select.POLLIN)
    poll.register(status, 0)  # POLLERR comes unasked, when the reader is gone
    try:
        while True:
            left = deadline - time.monotonic()
            events = dict(poll.poll(max(0.0, min(left, _TICK_S)) * 1000))
            if ended in events or status in events:
                return "end" if ended in events else "nobody"
            if left <= 0:
                return "time"
            ready.statuses |= _reap(os.WNOHANG)
            if _watch(memory_bytes, own_pages, place):
                return "memory"
    finally:
        os.close(ended)


def _watch(memory_bytes: int, own_pages: int, place: _Place) -> bool:
    """Give way to others where there are many processes or threads; tell whether all use too much memory together.

    Files in memory count too. What a process has in common with the worker that it was forked from does not.
    """
    pages = threads = 0
    sessions = set()
    pids = _others(place.isolation)
    for pid in pids:
        with contextlib.suppress(OSError, IndexError, ValueError), open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
            sessions.add(fields[3])
            threads += int(fields[17])
            pages += max(0, int(fields[21]) - own_pages)
    if threads > _MANY:
        _give_way(pids, _NICE if len(sessions) > _MANY else _NICE_GROUP)
    return pages * _PAGE_BYTES + place.box.memory_bytes() > memory_bytes


def _give_way(pids: list[int], group_niceness: int) -> None:
    """Leave processes, all threads of each, the time that nobody else wants; they cannot take it back."""
    for pid in pids:
        with contextlib.suppress(OSError):
            for thread in map(int, os.listdir(f"/proc/{pid}/task")):
                os.setpriority(os.PRIO_PROCESS, thread, _NICE)
                os.sched_setscheduler(thread, os.SCHED_IDLE, os.sched_param(0))
            with open(f"/proc/{pid}/autogroup", "w") as file:  # the kernel may share time by session first
                file.write(str(group_niceness))


def _pages(pid: str) -> int:
    try:
        with open(f"/proc/{pid}/statm", "rb") as file:
            return int(file.read().split()[1])
    except OSError:
        return 0


def _others(isolation: Isolation) -> list[int]:
    """The program's processes."""
    if not isolation.layers["pid"]:
        return _descendants(os.getpid())
    return [int(name) for name in os.listdir("/proc") if name.isdigit() and name != "1"]


def kill_all(*, has_pid_namespace: bool) -> dict[int, int]:
    """Kill all that the program forked and wait for it; orphans come to the worker, so nothing escapes.

    Args:
        has_pid_namespace: This is process 1 of a namespace, and all else in it the program's.

    Returns:
        Wait status by process, of this process's own children.
    """
    if has_pid_namespace:
        with contextlib.suppress(ProcessLookupError):
            os.kill(-1, signal.SIGKILL)  # all of the namespace but process 1, in one step that no fork can outrun
        return _reap(0)
    statuses: dict[int, int] = {}
    while pids := _descendants(os.getpid()):
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        statuses |= _reap(os.WNOHANG)
        time.sleep(0.001)
    return statuses


def _reap(options: int) -> dict[int, int]:
    """Wait status by process of the children that ended; with options 0 of all, and none is left."""
    statuses: dict[int, int] = {}
    with contextlib.suppress(ChildProcessError):
        while (ended := os.waitpid(-1, options))[0]:
            statuses[ended[0]] = ended[1]
    return statuses


def _descendants(root: int) -> list[int]:
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError, IndexError), open(f"/proc/{name}/stat", "rb") as file:
                parent = int(file.read().rpartition(b")")[2].split()[1])
                children.setdefault(parent, []).append(int(name))
    found, queue = [], [root]
    while queue:
        queue.extend(children.get(queue[0], []))
        found.extend(children.get(queue.pop(0), []))
    return found


def become_subreaper() -> None:
    """Have the orphans of all descendants reparented to this process.

    Raises:
        OSError: Refused.
    """
    kernel.prctl(kernel.PR_SET_CHILD_SUBREAPER, 1)
