from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from rl.cluster import endings
from rl.cluster.endings import (
    adopting_orphans,
    descendants,
    end_belongings,
    end_processes,
    ignore_interrupts,
    kill_owners_of_trackers,
    noting_belongings,
    remove_stale_marks,
    terminated_like_interrupted,
)

PARENT_THAT_DIES = """
import os, subprocess, sys
nowhere = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], **nowhere)
print(child.pid, flush=True)
os.kill(os.getpid(), 9)
"""

OWNER_OF_SHARED_MEMORY = """
import time
from multiprocessing.shared_memory import SharedMemory
block = SharedMemory(create=True, size=8)  # starts a resource tracker
print(block.name, flush=True)
time.sleep(60)
"""

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)


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


def test_sigusr1_is_ignored_also_by_processes_that_start_meanwhile() -> None:
    script = "import os, signal; os.kill(os.getpid(), signal.SIGUSR1); print('still here')"
    with terminated_like_interrupted():
        os.kill(os.getpid(), signal.SIGUSR1)
        child = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=20)
    assert child.stdout == "still here\n"


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


@pytest.mark.skipif(sys.platform != "linux", reason="/dev/shm is Linux's")
def test_end_processes_leaves_no_shared_memory_of_those_it_kills() -> None:
    command = [sys.executable, "-c", OWNER_OF_SHARED_MEMORY]
    owner = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert owner.stdout is not None
    block = Path("/dev/shm") / owner.stdout.readline().strip()
    process = psutil.Process(owner.pid)
    (tracker,) = descendants(process)
    assert block.exists()
    kill_owners_of_trackers([tracker, process])
    end_processes([tracker, process])
    assert not block.exists()
    assert not tracker.is_running() and not process.is_running()
    owner.communicate()


def test_marks_of_processes_that_are_gone_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endings, "SHARED_MEMORY", tmp_path)
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    for name in (f"__KMP_REGISTERED_LIB_{gone.pid}_0", f"__KMP_REGISTERED_LIB_{os.getpid()}_0", "psm_1234"):
        (tmp_path / name).touch()
    remove_stale_marks()
    assert {path.name for path in tmp_path.iterdir()} == {f"__KMP_REGISTERED_LIB_{os.getpid()}_0", "psm_1234"}


def test_belongings_of_a_killed_run_are_ended_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endings, "SHARED_MEMORY", tmp_path)
    sleeper = [sys.executable, "-c", "import time; time.sleep(60)"]
    noted, another = subprocess.Popen(sleeper), subprocess.Popen(sleeper)
    for name in ("psm_1234", "psm_5678", "sem.mp-12ab"):
        (tmp_path / name).touch()
    processes = [(noted.pid, psutil.Process(noted.pid).create_time()), (another.pid, 12.5)]
    notes = {"processes": processes, "blocks": ["psm_5678", "psm_removed", "sem.mp-12ab"]}
    folder = tmp_path / "turnwise-run-x"
    folder.mkdir()
    (folder / "belongings.json").write_text(json.dumps(notes))
    try:
        end_belongings(folder)
        assert noted.wait(10) == -signal.SIGKILL
        assert another.poll() is None  # it has the number of a process that ended before it began
        assert {path.name for path in tmp_path.iterdir()} == {"psm_1234", "turnwise-run-x"}
    finally:
        for process in (noted, another):
            process.kill()
            process.wait()


def test_a_note_that_cannot_be_written_is_left_out(tmp_path: Path) -> None:
    """Where shared memory is full, the failure of the run is what is told."""
    with pytest.raises(ValueError, match="its own failure"), noting_belongings(tmp_path / "not there"):
        raise ValueError("its own failure")


def test_a_run_killed_before_its_first_note_has_no_belongings(tmp_path: Path) -> None:
    end_belongings(tmp_path)
    (tmp_path / "belongings.json").write_text('{"processes": [')
    end_belongings(tmp_path)
