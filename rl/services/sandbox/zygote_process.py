"""The server's end of a zygote: starts it, waits for its report, and sends it jobs."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import select
import socket
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

from rl.errors import ServiceError
from rl.services.sandbox.job import EXIT, RUN
from rl.services.sandbox.zygote import ONE_SESSION, ONE_WORKER, ZygoteOptions, ZygoteReport

logger = logging.getLogger(__name__)

_START_TIMEOUT_S = 60.0
_SEND_TIMEOUT_S = 5.0
_PACKAGE_ROOT = Path(__file__).resolve().parents[3]
_PROGRAM = (
    f"import sys; sys.path.insert(0, {str(_PACKAGE_ROOT)!r}); from rl.services.sandbox.zygote import main; main()"
)
SEARCH_PATH = "/usr/local/bin:/usr/bin:/bin"
"""PATH of sandboxed programs, after the interpreter's own folder."""
_FLAGS = ("-s", "-P", "-X", "no_debug_ranges", "-X", "utf8")


class Zygote:
    """A child process that forks workers (`rl.services.sandbox.zygote`)."""

    def __init__(self, directory: Path, *, allow_network: bool, preload: tuple[str, ...], is_wrapped: bool) -> None:
        """Start it; `wait` waits until it is ready.

        Args:
            directory: An empty folder for this zygote alone.
            allow_network: Give programs the machine's network.
            preload: Modules to import before the fork.
            is_wrapped: Start it inside bubblewrap.
        """
        self._directory, self._preload = directory, preload
        _fill_standard_descriptors()
        self._control, control = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._jobs, jobs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        options = ZygoteOptions(preload, str(directory), allow_network, is_wrapped)
        environment = {"PATH": f"{Path(sys.executable).parent}:{SEARCH_PATH}", "LANG": "C.UTF-8", "PYTHONHASHSEED": "0"}
        threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        command = [sys.executable, *_FLAGS, "-c", _PROGRAM, str(control.fileno()), str(jobs.fileno())]
        if is_wrapped:
            command = [*_bubblewrap(directory, allow_network=allow_network), *command]
        with control, jobs:
            self._process = subprocess.Popen(
                [*command, json.dumps(asdict(options))],
                pass_fds=[control.fileno(), jobs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env={**environment, **threads},
                start_new_session=True,
            )
        self._jobs.settimeout(_SEND_TIMEOUT_S)
        self._num_workers = self._num_replaced = 0
        self.imported: tuple[str, ...] | None = None
        """The installed modules of `preload`; None until `wait` has returned."""
        self.num_in_flight = 0
        """Jobs that were sent and have not ended. The caller counts them."""

    def wait(self) -> dict[str, bool]:
        """Wait until it is ready, and return the layers of isolation that it reached.

        Raises:
            ServiceError: It did not start.
        """
        self._control.settimeout(_START_TIMEOUT_S)
        try:
            text = self._control.recv(1 << 16)
        except OSError as error:
            self.close()
            raise ServiceError(f"sandbox: its interpreter did not start, {error}. Look at its output above.") from error
        if not text:
            self.close()
            raise ServiceError("sandbox: its interpreter ended at start. Look at its output above.")
        self._control.settimeout(_SEND_TIMEOUT_S)
        report = ZygoteReport(**json.loads(text))
        self.imported = tuple(name for name in self._preload if name not in report.not_imported)
        if report.not_imported:
            logger.info("sandbox: not installed, so not preloaded: %s", ", ".join(report.not_imported))
        return report.layers

    @property
    def is_alive(self) -> bool:
        """Whether jobs can be sent."""
        return self._process.poll() is None

    def num_replaced(self) -> int:
        """The number of its workers that died or were changed by a program, and were replaced."""
        poll = select.poll()  # the descriptor may be too large for select
        poll.register(self._control, select.POLLIN)
        while self.imported is not None and poll.poll(0):  # the first message is for `wait`
            text = self._control.recv(64)
            if not text:  # the zygote is gone
                break
            self._num_replaced = int(text)
        return self._num_replaced

    def add_worker(self) -> None:
        """Start one more worker.

        Raises:
            OSError: The zygote is gone.
        """
        self._control.send(ONE_WORKER)
        self._num_workers += 1

    def send(self, descriptors: list[int]) -> None:
        """Run a program in a free worker, or in a new one if there is none.

        Args:
            descriptors: Payload, status, stdin, stdout and stderr, as `rl.services.sandbox.worker` takes them.

        Raises:
            OSError: The zygote is gone.
        """
        if self.num_in_flight > self._num_workers:
            self.add_worker()
        socket.send_fds(self._jobs, [RUN], descriptors)

    def stop_idle_workers(self, num_kept: int) -> None:
        """Stop idle workers, but keep at least `num_kept` workers."""
        with contextlib.suppress(OSError):  # the zygote is gone, and so are its workers
            while self._num_workers > max(num_kept, self.num_in_flight):
                self._jobs.send(EXIT)
                self._num_workers -= 1

    def send_session(self, descriptors: list[int]) -> None:
        """Start a session in a worker of its own.

        Args:
            descriptors: Payload, status, the socket for its cells, and the read end of its control.

        Raises:
            OSError: The zygote is gone.
        """
        socket.send_fds(self._control, [ONE_SESSION], descriptors)

    def close(self) -> None:
        """Kill it. Its programs end because nobody reads their status any more."""
        self._control.close()
        self._jobs.close()
        self._process.kill()
        self._process.wait()


def _fill_standard_descriptors() -> None:
    """Open descriptors 0 to 2 if they are closed. Otherwise the next file opened would serve as a program's output."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)


def _bubblewrap(directory: Path, *, allow_network: bool) -> list[str]:
    """The prefix of the interpreter's command that makes namespaces by bubblewrap, which may have rights we lack."""
    paths = ["/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/etc/alternatives", "/etc/ld.so.cache"]
    paths += [sys.prefix, sys.base_prefix, f"{_PACKAGE_ROOT}/rl/__init__.py", f"{_PACKAGE_ROOT}/rl/services"]
    if allow_network:
        paths += ["/etc/hosts", "/etc/resolv.conf", "/etc/ssl/certs"]
    command = ["bwrap", "--unshare-all", "--die-with-parent", "--new-session", "--cap-drop", "ALL"]
    command += ["--share-net"] * allow_network + ["--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp"]
    for path in paths:
        command += ["--ro-bind-try", path, path]
    return [*command, "--bind", str(directory), str(directory), "--chdir", "/", "--"]
