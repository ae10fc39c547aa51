"""The message by which the server sends a worker a program and its files. Standard library only."""

from __future__ import annotations

import json
import os
import socket
from dataclasses import asdict, dataclass
from io import BytesIO
from typing import IO, Any

RUN, EXIT = b"r", b"e"
"""Commands of the server to a free worker."""
EXITED = 3
"""Exit code of a worker that received `EXIT`."""
MAX_DESCRIPTORS = 5
"""Descriptors of one message: payload, status and the program's three streams."""


@dataclass(slots=True, frozen=True)
class Job:
    """A program and its limits."""

    file: str
    """In the program's folder. The worker's own interpreter runs it if there is no command."""
    command: tuple[str, ...]
    timeout: float
    """Seconds; infinite for a session."""
    cpu_s: int | None
    """Processor time of each process, seconds; None for a session."""
    memory_bytes: int
    """Limit for all processes and files together."""
    address_space: int | None
    """Limit for each process, bytes; None for programs that reserve more than they use."""
    fetch: tuple[str, ...] = ()
    """Files to send back."""
    is_session: bool = False


def pack_job(job: Job, files: dict[str, bytes]) -> int:
    """A descriptor with a job and its files, for `parse_files`."""
    content = BytesIO()
    write_files(content, asdict(job), files)
    return memory_file(content.getbuffer())


def memory_file(content: bytes | memoryview) -> int:
    """A descriptor of a file in memory with this content, positioned at its start."""
    descriptor = os.memfd_create("content")
    with open(descriptor, "wb", closefd=False) as file:
        file.write(content)
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor


def write_files(pipe: IO[bytes], header: dict[str, Any], files: dict[str, bytes]) -> None:
    """Write a line of JSON with the header and the names and sizes of the files, then their contents."""
    sizes = [[name, len(content)] for name, content in files.items()]
    pipe.write(json.dumps({**header, "files": sizes}).encode() + b"\n")
    for content in files.values():
        pipe.write(content)


def parse_files(text: bytes) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Read what `write_files` wrote.

    Returns:
        The header, and contents by name.

    Raises:
        ValueError: The text is malformed or truncated.
    """
    line, _, content = text.partition(b"\n")
    header = parse_object(line)
    sizes = header.pop("files", None)
    files: dict[str, bytes] = {}
    start = 0
    for entry in sizes if isinstance(sizes, list) else [None]:
        if not isinstance(entry, list) or [type(part) for part in entry] != [str, int] or entry[1] < 0:
            raise ValueError("the list of files is malformed")
        files[entry[0]] = content[start : start + entry[1]]
        start += entry[1]
    if start != len(content):
        raise ValueError(f"{start} bytes were announced and {len(content)} came")
    return header, files


def parse_object(text: bytes) -> dict[str, Any]:
    """Read a JSON object that a program may have forged.

    Raises:
        ValueError: The text is not a JSON object.
    """
    try:
        value = json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if not isinstance(value, dict):
        raise ValueError(f"it must be an object, got a {type(value).__name__}")
    return value


def receive(channel: socket.socket, size: int) -> tuple[bytes, list[int]]:
    """Wait for a message and its descriptors. Both are empty if the other end is gone.

    Args:
        channel: A socket that preserves message boundaries.
        size: Length of the longest message, bytes.
    """
    try:
        message, descriptors, _, _ = socket.recv_fds(channel, size, MAX_DESCRIPTORS)
    except ConnectionResetError:  # the other end was killed before it had read everything
        return b"", []
    return message, descriptors
