"""What an interpreter makes once and a program forked from it must have anew. Standard library alone."""

from __future__ import annotations

import gc
import os
import random
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

Renewal = Callable[[], object]


def find_renewals() -> list[Renewal]:
    """Look through the modules imported so far for random generators and other state of one process.

    Python's own generator renews itself; those that a library has made do not, so all programs would draw the same.

    Returns:
        Functions to call in each program before its code.
    """
    kinds: dict[type, Callable[[Any], object]] = {random.Random: _seed}
    if "numpy.random" in sys.modules:
        kinds[sys.modules["numpy.random"].BitGenerator] = _renew_bits
    renewals: list[Renewal] = []
    for thing in gc.get_objects():
        if thing is not random._inst and not issubclass(type(thing), random.SystemRandom):
            renewals += [partial(renew, thing) for kind, renew in kinds.items() if issubclass(type(thing), kind)]
    if "torch" in sys.modules:
        renewals.append(sys.modules["torch"].seed)
    if "multiprocessing.process" in sys.modules:
        renewals.append(partial(_renew_key, sys.modules["multiprocessing.process"]))
    if "tempfile" in sys.modules:
        renewals.append(partial(setattr, sys.modules["tempfile"], "tempdir", None))
    return renewals


def _seed(generator: random.Random) -> None:
    generator.seed()


def _renew_bits(bits: Any) -> None:
    bits.state = type(bits)().state


def _renew_key(processes: Any) -> None:
    processes.current_process().authkey = os.urandom(32)
