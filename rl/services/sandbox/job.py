"""What the server sends a worker to run, and how files travel with it. Standard library alone."""

from __future__ import annotations

import json
import os
import socket
from dataclasses import asdict, dataclass
from io import BytesIO
from typing import IO, Any

TAKE_JOB, LEAVE = b"j", b"l"
"""What the server tells a worker that is free."""
DISMISSED = 3
"""Exit code of a worker that was told to leave."""
MAX_DESCRIPTORS = 5
"""Of a message: payload, status and the program's three streams."""


@dataclass(slots=True, frozen=True)
class Job:
    """A program, and the limits within which it runs."""

    file: str
    """In the program's folder; the worker's own interpreter runs it where there is no command."""
    command: tuple[str, ...]
    timeout: float
    """Seconds; infinite for a session."""
    cpu_s: int | None
    """Seconds of processor time of each process; None for an interpreter that goes on."""
    memory_bytes: int
    """Of all processes and files together."""
    address_space: int | None
    """Bytes of each process; None for programs that reserve more than they use."""
    fetch: tuple[str, ...] = ()
    """Files to send back."""
    is_session: bool = False


def pack_job(job: Job, files: dict[str, bytes]) -> int:
    """A descriptor with a job and its files, for `parse_files`.

    Raises:
        OSError: No descriptor is free.
    """
    content = BytesIO()
    write_files(content, asdict(job), files)
    return memory_file(content.getbuffer())


def memory_file(content: bytes | memoryview) -> int:
    """A descriptor of a file in memory with this content, at its start.

    Raises:
        OSError: No descriptor is free.
    """
    descriptor = os.memfd_create("content")
    with open(descriptor, "wb", closefd=False) as file:
        file.write(content)
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor


def write_files(pipe: IO[bytes], header: dict[str, Any], files: dict[str, bytes]) -> None:
    """Write a line of JSON, the header and the names and sizes of files, and then their contents."""
    sizes = [[name, len(content)] for name, content in files.items()]
    pipe.write(json.dumps({**header, "files": sizes}).encode() + b"\n")
    for content in files.values():
        pipe.write(content)


def parse_files(text: bytes) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Read what `write_files` wrote.

    Args:
        text: All of it.

    Returns:
        The header, and contents by name.

    Raises:
        ValueError: It is something else, or cut.
    """
    line, _, content = text.partition(b"\n")
    header = parse_object(line)
    sizes = header.pop("files", None)
    files: dict[str, bytes] = {}
    start = 0
    for entry in sizes if isinstance(sizes, list) else [None]:
        if not isinstance(entry, list) or [type(part) for part in entry] != [str, int] or entry[1] < 0:
            raise ValueError("the list of files is none")
        files[entry[0]] = content[start : start + entry[1]]
        start += entry[1]
    if start != len(content):
        raise ValueError(f"{start} bytes were announced and {len(content)} came")
    return header, files


def parse_object(text: bytes) -> dict[str, Any]:
    """Read an object of JSON that a program may have forged.

    Raises:
        ValueError: It is something else.
    """
    try:
        value = json.loads(text)
    except RecursionError as error:  # brackets in brackets
        raise ValueError("it nests too deep") from error
    if not isinstance(value, dict):
        raise ValueError(f"it is no object but a {type(value).__name__}")
    return value


def receive(channel: socket.socket, size: int) -> tuple[bytes, list[int]]:
    """Wait for a message and its descriptors.

    Args:
        channel: Of the kind that keeps messages apart.
        size: Bytes of the largest message.

    Returns:
        Both; empty when the other end is gone, also where it was killed and had not read everything.
    """
    try:
        message, descriptors, _, _ = socket.recv_fds(channel, size, MAX_DESCRIPTORS)
    except ConnectionResetError:
        return b"", []
    return message, descriptors
