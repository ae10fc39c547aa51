import os
import subprocess

from attack import attempt, call, libc

for name, flag in {"user": 0x10000000, "mount": 0x20000, "pid": 0x20000000, "network": 0x40000000}.items():
    attempt(name, lambda flag=flag: call("unshare", flag))
attempt("clone", lambda: call("syscall", 56, 0x10000000 | 17, 0, 0, 0, 0))
attempt("clone3", lambda: call("syscall", 435, b"\0" * 88, 88))
attempt("enter", lambda: call("setns", os.open("/proc/1/ns/mnt", os.O_RDONLY), 0))
done = subprocess.run(["unshare", "--user", "--map-root-user", "id"], capture_output=True)
print("ESCAPED: unshare" if done.returncode == 0 else "tried", bool(libc))
