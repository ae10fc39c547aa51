"""An interpreter with libraries imported that forks the sandbox's workers. Runs with the standard library alone.

It moves into the private file tree, tells the server what isolation was reached, and then starts a worker
(`rl.services.sandbox.worker`) whenever the server asks for one, or one has died.
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
from rl.services.sandbox.fork_state import Renewal, find_renewals
from rl.services.sandbox.isolation import MAX_UIDS, Isolation, enter_namespaces, furnish, prepare
from rl.services.sandbox.job import DISMISSED, receive
from rl.services.sandbox.own_state import find_changes, read_own_state
from rl.services.sandbox.processes import become_subreaper

ONE_WORKER, ONE_SESSION = b"worker", b"session"
"""What the server asks for; a session comes with the descriptors of its job."""
_REPLACE_AFTER_S = 0.1


@dataclass(slots=True, frozen=True)
class ZygoteOptions:
    """What the server decides."""

    preload: tuple[str, ...]
    directory: str
    allow_network: bool
    is_wrapped: bool
    """It was started inside bubblewrap."""


@dataclass(slots=True, frozen=True)
class Hello:
    """What the zygote tells when it is ready."""

    layers: dict[str, bool]
    not_imported: tuple[str, ...]


def main() -> None:
    """Prepare, report, and start workers until the server goes away."""
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
    renewals = find_renewals()
    _hide_own_modules()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # the programs', who put their own pipe under it
    become_subreaper()
    gc.collect()
    gc.freeze()
    with contextlib.suppress(BrokenPipeError):  # the server is gone already; then there is nothing to serve
        control.send(json.dumps(asdict(Hello(isolation.layers, tuple(missing)))).encode())
        _Nursery(control, jobs, isolation, options.directory, renewals).serve()


def _renumber(descriptor: int) -> int:
    """Give a descriptor the lowest number that is free. Those above the highest one expected stay open in programs."""
    lowest = os.dup(descriptor)
    os.close(descriptor)
    return lowest


def _hide_own_modules() -> None:
    """A program that imports `rl` finds its own file or none."""
    for name in [name for name in sys.modules if name == "rl" or name.startswith("rl.")]:
        del sys.modules[name]
    sys.path.pop(0)
    sys.argv[:] = [""]


class _Nursery:
    """The workers."""

    def __init__(
        self,
        control: socket.socket,
        jobs: socket.socket,
        isolation: Isolation,
        directory: str,
        renewals: list[Renewal],
    ) -> None:
        self._control, self._jobs = control, jobs
        self._isolation, self._directory, self._renewals = isolation, directory, renewals
        self._state = read_own_state()
        self._num_replaced = 0
        self._numbers: dict[int, int] = {}
        """By process; a number stands for a user."""
        self._sessions: set[int] = set()

    def serve(self) -> None:
        """Start what the server asks for until it goes away."""
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
                num_dead = self._bury()
            if self._control.fileno() in events:
                message, descriptors = receive(self._control, 64)
                if not message:
                    return
                self._start(descriptors if message == ONE_SESSION else None)
                for descriptor in descriptors:
                    os.close(descriptor)
            if num_dead:
                self._num_replaced += num_dead
                with contextlib.suppress(BlockingIOError):  # nobody has asked for long; a later number holds this one
                    self._control.send(str(self._num_replaced).encode(), socket.MSG_DONTWAIT)
            for _ in range(num_dead):
                time.sleep(_REPLACE_AFTER_S)  # it may be the machine, which should not be made busier
                self._start(None)

    def _bury(self) -> int:
        """Take note of those that ended; returns the number of workers among them, which are to be replaced."""
        num_workers = 0
        with contextlib.suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                pid, is_dismissed = ended[0], os.waitstatus_to_exitcode(ended[1]) == DISMISSED
                if self._numbers.pop(pid, None) is not None and pid not in self._sessions and not is_dismissed:
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
            _be_worker_or_its_parent(write_end, self, session, number)
        os.close(write_end)
        with open(read_end, "rb") as pipe:
            text = pipe.read()
        os.waitpid(first, 0)
        if text:
            self._numbers[int(text)] = number
            if session is not None:
                self._sessions.add(int(text))

    def become_worker(self, session: list[int] | None, number: int) -> NoReturn:
        """What process 1 of the new namespaces does."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        self._control.close()
        processes = furnish(self._isolation)
        post = worker.Post(self._isolation, self._directory, number, processes, self._renewals)
        if session is not None:
            self._jobs.close()
            worker.keep_session(session, post)
        worker.keep_programs(self._jobs, post)


def _be_worker_or_its_parent(write_end: int, nursery: _Nursery, session: list[int] | None, number: int) -> NoReturn:
    """Enter the namespaces, which takes a process that only its child is in, and tell the child's number."""
    try:
        enter_namespaces(nursery._isolation)
        pid = os.fork()
        if pid == 0:
            os.close(write_end)
            nursery.become_worker(session, number)
        os.write(write_end, str(pid).encode())
        os._exit(0)
    except BrokenPipeError:  # the zygote was killed meanwhile
        os._exit(1)
    except BaseException:  # nothing above could tell
        traceback.print_exc()
        os._exit(1)
