"""The garbage collector of a process that keeps thousands of trajectories."""

from __future__ import annotations

import gc

_NUM_NEW_OBJECTS = 200_000


def collect_seldom() -> None:
    """Have the collector look at less, less often; once, when everything is imported and built.

    A trajectory that waits for a tool is some hundred objects, which live for long and go by their reference counts; a
    collection that looks at them all finds nothing. With 10,000 trajectories, collections by Python's own thresholds
    take two fifths of the time, and after every 10,000 new objects still a quarter. What was imported is not looked at
    again at all. A collection of this many new objects stops the process for about 0.2 s.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_NUM_NEW_OBJECTS, 10, 100)
