"""The outcome of a program, and the pipes that carry its output while it runs."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Annotated, Any, Self

from pydantic import Field, StrictBool, StrictFloat, StrictInt, TypeAdapter, ValidationError

from rl.errors import first_problem
from rl.services.sandbox.activity import COMPUTES, WAITS
from rl.services.sandbox.job import parse_files

MAX_OUTPUT_BYTES = 1 << 20
"""Length to which stdout and stderr are cut."""
OUT_OF_MEMORY = "\nkilled: its processes and files together used more memory than allowed\n"
"""Appended to stderr."""
FORGED = "\nkilled: it wrote to the channel by which the sandbox talks to its session\n"
"""Appended to stderr."""
_RETURN_CODES = range(-64, 256)
_STOP_READING_BYTES = 64 << 20
_CHUNK = 1 << 16


@dataclass(slots=True, frozen=True)
class CompileOutcome:
    """The outcome of the compiler."""

    return_code: int | None
    timed_out: bool
    execution_time: float
    """Seconds."""
    stdout: str
    stderr: str


@dataclass(slots=True, frozen=True)
class RunOutcome:
    """The outcome of a program, and the files it left."""

    return_code: int | None
    """Negative for a signal; None after a timeout."""
    timed_out: bool
    execution_time: float
    """Seconds, without the wait for a free worker."""
    stdout: str
    stderr: str
    files: dict[str, bytes]
    """The files of `fetch_files` that exist, by the requested path."""
    compile: CompileOutcome | None = None
    """None for a language without a compiler. If compilation failed, nothing was run and `return_code` is None."""


class Capture:
    """Reads a pipe on the event loop and keeps the first `limit` bytes. A context manager."""

    def __init__(self, limit: int, stop_after: int = _STOP_READING_BYTES) -> None:
        """Open the pipe.

        Args:
            limit: Bytes to keep.
            stop_after: Bytes to read. A program that writes more gets a broken pipe.
        """
        self._read_end, self.write_end = os.pipe()
        os.set_blocking(self._read_end, False)
        self._limit, self._stop_after = limit, stop_after
        self._num_bytes = 0
        self.content = bytearray()
        self._loop = asyncio.get_running_loop()
        self.done: asyncio.Future[None] = self._loop.create_future()
        """Done once all writers are gone."""
        self._loop.add_reader(self._read_end, self._read)

    def drain(self) -> None:
        """Read what is available now, then stop, even if there are writers left."""
        while self._read():
            pass
        self.finish()

    def text(self) -> str:
        """The text so far, with a marker where it was cut. Bytes that are not UTF-8 are replaced."""
        text = self.content.decode("utf-8", "replace")
        if self._num_bytes > self._limit:
            text += f"\n...(output cut after {self._limit} bytes)"
        return text

    def close_write_end(self) -> None:
        """Close this process's copy of the write end."""
        if self.write_end >= 0:
            os.close(self.write_end)
            self.write_end = -1

    def finish(self) -> None:
        """Stop reading."""
        if self._read_end >= 0:
            self._loop.remove_reader(self._read_end)
            os.close(self._read_end)
            self._read_end = -1
        if not self.done.done():
            self.done.set_result(None)

    def _read(self) -> bool:
        """Read once; whether there may be more."""
        if self._read_end < 0:
            return False
        try:
            chunk = os.read(self._read_end, _CHUNK)
        except BlockingIOError:
            return False
        self._num_bytes += len(chunk)
        self.content += chunk[: max(0, self._limit - len(self.content))]
        if not chunk or self._num_bytes > self._stop_after:
            self.finish()
        return bool(chunk)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close_write_end()
        self.finish()


class Status(Capture):
    """A worker's reports on a program: whether it waits (`rl.services.sandbox.activity`), then its outcome."""

    def __init__(self, limit: int, on_waiting: Callable[[bool], None] | None = None) -> None:
        """Open the pipe.

        Args:
            limit: Bytes to keep.
            on_waiting: Called with True when the program begins to wait, with False when it continues.
        """
        self.on_waiting = on_waiting
        super().__init__(limit, stop_after=limit)

    def _read(self) -> bool:
        has_more = super()._read()
        num_signs = 0
        while self.content[num_signs : num_signs + 1] in (WAITS, COMPUTES):
            num_signs += 1
        if num_signs and self.on_waiting is not None:
            self.on_waiting(self.content[num_signs - 1 : num_signs] == WAITS)
        del self.content[:num_signs]
        return has_more


@dataclass(slots=True, frozen=True)
class Ending:
    """A worker's report on a program that ended."""

    return_code: Annotated[StrictInt, Field(ge=_RETURN_CODES.start, lt=_RETURN_CODES.stop)] | None
    timed_out: StrictBool
    out_of_memory: StrictBool
    execution_time: Annotated[StrictFloat, Field(ge=0, allow_inf_nan=False)]


_ENDING = TypeAdapter(Ending)


def parse_ending(text: bytes, requested: Iterable[str] = ()) -> tuple[Ending, dict[str, bytes]]:
    """Read the outcome that a worker wrote.

    Args:
        text: The whole text.
        requested: Paths of the requested files.

    Returns:
        The ending, and the contents of files by path.

    Raises:
        ValueError: The text is malformed, or reports an error of the worker.
    """
    header, files = parse_files(text.lstrip(WAITS + COMPUTES))
    if "error" in header:
        raise ValueError(f"the program's files cannot be written, {header['error']}")
    try:
        return _ENDING.validate_python(header), only_requested(files, requested)
    except ValidationError as error:
        raise ValueError(f"the outcome is malformed: {first_problem(error)}") from None


def is_return_code(value: Any) -> bool:
    """Whether this is a program's exit code: 0 to 255, or negative for a signal."""
    return type(value) is int and value in _RETURN_CODES


def only_requested(files: dict[str, bytes], requested: Iterable[str]) -> dict[str, bytes]:
    """Return the files, by path.

    Raises:
        ValueError: There is one that was not requested.
    """
    if others := files.keys() - set(requested):
        raise ValueError(f"a file arrived that was not requested, '{min(others):.100}'")
    return files
