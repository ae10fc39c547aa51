"""Runs the sandbox's programs: zygotes fork workers, and pipes carry what the programs write."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import psutil

from rl.errors import ServiceError
from rl.services.json_body import RequestError
from rl.services.owned_folder import OwnedFolder
from rl.services.sandbox.interpreter_session import InterpreterSession
from rl.services.sandbox.isolation import missing_layers
from rl.services.sandbox.job import Job, memory_file, pack_job
from rl.services.sandbox.languages import LANGUAGES, Language
from rl.services.sandbox.outcome import (
    MAX_OUTPUT_BYTES,
    OUT_OF_MEMORY,
    Capture,
    CompileOutcome,
    RunOutcome,
    Status,
    parse_ending,
)
from rl.services.sandbox.request import RunRequest
from rl.services.sandbox.smoke_test import run_smoke_test
from rl.services.sandbox.zygote_process import SEARCH_PATH, Zygote

logger = logging.getLogger(__name__)

PRELOAD = ("numpy", "sympy", "scipy")
"""Modules to import before the fork, for programs that mention one of them. sympy alone takes a third of a second."""
_KILL_GRACE_S = 15.0
_MAX_STATUS_BYTES = 80 << 20
_STOP_IDLE_AFTER_S = 60.0
_READY_PER_CORE = 2
_PLACES_PER_WORKER, _MAX_PLACES = 16, 256
_PLACE_BYTES = 64 << 20
"""Free memory needed for each place beyond the workers. Most programs use a tenth of it."""
_OnWaiting = Callable[[bool], None] | None


class SandboxPool:
    """Runs programs, at most `num_places` at once. Further ones wait."""

    def __init__(
        self,
        num_workers: int,
        *,
        allow_network: bool = False,
        preload: tuple[str, ...] = PRELOAD,
        require_isolation: bool = False,
    ) -> None:
        """Start the interpreters.

        Args:
            num_workers: Programs that should compute at once. The caller limits them (`Admission`).
            allow_network: Give programs the machine's network.
            preload: Modules to import in advance, for programs that mention one of them.
            require_isolation: Refuse to start if a layer of isolation is missing, instead of a warning.

        Raises:
            ServiceError: Programs do not run on this machine, or a required layer is missing.
        """
        self.num_workers = num_workers
        self._num_restarts = 0
        self._allow_network = allow_network
        self._preload = preload
        names = "|".join(re.escape(name.partition(".")[0]) for name in preload)
        self._names_preloaded = re.compile(rf"\b({names})\b") if names else None
        self._num_ready = min(num_workers, _READY_PER_CORE * (os.cpu_count() or 1))
        self.num_places = _count_places(num_workers)
        """Programs that may run at once, including those that wait for something."""
        self._places = asyncio.Semaphore(self.num_places)
        self._starting = asyncio.Lock()
        self._stop_timer: asyncio.TimerHandle | None = None
        self._is_wrapped = False
        self._folder = OwnedFolder("turnwise-sandbox-")
        self._folder.path.chmod(0o711)
        self._zygotes: dict[tuple[str, ...], Zygote] = {}
        self._unready: set[tuple[str, ...]] = set()
        try:
            self.layers = self._start_first(require_isolation)
            """Isolation on this machine, by layer."""
            if preload:
                self._start(preload)
        except ServiceError:
            self.close()
            raise

    async def run(self, request: RunRequest, on_waiting: _OnWaiting = None) -> RunOutcome:
        """Run one program to its end or its deadline.

        Args:
            request: The program.
            on_waiting: Called with True when the program begins to wait for something, with False when it continues.

        Returns:
            The outcome. All the program's processes have ended by then. Cancelling kills the program.

        Raises:
            RequestError: The language is not installed.
            ServiceError: The sandbox itself failed.
        """
        language = LANGUAGES[request.language]
        program = (language.compiler or language.command)[:1]
        if program and shutil.which(program[0], path=SEARCH_PATH) is None:
            raise RequestError(f"language: {request.language} needs {program[0]}, which the sandbox's machine lacks")
        async with self._places:
            if not language.compiler:
                return await self._run(request, language, language.command, on_waiting)
            return await self._compile_and_run(request, language, on_waiting)

    async def open_session(self, *, memory_limit_mb: int, files: dict[str, bytes] | None = None) -> InterpreterSession:
        """Start an interpreter that keeps its state, isolated like a program. It does not count for `num_places`.

        Args:
            memory_limit_mb: Memory limit for all its processes.
            files: Files to put into its folder, by relative path.

        Raises:
            ServiceError: It did not start.
        """
        zygote = await self._ready_zygote(self._preload)
        memory_bytes = memory_limit_mb << 20
        job = Job("", (), float("inf"), None, memory_bytes, memory_bytes, is_session=True)
        try:
            with ExitStack() as given, ExitStack() as kept:
                cells, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
                given.callback(theirs.close)
                kept.callback(cells.close)
                status = Status(_MAX_STATUS_BYTES)
                given.callback(status.close_write_end)
                kept.callback(status.finish)
                obeys, control = os.pipe()
                given.callback(os.close, obeys)
                kept.callback(os.close, control)
                payload = pack_job(job, files or {})
                given.callback(os.close, payload)
                zygote.send_session([payload, status.write_end, theirs.fileno(), obeys])
                kept.pop_all()
        except OSError as error:
            raise ServiceError(f"sandbox: no session starts, {error}. Check the limits.") from error
        return InterpreterSession(cells, status, control)

    @property
    def preloaded(self) -> tuple[str, ...] | None:
        """The modules that were imported in advance; None while their interpreter starts."""
        return self._zygotes[self._preload].imported

    @property
    def num_restarts(self) -> int:
        """The number of interpreters and workers that died or were changed by a program, and were replaced."""
        return self._num_restarts + sum(zygote.num_replaced() for zygote in self._zygotes.values())

    async def warm(self) -> None:
        """Wait until the interpreter with the preloaded modules is ready.

        Raises:
            ServiceError: It does not start.
        """
        await self._ready_zygote(self._preload)

    def close(self) -> None:
        """End all processes and remove the folders."""
        if self._stop_timer is not None:
            self._stop_timer.cancel()
        for zygote in self._zygotes.values():
            zygote.close()
        self._folder.close()

    async def _compile_and_run(self, request: RunRequest, language: Language, on_waiting: _OnWaiting) -> RunOutcome:
        compiling = replace(request, run_timeout=request.compile_timeout, stdin=b"", fetch_files=(language.binary,))
        done = await self._run(compiling, language, language.compiler, on_waiting)
        outcome = CompileOutcome(done.return_code, done.timed_out, done.execution_time, done.stdout, done.stderr)
        if done.return_code != 0:
            return RunOutcome(None, False, 0.0, "", "", {}, outcome)
        running = replace(request, files={**request.files, **done.files})
        return replace(await self._run(running, language, language.command, on_waiting), compile=outcome)

    async def _run(
        self, request: RunRequest, language: Language, command: tuple[str, ...], on_waiting: _OnWaiting
    ) -> RunOutcome:
        is_preloaded = not command and self._names_preloaded is not None and self._names_preloaded.search(request.code)
        zygote = await self._ready_zygote(self._preload if is_preloaded else ())
        memory_bytes = int(request.memory_limit_mb) << 20
        job = Job(
            language.file,
            command,
            timeout=request.run_timeout,
            cpu_s=int(request.run_timeout) + 2,
            memory_bytes=memory_bytes,
            address_space=memory_bytes if language.limits_address_space else None,
            fetch=request.fetch_files,
        )
        files = {**request.files, language.file: request.code.encode("utf-8", "replace")}
        zygote.num_in_flight += 1
        try:
            return await self._send_and_wait(zygote, job, files, request, on_waiting)
        except OSError as error:
            raise ServiceError(f"sandbox: {error}. Check the limits on memory and open files.") from error
        finally:
            zygote.num_in_flight -= 1
            if self._stop_timer is None:
                self._stop_timer = asyncio.get_running_loop().call_later(_STOP_IDLE_AFTER_S, self._stop_idle_workers)

    async def _send_and_wait(
        self, zygote: Zygote, job: Job, files: dict[str, bytes], request: RunRequest, on_waiting: _OnWaiting
    ) -> RunOutcome:
        with ExitStack() as stack:
            status = stack.enter_context(Status(_MAX_STATUS_BYTES, on_waiting))
            stdout, stderr = (stack.enter_context(Capture(MAX_OUTPUT_BYTES)) for _ in range(2))
            with ExitStack() as sent:
                payload = pack_job(job, files)
                sent.callback(os.close, payload)
                stdin = memory_file(request.stdin)
                sent.callback(os.close, stdin)
                for end in (status, stdout, stderr):
                    sent.callback(end.close_write_end)
                zygote.send([payload, status.write_end, stdin, stdout.write_end, stderr.write_end])
            await asyncio.wait({status.done}, timeout=request.run_timeout + _KILL_GRACE_S)
            if not status.content:
                how = "died" if status.done.done() else f"did not answer within {_KILL_GRACE_S:g} s of the time limit"
                raise ServiceError(f"sandbox: the worker of a program {how}. Send the program again.")
            try:
                ending, found = parse_ending(bytes(status.content), job.fetch)
            except ValueError as error:
                raise ServiceError(f"sandbox: the answer of a program's worker is malformed, {error}.") from error
            await asyncio.wait({stdout.done, stderr.done}, timeout=_KILL_GRACE_S)
            stderr_text = stderr.text() + (OUT_OF_MEMORY if ending.out_of_memory else "")
            code, seconds = ending.return_code, ending.execution_time
            return RunOutcome(code, ending.timed_out, seconds, stdout.text(), stderr_text, found)

    def _stop_idle_workers(self) -> None:
        """Stop the workers that were started because other programs waited."""
        self._stop_timer = None
        for zygote in self._zygotes.values():
            zygote.stop_idle_workers(self.num_workers)

    def _start_first(self, require_isolation: bool) -> dict[str, bool]:
        """Start the bare interpreter, inside bubblewrap if that gives more isolation or programs run only there."""
        layers, problem = self._start_bare()
        missing = missing_layers(layers, allow_network=self._allow_network)
        if missing and shutil.which("bwrap"):
            direct, self._is_wrapped = self._zygotes.pop(()), True
            wrapped_layers, wrapped_problem = self._start_bare()
            if wrapped_problem:
                problem = problem and f"{problem}; inside bubblewrap, {wrapped_problem}"
                logger.warning("sandbox: bubblewrap is installed but does not work: %s", wrapped_problem)
                self._zygotes[()].close()
                self._is_wrapped, self._zygotes[()] = False, direct
            else:
                direct.close()
                layers, problem = wrapped_layers, ""
                missing = missing_layers(layers, allow_network=self._allow_network)
        if problem:
            raise ServiceError(
                f"sandbox: its first program failed: {problem}. "
                f"Read the messages above, and check that an ordinary user can run {sys.executable}."
            )
        if missing and require_isolation:
            raise ServiceError(
                f"sandbox: isolation is required, but this machine does not allow {', '.join(missing)}. "
                "Run as root or with user namespaces, or without --require-isolation."
            )
        if missing:
            logger.warning("sandbox: isolation is incomplete, this machine does not allow %s", ", ".join(missing))
        self._add_workers(self._zygotes[()], self._num_ready - 1)
        return layers

    def _start_bare(self) -> tuple[dict[str, bool], str]:
        """Start the bare interpreter and run a program; returns the layers it reached, and what went wrong."""
        self._start(())
        self._unready.discard(())
        try:
            layers = self._zygotes[()].wait()
        except ServiceError as error:
            return {}, str(error)
        problem = run_smoke_test(self._zygotes[()])
        return ({}, problem) if problem else (layers, "")

    def _start(self, preload: tuple[str, ...]) -> None:
        directory = Path(tempfile.mkdtemp(dir=self._folder.path))
        directory.chmod(0o711)
        arguments = {"allow_network": self._allow_network, "is_wrapped": self._is_wrapped}
        self._zygotes[preload] = Zygote(directory, preload=preload, **arguments)
        self._unready.add(preload)

    def _add_workers(self, zygote: Zygote, number: int) -> None:
        try:
            for _ in range(number):
                zygote.add_worker()
        except OSError as error:
            raise ServiceError(f"sandbox: an interpreter ended right after its start, {error}.") from error

    async def _ready_zygote(self, preload: tuple[str, ...]) -> Zygote:
        zygote = self._zygotes[preload]
        if preload not in self._unready and zygote.is_alive:
            return zygote
        async with self._starting:
            if preload not in self._unready and not self._zygotes[preload].is_alive:
                logger.warning("sandbox: an interpreter died and is restarted")
                self._num_restarts += 1 + self._zygotes[preload].num_replaced()
                self._zygotes[preload].close()
                self._start(preload)
            if preload in self._unready:
                try:
                    await asyncio.to_thread(self._zygotes[preload].wait)
                    self._add_workers(self._zygotes[preload], self._num_ready)
                finally:
                    self._unready.discard(preload)
            return self._zygotes[preload]


def _count_places(num_workers: int) -> int:
    """Programs that may run at once: if memory allows, many more than compute, for those that sleep or wait."""
    room = psutil.virtual_memory().available // _PLACE_BYTES
    return max(num_workers, min(num_workers * _PLACES_PER_WORKER, room, _MAX_PLACES))
