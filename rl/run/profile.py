"""The profile of one step: torch's of each rank of the actor, py-spy's of each process."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rl.interfaces import Actor
from rl.observability.process_sampler import sampled_processes

logger = logging.getLogger(__name__)


@contextmanager
def profiled(actor: Actor, folder: Path, step: int) -> Iterator[None]:
    """Profile a step. What goes wrong with the profile is a warning; the step continues.

    Args:
        actor: Its ranks write `step_N.rank_K.json.gz` and `step_N.rank_K.txt`.
        folder: Is created.
        step: Number of the step, from 1.
    """
    folder.mkdir(exist_ok=True)
    name = f"step_{step:06d}"
    actor.start_profile()
    with sampled_processes(folder, name):
        yield
    for reason in actor.stop_profile(folder, name):
        logger.warning("%s", reason)
    logger.info("profile of step %d: %s", step, folder)
