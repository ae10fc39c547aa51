from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import psutil

from tools.bench.sandbox import processor_share

BUSY = "while True: pass"
IDLE = "import time; time.sleep(60)"
PARENT = """
import subprocess, sys
print(flush=True)
sys.stdin.readline()
child = subprocess.Popen([sys.executable, "-c", {code!r}])
child.wait()
"""
ENDS_A_BUSY_CHILD = """
import os, time
pid = os.fork()
if pid == 0:
    end = time.process_time() + 1
    while time.process_time() < end: pass
    print(flush=True)
    time.sleep(60)
input()
time.sleep(0.1)
os.kill(pid, 9)
os.wait()
time.sleep(60)
"""


@contextmanager
def started(program: str) -> Iterator[int]:
    process = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert process.stdin is not None and process.stdout is not None
        process.stdout.readline()
        process.stdin.write(b"\n")
        process.stdin.flush()
        yield process.pid
    finally:
        for descendant in psutil.Process(process.pid).children(recursive=True):
            descendant.kill()
        process.kill()
        process.wait()


async def test_processor_share_counts_a_busy_descendant() -> None:
    with started(PARENT.format(code=BUSY)) as pid:
        assert await processor_share(pid, 1.0) > 0.2


async def test_processor_share_leaves_out_what_a_process_used_before_the_window_and_ended_within() -> None:
    with started(ENDS_A_BUSY_CHILD) as pid:
        assert 0.0 <= await processor_share(pid, 0.5) < 0.2
