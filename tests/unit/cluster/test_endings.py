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


def test_sigterm_is_an_interrupt_until_the_clean_up_begins() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with terminated_like_interrupted():
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)
        ignore_interrupts()
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.05)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


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
