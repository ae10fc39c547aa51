"""A worker: keeps one program after the other, from its start to the end of all its processes. Standard library alone.

    zygote ── worker (process 1 of its namespace) ── program ── whatever it forks
                                                     └─ the next program is forked in advance, and waits for its code

A job comes as descriptors: payload (`rl.services.sandbox.job`), status, and the program's stdin, stdout and stderr or,
for a session, a socket for its cells and the read end of its control. The worker writes to status whether the program
waits (`rl.services.sandbox.activity`), and at last the outcome. A status pipe without a reader ends the program too.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import sys
import time
from dataclasses import asdict, dataclass, field, replace
from typing import Any, NoReturn

from rl.services.sandbox import isolation as layers_of
from rl.services.sandbox import kernel, program
from rl.services.sandbox.activity import Activity, Rest
from rl.services.sandbox.box import Box
from rl.services.sandbox.cgroup import Group
from rl.services.sandbox.fork_state import Renewal
from rl.services.sandbox.isolation import Isolation
from rl.services.sandbox.job import DISMISSED, LEAVE, Job, parse_files, receive, write_files
from rl.services.sandbox.own_state import find_changes, read_own_state
from rl.services.sandbox.processes import Processes, reap
from rl.services.sandbox.watch import Watch

_HIGHEST_DESCRIPTOR = 1024
_TICK_S = 0.05


@dataclass(slots=True, frozen=True)
class Post:
    """What a zygote gives a worker."""

    isolation: Isolation
    directory: str
    """For the program's folder, where the file tree is not private."""
    number: int
    """Unlike that of the zygote's other workers; the programs' user follows from it."""
    processes: Processes
    renewals: list[Renewal]
    """What each program calls before its code."""


def keep_programs(jobs: socket.socket, post: Post) -> NoReturn:
    """Run jobs until the server goes away, or until this worker is not what it was.

    Args:
        jobs: Shared with the other workers; whoever is free takes the next.
        post: The worker's.
    """
    try:
        place = _furnish_place(post)
    except FileNotFoundError:  # the server removes its folder when it goes
        if _is_closed(jobs):
            os._exit(0)
        raise
    state = read_own_state()
    while True:
        ready = _prepare(place)
        message, descriptors = receive(jobs, 1)
        if message == LEAVE:
            _leave(place, DISMISSED)
        if not message:
            _leave(place, with_groups=True)
        _keep(ready, descriptors, place)
        try:
            place.box.clear()
            if place.isolation.layers["ipc"] and not place.isolation.layers["seccomp"]:  # which denies to make any
                kernel.remove_shared_objects()
            changes = find_changes(state)
        except OSError as error:
            changes = [str(error)]
        if changes:
            if not _is_closed(jobs):
                text = "sandbox: a program has changed its worker, and another takes its place: %s"
                print(text % ", ".join(changes), file=sys.stderr)
            _leave(place)


def keep_session(descriptors: list[int], post: Post) -> NoReturn:
    """Run one job, an interpreter that goes on until the server closes it."""
    place = _furnish_place(post)
    _keep(_prepare(place), descriptors, place)
    _leave(place)


@dataclass(slots=True, frozen=True)
class _Place:
    """Where a worker's programs live."""

    isolation: Isolation
    uid: int
    processes: Processes
    renewals: list[Renewal]
    box: Box
    group: Group | None
    file_rules: int | None


@dataclass(slots=True)
class _Program:
    pid: int
    channel: socket.socket
    """For its job."""
    statuses: dict[int, int] = field(default_factory=dict)
    """Of the children that ended, by process."""


def _furnish_place(post: Post) -> _Place:
    isolation, uid = post.isolation, post.isolation.first_uid + post.number
    owner = uid if isolation.layers["own_uid"] else None
    box = Box(post.directory, owner, is_mounted=isolation.layers["mount"])
    os.environ.update(HOME=box.work, TMPDIR=box.tmp, USER="sandbox")
    group = None if isolation.groups is None else Group(isolation.groups, str(post.number))
    rules = layers_of.build_file_rules(isolation, box.folders)
    return _Place(isolation, uid, post.processes, post.renewals, box, group, rules)


def _is_closed(channel: socket.socket) -> bool:
    """Whether the other end is gone."""
    poll = select.poll()
    poll.register(channel, 0)
    return bool(poll.poll(0))


def _leave(place: _Place, code: int = 0, *, with_groups: bool = False) -> NoReturn:
    """End without leaving anything behind.

    Args:
        place: The worker's.
        code: The worker's exit code.
        with_groups: The server is gone: the last worker to leave removes what held their control groups.
    """
    place.processes.kill_all()
    place.box.remove()
    if place.group is not None:
        place.group.remove()
    if with_groups and place.isolation.groups is not None:
        place.isolation.groups.remove()
    os._exit(code)


def _prepare(place: _Place) -> _Program:
    """Fork a program that has everything but its code: done ahead, this takes no time of a request's."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pid = os.fork()
    if pid == 0:
        _be_program(theirs, place)
    theirs.close()
    if place.group is not None:
        with contextlib.suppress(ProcessLookupError):  # it died at once; its status tells
            place.group.admit(pid)
    return _Program(pid, ours)


def _be_program(channel: socket.socket, place: _Place) -> NoReturn:
    os.fchdir(place.box.work_descriptor)
    _close_others({channel.fileno()} if place.file_rules is None else {channel.fileno(), place.file_rules})
    os.setsid()
    for renew in place.renewals:
        renew()
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
    control = rest.pop() if job.is_session else None
    try:
        for name, content in given.items():
            place.box.write(name, content)
    except OSError as error:
        outcome = {"error": str(error)}
        place.processes.kill_all()
    else:
        outcome = _run(ready, job, rest, status, control, place)
        files = place.box.read(job.fetch)
    finally:
        ready.channel.close()
        for descriptor in (*rest, *([] if control is None else [control])):
            os.close(descriptor)
    with contextlib.suppress(OSError), open(status, "wb") as pipe:
        write_files(pipe, outcome, files)


def _run(
    ready: _Program, job: Job, streams: list[int], status: int, control: int | None, place: _Place
) -> dict[str, Any]:
    """Hand the program its job, wait for its end or its deadline, and kill whatever is left of it."""
    start = time.monotonic()
    watch = Watch(place.processes, place.box, place.group, job.memory_bytes)
    activity = Activity(place.processes, status)
    rest = None if control is None else Rest(place.processes, control)
    with contextlib.suppress(OSError):  # it died before it had anything to do; its status tells
        socket.send_fds(ready.channel, [json.dumps(asdict(replace(job, fetch=()))).encode()], streams)
    while streams:
        os.close(streams.pop())
    reason = _await_end(ready, status, start + job.timeout, watch, activity, rest)
    ready.statuses |= place.processes.kill_all()
    if reason == "end" and watch.was_stopped():
        reason = "memory"
    elapsed = time.monotonic() - start
    wait_status = ready.statuses.get(ready.pid)
    code = None if wait_status is None else os.waitstatus_to_exitcode(wait_status)
    is_late = reason == "time"
    return {
        "return_code": None if is_late else -signal.SIGKILL if reason == "memory" else code,
        "timed_out": is_late,
        "out_of_memory": reason == "memory",
        "execution_time": elapsed,
    }


def _await_end(
    ready: _Program, status: int, deadline: float, watch: Watch, activity: Activity, rest: Rest | None
) -> str:
    """Wait until the program ends, its time is up, it uses too much, or nobody reads its status.

    Returns:
        Why: `end`, `time`, `memory` or `nobody`.
    """
    ended = os.pidfd_open(ready.pid)
    poll = select.poll()
    poll.register(ended, select.POLLIN)
    poll.register(status, 0)  # POLLERR comes unasked, when the reader is gone
    if rest is not None:
        poll.register(rest.control, select.POLLIN)
    try:
        while True:
            left = deadline - time.monotonic()
            is_resting = rest is not None and rest.is_still
            events = dict(poll.poll(None if is_resting else max(0.0, min(left, _TICK_S)) * 1000))
            if ended in events or status in events:
                return "end" if ended in events else "nobody"
            if left <= 0:
                return "time"
            if rest is not None and rest.control in events:
                if not rest.obey():
                    return "nobody"
                activity.start_over()
            ready.statuses |= reap(os.WNOHANG)
            if watch.has_too_much():
                return "memory"
            activity.look()
    finally:
        os.close(ended)
