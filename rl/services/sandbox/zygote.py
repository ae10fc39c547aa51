"""An interpreter with libraries imported that forks the sandbox's workers. Standard library only.

It moves into the private file tree, reports the isolation that it reached, and then starts a worker
(`rl.services.sandbox.worker`) whenever the server asks for one or one has died.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import select
import signal
import socket
import sys
import time
import traceback
from dataclasses import asdict, dataclass
from io import TextIOWrapper
from typing import NoReturn

from rl.services.sandbox import worker
from rl.services.sandbox.fork_state import Reset, find_resets
from rl.services.sandbox.isolation import MAX_UIDS, Isolation, enter_namespaces, prepare, set_up_namespaces
from rl.services.sandbox.job import EXITED, receive
from rl.services.sandbox.process_state import find_changes, read_process_state
from rl.services.sandbox.processes import become_subreaper

ONE_WORKER, ONE_SESSION = b"worker", b"session"
"""Requests of the server. A session's request carries the descriptors of its job."""
_REPLACE_AFTER_S = 0.1


@dataclass(slots=True, frozen=True)
class ZygoteOptions:
    """What the server decides for a zygote."""

    preload: tuple[str, ...]
    directory: str
    allow_network: bool
    is_wrapped: bool
    """The zygote runs inside bubblewrap."""


@dataclass(slots=True, frozen=True)
class ZygoteReport:
    """What the zygote reports when it is ready."""

    layers: dict[str, bool]
    not_imported: tuple[str, ...]


def main() -> None:
    """Prepare, report, and start workers until the server is gone."""
    control, jobs = (socket.socket(fileno=_renumber(int(text))) for text in sys.argv[1:3])
    options = ZygoteOptions(**json.loads(sys.argv[3]))
    os.chdir("/")
    os.umask(0o077)
    missing = []
    for name in options.preload:
        try:
            importlib.import_module(name)
        except ImportError:
            missing.append(name)
    isolation = prepare(options.directory, allow_network=options.allow_network, is_wrapped=options.is_wrapped)
    resets = find_resets()
    _hide_own_modules()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # programs inherit it, with a pipe of their own as descriptor 1
    become_subreaper()
    gc.collect()
    gc.freeze()
    with contextlib.suppress(BrokenPipeError):  # the server is gone already
        control.send(json.dumps(asdict(ZygoteReport(isolation.layers, tuple(missing)))).encode())
        _WorkerPool(control, jobs, isolation, options.directory, resets).serve()


def _renumber(descriptor: int) -> int:
    """Give a descriptor the lowest free number: programs close only the numbers up to a limit."""
    lowest = os.dup(descriptor)
    os.close(descriptor)
    return lowest


def _hide_own_modules() -> None:
    """Keep programs from importing our `rl`: they may have a module with that name."""
    for name in [name for name in sys.modules if name == "rl" or name.startswith("rl.")]:
        del sys.modules[name]
    sys.path.pop(0)
    sys.argv[:] = [""]


class _WorkerPool:
    """Starts and replaces workers."""

    def __init__(
        self,
        control: socket.socket,
        jobs: socket.socket,
        isolation: Isolation,
        directory: str,
        resets: list[Reset],
    ) -> None:
        self._control, self._jobs = control, jobs
        self._isolation, self._directory, self._resets = isolation, directory, resets
        self._state = read_process_state()
        self._num_replaced = 0
        self._numbers: dict[int, int] = {}
        """Worker numbers by process id. A number determines the user id."""
        self._sessions: set[int] = set()

    def serve(self) -> None:
        """Start what the server asks for, until it is gone."""
        wake, woken = os.pipe()
        for descriptor in (wake, woken):
            os.set_blocking(descriptor, False)
        signal.set_wakeup_fd(woken)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        poll = select.poll()
        poll.register(self._control, select.POLLIN)
        poll.register(wake, select.POLLIN)
        while True:
            events = dict(poll.poll())
            num_dead = 0
            if wake in events:
                os.read(wake, 4096)
                num_dead = self._reap()
            if self._control.fileno() in events:
                message, descriptors = receive(self._control, 64)
                if not message:
                    return
                self._start(descriptors if message == ONE_SESSION else None)
                for descriptor in descriptors:
                    os.close(descriptor)
            if num_dead:
                self._num_replaced += num_dead
                with contextlib.suppress(BlockingIOError):  # unread numbers fill the socket; a later one includes this
                    self._control.send(str(self._num_replaced).encode(), socket.MSG_DONTWAIT)
            for _ in range(num_dead):
                time.sleep(_REPLACE_AFTER_S)  # the machine may be the cause, and should not get more work
                self._start(None)

    def _reap(self) -> int:
        """Wait for the children that ended; returns the number of workers to replace."""
        num_workers = 0
        with contextlib.suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                pid, was_asked = ended[0], os.waitstatus_to_exitcode(ended[1]) == EXITED
                if self._numbers.pop(pid, None) is not None and pid not in self._sessions and not was_asked:
                    num_workers += 1
                self._sessions.discard(pid)
        return num_workers

    def _start(self, session: list[int] | None) -> None:
        if changes := find_changes(self._state):
            print(f"sandbox: a program has changed the interpreter: {', '.join(changes)}", file=sys.stderr)
            os._exit(1)  # the server starts another
        taken = set(self._numbers.values())
        number = next(i for i in range(MAX_UIDS) if i not in taken or i == MAX_UIDS - 1)
        read_end, write_end = os.pipe()
        first = os.fork()
        if first == 0:
            _fork_worker(write_end, self, session, number)
        os.close(write_end)
        with open(read_end, "rb") as pipe:
            text = pipe.read()
        os.waitpid(first, 0)
        if text:
            self._numbers[int(text)] = number
            if session is not None:
                self._sessions.add(int(text))

    def run_worker(self, session: list[int] | None, number: int) -> NoReturn:
        """Run a worker in this process, which is process 1 of the new namespaces."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        self._control.close()
        processes = set_up_namespaces(self._isolation)
        setup = worker.WorkerSetup(self._isolation, self._directory, number, processes, self._resets)
        if session is not None:
            self._jobs.close()
            worker.run_session(session, setup)
        worker.run_jobs(self._jobs, setup)


def _fork_worker(write_end: int, pool: _WorkerPool, session: list[int] | None, number: int) -> NoReturn:
    """Enter the namespaces, fork the worker as their process 1, write its process id, and end."""
    try:
        enter_namespaces(pool._isolation)
        pid = os.fork()
        if pid == 0:
            os.close(write_end)
            pool.run_worker(session, number)
        os.write(write_end, str(pid).encode())
        os._exit(0)
    except BrokenPipeError:  # the zygote was killed meanwhile
        os._exit(1)
    except BaseException:  # nothing above this frame would report it
        traceback.print_exc()
        os._exit(1)
