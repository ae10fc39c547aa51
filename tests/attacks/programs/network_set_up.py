import fcntl
import socket
import struct
import subprocess

from attack import attempt


def raise_loopback():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, 0x8914, struct.pack("16sH", b"lo", 1))


attempt("loopback up", raise_loopback)
for command in (["ip", "link", "add", "turnwise0", "type", "dummy"], ["ifconfig", "lo", "up"]):
    attempt(command[0], lambda command=command: subprocess.run(command, check=True, capture_output=True))
print("tried")
