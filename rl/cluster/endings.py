"""How a run ends whatever happens: signals, and processes whose parents are gone."""

from __future__ import annotations

import ctypes
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psutil

_PR_SET_CHILD_SUBREAPER = 36
"""Linux, prctl(2)."""
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


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


def descendants(process: psutil.Process) -> list[psutil.Process]:
    """Children and theirs; none of a process that has ended."""
    try:
        return process.children(recursive=True)
    except psutil.NoSuchProcess:
        return []
