import ctypes
import os
import struct

from attack import attempt, call, given, read, syscall

buffer = ctypes.create_string_buffer(64)
vector = struct.pack("PN", ctypes.addressof(buffer), 64)
for pid in (1, given["server_pid"], given["victim_pid"]):
    attempt(f"read {pid}", lambda pid=pid: call("process_vm_readv", pid, vector, 1, vector, 1, 0))
    attempt(f"memory of {pid}", lambda pid=pid: os.open(f"/proc/{pid}/mem", os.O_RDONLY))
    attempt(f"map of {pid}", lambda pid=pid: read(f"/proc/{pid}/maps"))
    attempt(f"descriptor of {pid}", lambda pid=pid: syscall(438, os.pidfd_open(pid), 0, 0))
print("tried")
