import os

from attack import attempt, call, given

for pid in (1, os.getppid(), given["server_pid"], given["victim_pid"]):
    attempt(f"attach to {pid}", lambda pid=pid: call("ptrace", 16, pid, None, None))
    attempt(f"seize {pid}", lambda pid=pid: call("ptrace", 0x4206, pid, None, None))
attempt("be traced", lambda: call("ptrace", 0, 0, None, None))
print("tried")
