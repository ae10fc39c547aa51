"""How a run ends whatever happens: signals, and processes whose parents are gone."""

from __future__ import annotations

import ctypes
import re
import shutil
import signal
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
_NAMED_AFTER_PROCESS = re.compile(r"turnwise-(\d+)|__KMP_REGISTERED_LIB_(\d+)_\d+")
"""The folder of a run, and the mark of Intel's OpenMP, of which a killed process leaves one."""
_BLOCK = re.compile(r"/dev/shm/((?:psm_|sem\.mp-)\w+)")
_BLOCKS_FILE = "blocks"


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


def remove_stale_shared_memory() -> None:
    """Remove from /dev/shm what is named after processes that are gone: those of earlier runs that were killed, too."""
    for path in SHARED_MEMORY.glob("*"):
        found = _NAMED_AFTER_PROCESS.fullmatch(path.name)
        if found is None or psutil.pid_exists(int(found[1] or found[2])):
            continue
        if path.is_dir():
            remove_run_memory(path)
        else:
            with suppress(OSError):  # another user's
                path.unlink()


def note_shared_memory(directory: Path) -> None:
    """Write down which blocks of shared memory the processes under this one have, for `remove_run_memory`.

    They have random names, and whoever would remove them, vLLM or a resource tracker, may be killed with the run.
    """
    blocks = {name for process in descendants(psutil.Process()) for name in _blocks_of(process)}
    (directory / _BLOCKS_FILE).write_text("\n".join(sorted(blocks)))


def remove_run_memory(directory: Path) -> None:
    """Remove a run's folder in shared memory, and the blocks noted there; none of its processes runs any more."""
    with suppress(OSError):  # nothing was noted yet, or another user's
        for name in (directory / _BLOCKS_FILE).read_text().split():
            (SHARED_MEMORY / name).unlink(missing_ok=True)
    shutil.rmtree(directory, ignore_errors=True)


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
