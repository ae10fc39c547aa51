"""How a run ends whatever happens: signals, and processes whose parents are gone."""

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
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_PATIENCE_S = 3.0
SHARED_MEMORY = Path("/dev/shm")
_OPENMP_MARK = re.compile(r"__KMP_REGISTERED_LIB_(\d+)_\d+")
_BLOCK = re.compile(r"/dev/shm/((?:psm_|sem\.mp-)\w+)")
_NOTES = "belongings.json"
_NOTE_EVERY_S = 2.0


@contextmanager
def terminated_like_interrupted() -> Iterator[None]:
    """SIGTERM, and SIGHUP of a closed terminal, unwind the stack as Ctrl-C does, so that nothing is left running.

    After the block all are as before.
    """
    previous = {number: signal.getsignal(number) for number in _SIGNALS}
    interrupt_on_termination()
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def interrupt_on_termination() -> None:
    """Raise `KeyboardInterrupt` at SIGTERM from here on, and at SIGHUP unless `nohup` had it ignored."""

    def interrupt(signum: int, frame: Any) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        signal.signal(signal.SIGHUP, interrupt)


def ignore_interrupts() -> None:
    """Let nothing disturb the clean-up, which has deadlines of its own, until `terminated_like_interrupted` ends."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def adopting_orphans() -> Iterator[None]:
    """Processes whose parent was killed become children of this one, so that they are found and ended with the rest.

    An engine's own processes outlive a worker that the kernel kills for want of memory. Linux; elsewhere nothing.
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
    """Kill those that have a resource tracker of `multiprocessing`, and all that they started but the tracker.

    To be done before Ray ends its workers: as a worker ends, Ray has it kill its children, its tracker too, which would
    remove what they have in shared memory.
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

    Resource trackers of `multiprocessing` are left for last: when all that they serve are gone, they remove what those
    had in shared memory, and end.
    """
    trackers = [process for process in processes if _is_resource_tracker(process)]
    _kill_those_left([process for process in processes if process not in trackers])
    _kill_those_left(trackers)


def remove_stale_marks() -> None:
    """Remove Intel OpenMP's marks of processes that are gone from /dev/shm: each killed process leaves one."""
    for path in SHARED_MEMORY.glob("__KMP_REGISTERED_LIB_*"):
        found = _OPENMP_MARK.fullmatch(path.name)
        if found is not None and not psutil.pid_exists(int(found[1])):
            with suppress(OSError):  # another user's
                path.unlink()


@contextmanager
def noting_belongings(directory: Path) -> Iterator[None]:
    """Write down, every few seconds of the block and after it, what the processes under this one are and have.

    Shared memory has random names, and whoever would remove it, vLLM or a resource tracker, may be killed with the
    run; some of Ray's processes outlive a killed driver. `end_belongings` reads the notes.
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
    """Kill the processes of a run that are noted in its folder and still run, and remove the shared memory noted."""
    try:
        notes = json.loads((directory / _NOTES).read_text())
    except (OSError, ValueError):  # nothing was noted yet
        return
    for pid, create_time in notes["processes"]:
        with suppress(psutil.Error):
            process = psutil.Process(pid)
            if process.create_time() == create_time:  # else the number was given to another one since
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
    with suppress(OSError):  # full shared memory ends the run where weights do not fit, and is told there
        partial.write_text(json.dumps({"processes": started, "blocks": blocks}))
        partial.rename(directory / _NOTES)


def descendants(process: psutil.Process) -> list[psutil.Process]:
    """Children and theirs; none of a process that has ended."""
    try:
        return process.children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _blocks_of(process: psutil.Process) -> list[str]:
    """Names of the shared memory and the semaphores of `multiprocessing` that a process has mapped."""
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
