"""What the page shows of single steps on demand: recorded tokens and the timeline."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from rl.observability.run_directory import RunDirectory


@dataclass(slots=True, frozen=True)
class Detail:
    """One chunk of a step."""

    name: str
    """`timeline/<step>` or `tokens/<step>/<number>`."""
    covers: list[str]
    """Ids of the trajectories whose tokens it has; empty for a timeline."""
    make: Callable[[], bytes]
    """Builds the content, JSON."""


def step_details(run: RunDirectory) -> Iterator[Detail]:
    """What there is, from the last step to the first; the timelines first."""
    yield from ()
