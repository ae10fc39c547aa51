"""Runs programs for the sandbox: a directory of its own for each, a zygote to fork it, pipes to read it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from rl.errors import ServiceError
from rl.services import zygote as zygote_module
from rl.services.sandbox_request import RunRequest

logger = logging.getLogger(__name__)

MAX_OUTPUT_BYTES = 1 << 20
"""What is kept of stdout and of stderr."""
_STOP_READING_BYTES = 64 << 20
_START_TIMEOUT_S = 60.0
_KILL_GRACE_S = 5.0
_MAX_FETCH_BYTES = 64 << 20
_CHUNK = 1 << 16
_SCIENTIFIC = ("numpy", "sympy", "scipy")
"""Imported before the fork for programs that name one of them: sympy alone takes a third of a second."""
_SCIENTIFIC_NAME = re.compile(rf"\b({'|'.join(_SCIENTIFIC)})\b")
_FILE_NAMES = {"python": "main.py", "bash": "main.sh"}
_UIDS = 256
_PATH = "/usr/local/bin:/usr/bin:/bin"


@dataclass(slots=True, frozen=True)
class RunOutcome:
    """How a program ended and what it left."""

    return_code: int | None
    """Negative for a signal; None when its time was up."""
    timed_out: bool
    execution_time: float
    """Seconds, the wait for a free worker not counted."""
    stdout: str
    stderr: str
    files: dict[str, bytes]
    """Those of `fetch_files` that exist, by their path as asked."""


class Zygote:
    """A child process that forks programs (`rl.services.zygote`)."""

    def __init__(self, directory: Path, *, allow_network: bool, preload: tuple[str, ...] = ()) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.first_uid = 20000 + (os.getpid() % 100) * _UIDS
        options: dict[str, object] = {
            "preload": preload,
            "directory": str(directory),
            "allow_network": allow_network,
            "first_uid": self.first_uid,
        }
        flags = ["-s", "-P", "-X", "no_debug_ranges", "-X", "utf8"]
        environment = {"PATH": f"{Path(sys.executable).parent}:{_PATH}", "LANG": "C.UTF-8", "PYTHONHASHSEED": "0"}
        threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, *flags, zygote_module.__file__, str(theirs.fileno()), json.dumps(options)],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env={**environment, **threads},
                start_new_session=True,
            )
        self._control = ours
        self._control.settimeout(_START_TIMEOUT_S)
        try:
            self.layers: dict[str, bool] = json.loads(self._control.recv(_CHUNK) or b"null")
        except (TimeoutError, ConnectionError) as error:
            self.close()
            raise ServiceError(f"sandbox: its interpreter did not start, {error}. Look at its output above.") from error
        if self.layers is None:
            self.close()
            raise ServiceError("sandbox: its interpreter ended at start. Look at its output above.")

    @property
    def is_alive(self) -> bool:
        """Whether jobs can be sent."""
        return self._process.poll() is None

    def send(self, job: dict[str, object], descriptors: list[int]) -> None:
        """Have a program started.

        Args:
            job: What `rl.services.zygote` reads.
            descriptors: stdin, stdout, stderr, status.

        Raises:
            OSError: The zygote is gone.
        """
        socket.send_fds(self._control, [json.dumps(job).encode()], descriptors)

    def close(self) -> None:
        """End it; programs in progress end when nobody reads their status."""
        self._control.close()
        self._process.kill()
        self._process.wait()


class SandboxPool:
    """At most `num_workers` programs at once; further ones wait."""

    def __init__(self, num_workers: int, *, allow_network: bool = False) -> None:
        self.num_workers = num_workers
        self._allow_network = allow_network
        self._slots: asyncio.Queue[int] = asyncio.Queue()
        for slot in range(min(num_workers, _UIDS)):
            self._slots.put_nowait(slot)
        self._root = Path(tempfile.mkdtemp(prefix="turnwise-sandbox-"))
        self._root.chmod(0o711)
        self.num_restarts = 0
        self._zygotes: dict[tuple[str, ...], Zygote] = {(): Zygote(self._root, allow_network=allow_network)}
        self.layers = self._zygotes[()].layers
        """Isolation that this machine allows, by name."""
        self._starting = asyncio.Lock()

    async def run(self, request: RunRequest) -> RunOutcome:
        """Run one program to its end or its deadline.

        Args:
            request: Checked.

        Returns:
            The outcome. Nothing of the program is left when this returns or is cancelled.

        Raises:
            ServiceError: The sandbox itself failed.
        """
        slot = await self._slots.get()
        directory = Path(tempfile.mkdtemp(dir=self._root))
        try:
            return await self._run_in(directory, slot, request)
        except OSError as error:
            raise ServiceError(f"sandbox: {error}. Check the space in {self._root} and the limits.") from error
        finally:
            self._slots.put_nowait(slot)
            await asyncio.shield(asyncio.to_thread(_remove, directory))

    async def _run_in(self, directory: Path, slot: int, request: RunRequest) -> RunOutcome:
        zygote = await self._zygote_for(request)
        uid = zygote.first_uid + slot
        _write_files(directory, request, uid if self.layers["own_uid"] else None)
        job: dict[str, object] = {
            "language": request.language,
            "file": _FILE_NAMES[request.language],
            "directory": str(directory),
            "timeout": request.run_timeout,
            "memory_bytes": request.memory_limit_mb << 20,
            "uid": uid,
        }
        stdin = os.memfd_create("stdin")
        os.write(stdin, request.stdin)
        os.lseek(stdin, 0, os.SEEK_SET)
        with contextlib.ExitStack() as stack:
            ends = [stack.enter_context(_Capture(limit)) for limit in (MAX_OUTPUT_BYTES, MAX_OUTPUT_BYTES, _CHUNK)]
            try:
                zygote.send(job, [stdin, *(end.write_end for end in ends)])
            finally:
                os.close(stdin)
                for end in ends:
                    end.close_write_end()
            stdout, stderr, status = ends
            limit = request.run_timeout + _KILL_GRACE_S
            await asyncio.wait({status.done}, timeout=limit)
            if not status.done.done() or not status.content:
                raise ServiceError("sandbox: the process that keeps a program died. Send it again.")
            await asyncio.wait({stdout.done, stderr.done}, timeout=_KILL_GRACE_S)
            outcome = json.loads(bytes(status.content))
            files = _read_files(directory, request.fetch_files)
            return RunOutcome(**outcome, stdout=stdout.text(), stderr=stderr.text(), files=files)

    async def _zygote_for(self, request: RunRequest) -> Zygote:
        """The bare interpreter, or for a program that names one of `_SCIENTIFIC` the one that has them imported."""
        is_scientific = request.language == "python" and _SCIENTIFIC_NAME.search(request.code) is not None
        preload = _SCIENTIFIC if is_scientific else ()
        async with self._starting:
            known = self._zygotes.get(preload)
            if known is not None and known.is_alive:
                return known
            if known is not None:
                logger.warning("sandbox: an interpreter died and is started again")
                self.num_restarts += 1
                known.close()
            start = partial(Zygote, self._root, allow_network=self._allow_network, preload=preload)
            self._zygotes[preload] = await asyncio.to_thread(start)
            return self._zygotes[preload]

    def close(self) -> None:
        """End everything and remove the directories."""
        for zygote in self._zygotes.values():
            zygote.close()
        _remove(self._root)


class _Capture:
    """Reads a pipe on the event loop while the program runs, keeping the first `limit` bytes."""

    def __init__(self, limit: int) -> None:
        self._read_end, self.write_end = os.pipe()
        os.set_blocking(self._read_end, False)
        self._limit = limit
        self._num_bytes = 0
        self.content = bytearray()
        self._loop = asyncio.get_running_loop()
        self.done: asyncio.Future[None] = self._loop.create_future()
        self._loop.add_reader(self._read_end, self._read)

    def _read(self) -> None:
        try:
            chunk = os.read(self._read_end, _CHUNK)
        except BlockingIOError:
            return
        self._num_bytes += len(chunk)
        self.content += chunk[: max(0, self._limit - len(self.content))]
        if not chunk or self._num_bytes > _STOP_READING_BYTES:
            self._finish()  # a program that goes on writing gets a broken pipe

    def _finish(self) -> None:
        if self._read_end >= 0:
            self._loop.remove_reader(self._read_end)
            os.close(self._read_end)
            self._read_end = -1
        if not self.done.done():
            self.done.set_result(None)

    def text(self) -> str:
        """What was read, with a marker where it was cut; bytes that are not UTF-8 are replaced."""
        text = self.content.decode("utf-8", "replace")
        if self._num_bytes > self._limit:
            text += f"\n...(output cut after {self._limit} bytes)"
        return text

    def close_write_end(self) -> None:
        """Leave the write end to the program."""
        if self.write_end >= 0:
            os.close(self.write_end)
            self.write_end = -1

    def __enter__(self) -> _Capture:
        return self

    def __exit__(self, *_: object) -> None:
        self.close_write_end()
        self._finish()


def _write_files(directory: Path, request: RunRequest, uid: int | None) -> None:
    files = {**request.files, _FILE_NAMES[request.language]: request.code.encode("utf-8", "replace")}
    for name, content in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    if uid is not None:
        for parent, names, children in os.walk(directory):
            for name in (".", *names, *children):
                os.chown(os.path.join(parent, name), uid, uid, follow_symlinks=False)


def _read_files(directory: Path, names: tuple[str, ...]) -> dict[str, bytes]:
    """Regular files inside the directory; a link that leads out of it counts as missing."""
    found: dict[str, bytes] = {}
    root = directory.resolve()
    for name in names:
        path = (directory / name).resolve()
        if path.is_relative_to(root) and path.is_file() and path.stat().st_size <= _MAX_FETCH_BYTES:
            found[name] = path.read_bytes()
    return found


def _remove(directory: Path) -> None:
    """Remove a tree, also one whose directories the program has closed to itself."""
    shutil.rmtree(directory, ignore_errors=True)
    if not directory.exists():
        return
    for parent, names, _ in os.walk(directory):
        for name in names:
            with contextlib.suppress(OSError):
                os.chmod(os.path.join(parent, name), 0o700)
    shutil.rmtree(directory, ignore_errors=True)
