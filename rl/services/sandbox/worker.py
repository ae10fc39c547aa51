"""A worker: runs one program after the other, each until all its processes have ended. Standard library only.

    zygote ── worker (process 1 of its namespace) ── program ── its children
                                                     └─ the next program, forked in advance, waits for its code

A job arrives as descriptors: payload (`rl.services.sandbox.job`), status, and the program's stdin, stdout and stderr
or, for a session, a socket for its cells and the read end of its control. The worker writes to status whether the
program waits (`rl.services.sandbox.activity`) and finally the outcome. The program also ends when nobody reads status.
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
from rl.services.sandbox.activity import Activity, Pause
from rl.services.sandbox.box import Box
from rl.services.sandbox.cgroup import Group
from rl.services.sandbox.fork_state import Reset
from rl.services.sandbox.isolation import Isolation
from rl.services.sandbox.job import EXIT, EXITED, Job, parse_files, receive, write_files
from rl.services.sandbox.process_state import find_changes, read_process_state
from rl.services.sandbox.processes import Processes, reap
from rl.services.sandbox.usage import UsageMonitor

_HIGHEST_DESCRIPTOR = 1024
_TICK_S = 0.05


@dataclass(slots=True, frozen=True)
class WorkerSetup:
    """What a zygote gives a worker."""

    isolation: Isolation
    directory: str
    """Parent of the program's folder, if the file tree is not private."""
    number: int
    """Differs between the zygote's workers, and determines the user id of the programs."""
    processes: Processes
    resets: list[Reset]
    """Functions that each program calls before its code."""


def run_jobs(jobs: socket.socket, setup: WorkerSetup) -> NoReturn:
    """Run jobs until the server is gone, or until a program has changed this worker.

    Args:
        jobs: Shared with the other workers; a free worker takes the next job.
        setup: The worker's setup.
    """
    try:
        context = _make_context(setup)
    except FileNotFoundError:  # a server that ends removes its folder
        if _is_closed(jobs):
            os._exit(0)
        raise
    state = read_process_state()
    while True:
        ready = _fork_program(context)
        message, descriptors = receive(jobs, 1)
        if message == EXIT:
            _exit(context, EXITED)
        if not message:
            _exit(context, with_groups=True)
        _run_job(ready, descriptors, context)
        try:
            context.box.clear()
            layers = context.isolation.layers
            if layers["ipc"] and not layers["seccomp"]:  # seccomp denies their creation
                kernel.remove_shared_objects()
            changes = find_changes(state)
        except OSError as error:
            changes = [str(error)]
        if changes:
            if not _is_closed(jobs):
                text = "sandbox: a program has changed its worker, which is replaced: %s"
                print(text % ", ".join(changes), file=sys.stderr)
            _exit(context)


def run_session(descriptors: list[int], setup: WorkerSetup) -> NoReturn:
    """Run one job, an interpreter that lives until the server closes it."""
    context = _make_context(setup)
    _run_job(_fork_program(context), descriptors, context)
    _exit(context)


@dataclass(slots=True, frozen=True)
class _Context:
    """What all programs of a worker share."""

    isolation: Isolation
    uid: int
    processes: Processes
    resets: list[Reset]
    box: Box
    group: Group | None
    file_rules: int | None


@dataclass(slots=True)
class _Program:
    pid: int
    channel: socket.socket
    """The program receives its job here."""
    statuses: dict[int, int] = field(default_factory=dict)
    """Wait statuses of the children that ended, by process id."""


def _make_context(setup: WorkerSetup) -> _Context:
    isolation, uid = setup.isolation, setup.isolation.first_uid + setup.number
    owner = uid if isolation.layers["own_uid"] else None
    box = Box(setup.directory, owner, is_mounted=isolation.layers["mount"])
    os.environ.update(HOME=box.work, TMPDIR=box.tmp, USER="sandbox")
    group = None if isolation.groups is None else Group(isolation.groups, str(setup.number))
    rules = layers_of.build_file_rules(isolation, box.folders)
    return _Context(isolation, uid, setup.processes, setup.resets, box, group, rules)


def _is_closed(channel: socket.socket) -> bool:
    """Whether the other end is gone."""
    poll = select.poll()
    poll.register(channel, 0)
    return bool(poll.poll(0))


def _exit(context: _Context, code: int = 0, *, with_groups: bool = False) -> NoReturn:
    """End the worker without leaving anything behind.

    Args:
        context: The worker's context.
        code: Exit code.
        with_groups: Remove the parent of the workers' control groups too. The last worker succeeds.
    """
    context.processes.kill_all()
    context.box.remove()
    if context.group is not None:
        context.group.remove()
    if with_groups and context.isolation.groups is not None:
        context.isolation.groups.remove()
    os._exit(code)


def _fork_program(context: _Context) -> _Program:
    """Fork a program that has everything but its code. This is done before a request arrives, to save its time."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pid = os.fork()
    if pid == 0:
        _program_main(theirs, context)
    theirs.close()
    if context.group is not None:
        with contextlib.suppress(ProcessLookupError):  # it died at once; its status shows that
            context.group.admit(pid)
    return _Program(pid, ours)


def _program_main(channel: socket.socket, context: _Context) -> NoReturn:
    os.fchdir(context.box.work_descriptor)
    _close_others({channel.fileno()} if context.file_rules is None else {channel.fileno(), context.file_rules})
    os.setsid()
    for reset in context.resets:
        reset()
    layers_of.confine(context.isolation, context.uid, context.file_rules)
    message, descriptors = receive(channel, program.LARGEST_MESSAGE)
    channel.close()
    if not message:
        os._exit(0)
    job = Job(**json.loads(message))
    layers_of.limit_resources(job.address_space, job.cpu_s)
    if job.is_session:
        program.serve_cells(socket.socket(fileno=descriptors[0]), context.box.work)
    program.take_streams(descriptors)
    if not job.command:
        program.run_python(job.file, context.box.work)
    for number in (signal.SIGINT, signal.SIGPIPE):
        signal.signal(number, signal.SIG_DFL)
    try:
        os.execvp(job.command[0], job.command)
    except OSError as error:
        os.write(2, f"{job.command[0]}: {error.strerror}\n".encode())
        os._exit(127)


def _close_others(kept: set[int]) -> None:
    """Close all descriptors except these and the standard ones."""
    first = 3
    for descriptor in sorted(kept):
        os.closerange(first, descriptor)
        first = max(first, descriptor + 1)
    os.closerange(first, _HIGHEST_DESCRIPTOR)


def _run_job(ready: _Program, descriptors: list[int], context: _Context) -> None:
    """Run a job and write its outcome to its status."""
    payload, status, *rest = descriptors
    outcome: dict[str, Any]
    files: dict[str, bytes] = {}
    with open(payload, "rb") as file:
        header, given = parse_files(file.read())
    job = Job(**header)
    control = rest.pop() if job.is_session else None
    try:
        for name, content in given.items():
            context.box.write(name, content)
    except OSError as error:
        outcome = {"error": str(error)}
        context.processes.kill_all()
    else:
        outcome = _run_program(ready, job, rest, status, control, context)
        files = context.box.read(job.fetch)
    finally:
        ready.channel.close()
        for descriptor in (*rest, *([] if control is None else [control])):
            os.close(descriptor)
    with contextlib.suppress(OSError), open(status, "wb") as pipe:
        write_files(pipe, outcome, files)


def _run_program(
    ready: _Program, job: Job, streams: list[int], status: int, control: int | None, context: _Context
) -> dict[str, Any]:
    """Send the program its job, wait for its end or its deadline, and kill its remaining processes."""
    start = time.monotonic()
    usage = UsageMonitor(context.processes, context.box, context.group, job.memory_bytes)
    activity = Activity(context.processes, status)
    pause = None if control is None else Pause(context.processes, control)
    with contextlib.suppress(OSError):  # it died before it got its job; its status shows that
        socket.send_fds(ready.channel, [json.dumps(asdict(replace(job, fetch=()))).encode()], streams)
    while streams:
        os.close(streams.pop())
    reason = _wait_for_end(ready, status, start + job.timeout, usage, activity, pause)
    ready.statuses |= context.processes.kill_all()
    if reason == "end" and usage.was_killed():
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


def _wait_for_end(
    ready: _Program, status: int, deadline: float, usage: UsageMonitor, activity: Activity, pause: Pause | None
) -> str:
    """Wait until the program ends, reaches its deadline, uses too much memory, or nobody reads its status.

    Returns:
        The reason: `end`, `time`, `memory` or `nobody`.
    """
    ended = os.pidfd_open(ready.pid)
    poll = select.poll()
    poll.register(ended, select.POLLIN)
    poll.register(status, 0)  # POLLERR is always reported, when the reader is gone
    if pause is not None:
        poll.register(pause.control, select.POLLIN)
    try:
        while True:
            left = deadline - time.monotonic()
            is_paused = pause is not None and pause.is_paused
            events = dict(poll.poll(None if is_paused else max(0.0, min(left, _TICK_S)) * 1000))
            if ended in events or status in events:
                return "end" if ended in events else "nobody"
            if left <= 0:
                return "time"
            if pause is not None and pause.control in events:
                if not pause.apply():
                    return "nobody"
                activity.reset()
            ready.statuses |= reap(os.WNOHANG)
            if usage.exceeds_memory():
                return "memory"
            activity.check()
    finally:
        os.close(ended)
