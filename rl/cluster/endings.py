"""How a run always cleans up: signals, orphaned processes and shared memory."""

from __future__ import annotations

import ctypes
import json
import re
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

_PR_SET_CHILD_SUBREAPER = 36
"""Linux, prctl(2)."""
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
_PATIENCE_S = 3.0
SHARED_MEMORY = Path("/dev/shm")
_OPENMP_MARK = re.compile(r"__KMP_REGISTERED_LIB_(\d+)_\d+")
_BLOCK = re.compile(r"/dev/shm/((?:psm_|sem\.mp-)\w+)")
_NOTES = "belongings.json"
_NOTE_EVERY_S = 2.0


@contextmanager
def terminated_like_interrupted() -> Iterator[None]:
    """SIGTERM, and SIGHUP of a closed terminal, unwind the stack as Ctrl-C does, so that nothing is left running.

    SIGUSR1 is ignored, also by every process that is started in the block: a scheduler may send it to all of them, and
    only the driver of a training does something with it (`rl.run.stop`). The block restores the previous handlers at
    its end.
    """
    previous = {number: signal.getsignal(number) for number in _SIGNALS}
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    interrupt_on_termination()
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def interrupt_on_termination() -> None:
    """Raise `KeyboardInterrupt` at SIGTERM from here on, and at SIGHUP unless `nohup` ignores it."""

    def interrupt(signum: int, frame: Any) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        signal.signal(signal.SIGHUP, interrupt)


def ignore_interrupts() -> None:
    """Ignore signals during clean-up, which has its own deadlines, until `terminated_like_interrupted` ends."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def adopting_orphans() -> Iterator[None]:
    """Adopt processes whose parent was killed, so that they are found and ended with the rest.

    An engine's processes outlive a worker that the kernel's OOM killer kills. Linux only; elsewhere it does nothing.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "prctl"):
        yield
        return
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    try:
        yield
    finally:
        libc.prctl(_PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


def kill_owners_of_trackers(processes: list[psutil.Process]) -> None:
    """Kill processes that have a `multiprocessing` resource tracker, and their descendants, but not the tracker.

    Call this before Ray ends its workers: an ending worker kills its children, including the tracker, which
    would have removed their shared memory.
    """
    for tracker in filter(_is_resource_tracker, processes):
        with suppress(psutil.NoSuchProcess):
            owner = tracker.parent()
            if owner is not None and owner in processes:
                for process in [owner, *descendants(owner)]:
                    if not _is_resource_tracker(process):
                        process.kill()


def end_processes(processes: list[psutil.Process]) -> None:
    """Wait for processes to end by themselves, and kill those that do not.

    Resource trackers of `multiprocessing` come last: once the processes they serve are gone, they remove the shared
    memory of those and end.
    """
    trackers = [process for process in processes if _is_resource_tracker(process)]
    _kill_those_left([process for process in processes if process not in trackers])
    _kill_those_left(trackers)


def remove_stale_marks() -> None:
    """Remove the files that Intel OpenMP leaves in /dev/shm for each killed process."""
    for path in SHARED_MEMORY.glob("__KMP_REGISTERED_LIB_*"):
        found = _OPENMP_MARK.fullmatch(path.name)
        if found is not None and not psutil.pid_exists(int(found[1])):
            with suppress(OSError):  # another user's
                path.unlink()


@contextmanager
def noting_belongings(directory: Path) -> Iterator[None]:
    """Record the descendants of this process and their shared memory every few seconds, and at the end of the block.

    Shared memory has random names, and vLLM or the resource tracker that would remove it may be killed with the run;
    some of Ray's processes outlive a killed driver. `end_belongings` reads the record.
    """
    is_over = threading.Event()

    def note() -> None:
        while not is_over.wait(_NOTE_EVERY_S):
            _note_belongings(directory)

    thread = threading.Thread(target=note, name="belongings", daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()
        _note_belongings(directory)


def end_belongings(directory: Path) -> None:
    """Kill the processes recorded in a run's folder that still run, and remove the recorded shared memory."""
    try:
        notes = json.loads((directory / _NOTES).read_text())
    except (OSError, ValueError):  # nothing was recorded yet
        return
    for pid, create_time in notes["processes"]:
        with suppress(psutil.Error):
            process = psutil.Process(pid)
            if process.create_time() == create_time:  # else the pid was reused
                process.kill()
    for name in notes["blocks"]:
        with suppress(OSError):
            (SHARED_MEMORY / name).unlink(missing_ok=True)


def _note_belongings(directory: Path) -> None:
    processes = descendants(psutil.Process())
    started = []
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            started.append((process.pid, process.create_time()))
    blocks = sorted({name for process in processes for name in _blocks_of(process)})
    partial = directory / f"{_NOTES}.partial"
    with suppress(OSError):  # full shared memory is reported where the weights do not fit
        partial.write_text(json.dumps({"processes": started, "blocks": blocks}))
        partial.rename(directory / _NOTES)


def descendants(process: psutil.Process) -> list[psutil.Process]:
    """All descendants; empty if the process has ended."""
    try:
        return process.children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _blocks_of(process: psutil.Process) -> list[str]:
    """Names of the `multiprocessing` shared memory and semaphores that a process has mapped."""
    try:
        return _BLOCK.findall(Path(f"/proc/{process.pid}/maps").read_text())
    except OSError:  # it has ended, or is another user's
        return []


def _is_resource_tracker(process: psutil.Process) -> bool:
    try:
        return any("multiprocessing.resource_tracker" in part for part in process.cmdline())
    except psutil.Error:
        return False


def _kill_those_left(processes: list[psutil.Process]) -> None:
    _, alive = psutil.wait_procs(processes, timeout=_PATIENCE_S)
    for process in alive:
        process.kill()
    psutil.wait_procs(alive, timeout=_PATIENCE_S)
