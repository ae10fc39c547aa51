import os
import subprocess

from attack import attempt, call

attempt("setuid", lambda: os.setuid(0))
attempt("setgid", lambda: os.setresgid(0, 0, 0))
attempt("groups", lambda: os.setgroups([0]))
attempt("new privileges", lambda: call("prctl", 38, 0, 0, 0, 0))
for command in (
    ["su", "-c", "id"],
    ["sudo", "-n", "id"],
    ["mount", "-t", "tmpfs", "none", "/tmp"],
    ["passwd", "-d", "root"],
):
    attempt(command[0], lambda command=command: subprocess.run(command, check=True, capture_output=True, timeout=2))
print("ESCAPED: root" if os.geteuid() == 0 else "tried")
