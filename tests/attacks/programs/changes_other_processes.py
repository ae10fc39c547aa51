import contextlib
import ctypes
import fcntl
import os
import resource
import signal
import socket
import struct

from attack import attempt, call, given, syscall

me, others = os.getpid(), {"worker": 1, "parent": os.getppid(), "server": given["server_pid"]}
others = {name: pid for name, pid in others.items() if pid > 0}
nothing, one = struct.pack("QQ", 0, 0), struct.pack("i", 0)
head, length = ctypes.c_void_p(), ctypes.c_size_t()
for name, pid in others.items():
    for limit in ("FSIZE", "NOFILE", "CPU", "AS", "STACK"):
        number = getattr(resource, f"RLIMIT_{limit}")
        attempt(f"{limit} of {name}", lambda pid=pid, number=number: resource.prlimit(pid, number, (3, 3)))
        upper = 0x100000000 | pid
        attempt(
            f"{limit} of {name}, 64 bits",
            lambda upper=upper, n=number: syscall(302, ctypes.c_ulong(upper), n, nothing, 0),
        )
    attempt(f"niceness of {name}", lambda pid=pid: os.setpriority(os.PRIO_PROCESS, pid, 19))
    attempt(f"niceness of group of {name}", lambda pid=pid: os.setpriority(os.PRIO_PGRP, pid, 19))
    attempt(f"processors of {name}", lambda pid=pid: os.sched_setaffinity(pid, {0}))
    attempt(f"scheduler of {name}", lambda pid=pid: os.sched_setscheduler(pid, os.SCHED_IDLE, os.sched_param(0)))
    attempt(f"parameter of {name}", lambda pid=pid: os.sched_setparam(pid, os.sched_param(0)))
    attempt(
        f"sched_setattr of {name}",
        lambda pid=pid: syscall(314, pid, struct.pack("IIQiIQQQ", 48, 5, 0, 0, 0, 0, 0, 0), 0),
    )
    attempt(f"ioprio_set of {name}", lambda pid=pid: syscall(251, 1, pid, 3 << 13))
    attempt(f"robust list of {name}", lambda pid=pid: syscall(274, pid, ctypes.byref(head), ctypes.byref(length)))
    attempt(f"kcmp with {name}", lambda pid=pid: syscall(312, me, pid, 0, 0, 0))
    attempt(f"core of {name}", lambda pid=pid: call("prctl", 62, 1, pid, 0, 0))
    attempt(f"pages of {name}", lambda pid=pid: syscall(256, pid, 8, nothing, nothing))
    attempt(f"group for {name}", lambda pid=pid: os.setpgid(pid, pid))
    for file, content in (
        ("oom_score_adj", b"1000"),
        ("autogroup", b"19"),
        ("coredump_filter", b"7f"),
        ("timerslack_ns", b"9"),
    ):
        attempt(
            f"{file} of {name}",
            lambda path=f"/proc/{pid}/{file}", text=content: os.write(os.open(path, os.O_WRONLY), text),
        )
attempt("niceness of the user", lambda: os.setpriority(os.PRIO_USER, 0, 19))
attempt("ioprio_set of the user", lambda: syscall(251, 3, 0, 3 << 13))

# A program may still change itself.
resource.prlimit(0, resource.RLIMIT_CORE, (0, 0))
resource.prlimit(me, resource.RLIMIT_CORE, (0, 0))
os.nice(1)
os.setpriority(os.PRIO_PROCESS, me, 2)
os.sched_setaffinity(0, os.sched_getaffinity(0))
os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))

# A socket's owner receives a signal that the program chooses. The worker ignores those it can.
left, right = socket.socketpair()
for pid in others.values():
    with contextlib.suppress(OSError):
        fcntl.fcntl(left, fcntl.F_SETOWN, pid)
        fcntl.fcntl(left, fcntl.F_SETSIG, signal.SIGKILL)
        fcntl.fcntl(left, fcntl.F_SETFL, os.O_ASYNC)
        right.send(b"x")
print("tried")
