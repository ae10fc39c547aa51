from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from rl.cluster.endings import adopting_orphans, ignore_interrupts, terminated_like_interrupted

PARENT_THAT_DIES = """
import os, subprocess, sys
nowhere = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], **nowhere)
print(child.pid, flush=True)
os.kill(os.getpid(), 9)
"""


SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_termination_is_an_interrupt_until_the_clean_up_begins(number: signal.Signals) -> None:
    hangup = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests may run under nohup
    before = [signal.getsignal(each) for each in SIGNALS]
    with terminated_like_interrupted():
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)
            time.sleep(5)
        ignore_interrupts()
        for each in SIGNALS:
            os.kill(os.getpid(), each)
        time.sleep(0.05)
    assert [signal.getsignal(each) for each in SIGNALS] == before
    signal.signal(signal.SIGHUP, hangup)


def test_hangup_stays_ignored_under_nohup() -> None:
    hangup = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with terminated_like_interrupted():
        os.kill(os.getpid(), signal.SIGHUP)
        time.sleep(0.05)
    signal.signal(signal.SIGHUP, hangup)


@pytest.mark.skipif(sys.platform != "linux", reason="prctl is Linux's")
def test_orphans_are_found_among_the_children() -> None:
    with adopting_orphans():
        parent = subprocess.run([sys.executable, "-c", PARENT_THAT_DIES], capture_output=True, text=True, timeout=20)
        orphan = int(parent.stdout)
        found = [child for child in psutil.Process().children() if child.pid == orphan]
        assert parent.returncode == -signal.SIGKILL
        assert found
        found[0].kill()
        found[0].wait(5)
