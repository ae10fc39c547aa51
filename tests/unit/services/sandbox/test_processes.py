"""Stops all processes of a program without a pid namespace, where that takes several steps."""

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[4]
PROGRAM = """
import contextlib, os, signal, subprocess, time
from rl.services.sandbox.processes import Processes, become_subreaper
become_subreaper()
processes = Processes(os.open("/proc", os.O_RDONLY), has_pid_namespace=False, is_private=True)
forker = "import os\\nwhile True:\\n    if os.fork() == 0: os._exit(0)\\n    os.wait()"
for code in (forker, "while True: pass", "import subprocess; subprocess.run(['sleep', '100'])"):
    subprocess.Popen(["python3", "-c", code])

def states():
    found = set()
    for pid in processes.numbers():
        with contextlib.suppress(OSError):  # the child has ended already
            found.add(processes.read(pid, "stat").rpartition(b")")[2].split()[0])
    return found

try:
    while len(processes.numbers()) < 4: time.sleep(0.01)
    processes.stop_all()
    assert states() <= {b"T", b"Z"}, states()
    assert b"T" in states()
    processes.continue_all()
    deadline = time.monotonic() + 20
    while b"T" in states(): assert time.monotonic() < deadline
    processes.stop_all()
    processes.kill_all()
    assert processes.numbers() == []
finally:
    processes.kill_all()
print("right")
"""


def test_all_are_stopped_go_on_and_are_killed_without_a_pid_namespace():
    run = subprocess.Popen(
        [sys.executable, "-c", PROGRAM], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    try:
        shown, errors = run.communicate(timeout=60)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(run.pid, signal.SIGKILL)
    assert shown == "right\n", errors
