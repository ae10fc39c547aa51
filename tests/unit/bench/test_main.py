from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import psutil

from tools.bench.__main__ import run_in_time

SPAWN = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
print(child.pid, flush=True)
time.sleep({seconds})
"""


def run(program: str, tmp_path: Path, timeout_s: float) -> tuple[int | None, str]:
    log = tmp_path / "log"
    code = run_in_time([sys.executable, "-c", program], dict(os.environ), log, timeout_s=timeout_s)
    return code, log.read_text()


def has_ended(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_run_in_time_gives_exit_code_and_output(tmp_path: Path) -> None:
    assert run("print('told'); raise SystemExit(3)", tmp_path, 20) == (3, "told\n")


def test_run_in_time_leaves_no_process_when_the_time_is_over(tmp_path: Path) -> None:
    start = time.monotonic()
    code, told = run(SPAWN.format(seconds=60), tmp_path, 2)
    assert code is None
    assert time.monotonic() - start < 10
    assert has_ended(int(told))


def test_run_in_time_ends_what_the_program_left_behind(tmp_path: Path) -> None:
    code, told = run(SPAWN.format(seconds=0), tmp_path, 20)
    assert code == 0
    time.sleep(0.2)
    assert has_ended(int(told))
