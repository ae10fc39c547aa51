"""Measures the buffers of Unix sockets, which count for no process. Standard library only.

Source: sock_diag(7), include/uapi/linux/unix_diag.h of Linux.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterable

from rl.services.sandbox.processes import Processes

BUFFER_BYTES = 212992
"""The kernel's default limit for the data that one end has sent and the other has not read."""
_LINK = "socket:["
_SOCK_DIAG, _BY_FAMILY, _DUMP = 4, 20, 0x301
_DONE, _ERROR = 3, 2
_SHOW_PEER, _SHOW_QUEUE, _SHOW_MEMORY = 0x4, 0x10, 0x20
_PEER, _QUEUE, _MEMORY = 2, 4, 5
_HEADER, _MESSAGE = struct.Struct("IHHII"), struct.Struct("BBBxIII")


def socket_bytes(processes: Processes, pids: Iterable[int]) -> int:
    """Bytes in the buffers of the sockets that processes have open.

    A socket that is not a Unix socket, or whose peer has closed, counts as full. Sockets inside an unread message are
    not found.
    """
    links = (link for pid in pids for link in processes.links(pid, "fd"))
    found = {int(link.removeprefix(_LINK)[:-1]) for link in links if link.startswith(_LINK)}
    try:
        sizes = _unix_socket_sizes()
    except OSError:  # the kernel lacks this interface
        sizes = {}
    return sum(sizes.get(number, BUFFER_BYTES) for number in found)


def _unix_socket_sizes() -> dict[int, int]:
    """Bytes of each Unix socket in the network namespace, by the socket's inode."""
    sizes: dict[int, int] = {}
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _SOCK_DIAG) as kernel:
        shown = _SHOW_PEER | _SHOW_QUEUE | _SHOW_MEMORY
        request = struct.pack("BBHIIIII", socket.AF_UNIX, 0, 0, 0xFFFFFFFF, 0, shown, 0, 0)
        kernel.send(_HEADER.pack(_HEADER.size + len(request), _BY_FAMILY, _DUMP, 1, 0) + request)
        while True:
            answer = kernel.recv(1 << 16)
            start = 0
            while start < len(answer):
                length, kind, *_ = _HEADER.unpack_from(answer, start)
                if kind == _DONE:
                    return sizes
                if kind == _ERROR:
                    raise OSError("the kernel does not list Unix sockets")
                number, size = _parse(answer[start + _HEADER.size : start + length])
                sizes[number] = size
                start += length + 3 & ~3


def _parse(message: bytes) -> tuple[int, int]:
    number = _MESSAGE.unpack_from(message)[3]
    attributes = {}
    start = _MESSAGE.size
    while start + 4 <= len(message):
        length, kind = struct.unpack_from("HH", message, start)
        attributes[kind] = message[start + 4 : start + length]
        start += length + 3 & ~3
    sent = struct.unpack_from("I", attributes.get(_MEMORY, bytes(36)), 8)[0]
    received = struct.unpack_from("I", attributes.get(_QUEUE, bytes(8)))[0]
    peer = struct.unpack_from("I", attributes.get(_PEER, bytes(4)))[0]
    return number, sent + (BUFFER_BYTES if received and not peer else 0)
