"""State that an interpreter creates once and that each program forked from it must reset. Standard library only."""

from __future__ import annotations

import gc
import os
import random
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

Reset = Callable[[], object]


def find_resets() -> list[Reset]:
    """Search the imported modules for random generators and other state of one process.

    Python reseeds its own generator after a fork. Generators of a library would give all programs the same numbers.

    Returns:
        Functions to call in each program before its code.
    """
    kinds: dict[type, Callable[[Any], object]] = {random.Random: _seed}
    if "numpy.random" in sys.modules:
        kinds[sys.modules["numpy.random"].BitGenerator] = _reset_bits
    resets: list[Reset] = []
    for thing in gc.get_objects():
        if thing is not random._inst and not issubclass(type(thing), random.SystemRandom):
            resets += [partial(reset, thing) for kind, reset in kinds.items() if issubclass(type(thing), kind)]
    if "torch" in sys.modules:
        resets.append(sys.modules["torch"].seed)
    if "multiprocessing.process" in sys.modules:
        resets.append(partial(_reset_key, sys.modules["multiprocessing.process"]))
    if "tempfile" in sys.modules:
        resets.append(partial(setattr, sys.modules["tempfile"], "tempdir", None))
    return resets


def _seed(generator: random.Random) -> None:
    generator.seed()


def _reset_bits(bits: Any) -> None:
    bits.state = type(bits)().state


def _reset_key(processes: Any) -> None:
    processes.current_process().authkey = os.urandom(32)
