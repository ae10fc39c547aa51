import contextlib
import os
import socket

from rl.services.sandbox.processes import Processes
from rl.services.sandbox.socket_memory import BUFFER_BYTES, socket_bytes


def held() -> int:
    proc = os.open("/proc", os.O_RDONLY)
    try:
        return socket_bytes(Processes(proc, has_pid_namespace=False, is_private=True), [os.getpid()])
    finally:
        os.close(proc)


def fill(end: socket.socket) -> int:
    end.setblocking(False)
    sent = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            sent += end.send(bytes(4096))
    return sent


def test_bytes_on_their_way_are_counted_also_when_the_sender_is_gone():
    before = held()
    left, right = socket.socketpair()
    assert held() - before == 0
    sent = fill(left)
    assert sent >= 65536
    assert sent <= held() - before <= 4 * sent
    left.close()
    assert held() - before == BUFFER_BYTES
    right.close()
    assert held() - before == 0


def test_a_socket_of_another_kind_counts_as_full():
    before = held()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM):
        assert held() - before == BUFFER_BYTES
