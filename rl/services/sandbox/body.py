"""Decodes the bodies of requests, a large one in a process of its own, so that the server can answer others.

Decoding holds the global interpreter lock, so a thread would not help. The process has limits on memory and time,
because a few megabytes of brackets become gigabytes of lists.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import pickle
import resource
import sys
from asyncio.subprocess import PIPE
from pathlib import Path

from rl.errors import ServiceError
from rl.services.json_body import BodyError, RequestError, decode
from rl.services.sandbox.job import memory_file
from rl.services.sandbox.notebook import notebook_program
from rl.services.sandbox.request import RunRequest, parse_notebook, parse_request

_LARGE_BYTES = 512 << 10
_MAX_MEMORY_BYTES = 2 << 30
_MAX_CPU_S = 20
_MAX_PROCESSES, _NICE = 2, 10
_PACKAGE_ROOT = Path(__file__).resolve().parents[3]
_PROGRAM = f"import sys; sys.path.insert(0, {str(_PACKAGE_ROOT)!r}); from rl.services.sandbox.body import main; main()"


class BodyReader:
    """Decodes and checks bodies."""

    def __init__(self) -> None:
        self._turns = asyncio.Semaphore(_MAX_PROCESSES)

    async def read(self, body: bytes | bytearray, *, is_notebook: bool) -> RunRequest:
        """Decode and check a body.

        Args:
            body: The raw body.
            is_notebook: The body belongs to `POST /run_jupyter`.

        Raises:
            BodyError: The body is not JSON, or decoding needs too much memory or time.
            RequestError: A field is missing or wrong.
            ServiceError: The process for decoding does not start.
        """
        if len(body) < _LARGE_BYTES:
            return _read(body, is_notebook=is_notebook)
        async with self._turns:
            return await _read_in_process(body, is_notebook=is_notebook)


def main() -> None:
    """Read a body from standard input, and write the pickled request or error to standard output."""
    resource.setrlimit(resource.RLIMIT_AS, (_MAX_MEMORY_BYTES, _MAX_MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (_MAX_CPU_S, _MAX_CPU_S))
    os.nice(_NICE)
    gc.disable()  # decoded JSON has no cycles
    result: RunRequest | BodyError | RequestError
    try:
        result = _read(sys.stdin.buffer.read(), is_notebook=sys.argv[1] == "notebook")
    except (BodyError, RequestError) as error:
        result = error
    except MemoryError:
        os._exit(1)
    pickle.dump(result, sys.stdout.buffer, protocol=pickle.HIGHEST_PROTOCOL)


def _read(body: bytes | bytearray, *, is_notebook: bool) -> RunRequest:
    content = decode(body)
    return notebook_program(parse_notebook(content)) if is_notebook else parse_request(content)


async def _read_in_process(body: bytes | bytearray, *, is_notebook: bool) -> RunRequest:
    command = [sys.executable, "-s", "-P", "-c", _PROGRAM, "notebook" if is_notebook else "program"]
    try:
        descriptor = await asyncio.to_thread(memory_file, memoryview(body))
        try:
            process = await asyncio.create_subprocess_exec(*command, stdin=descriptor, stdout=PIPE)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise ServiceError(f"sandbox: no process starts to decode a body, {error}. Check the limits.") from error
    try:
        text, _ = await process.communicate()
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
    if process.returncode != 0:
        raise BodyError(f"the body needs more than {_MAX_MEMORY_BYTES >> 30} GiB or {_MAX_CPU_S} s to decode")
    result = pickle.loads(text)
    if isinstance(result, Exception):
        raise result
    assert isinstance(result, RunRequest), "main wrote it"
    return result
