"""What protocols need of the training behind the service: its state, and ways to begin, feed and end it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol

from rl.types import Trajectory


class JobState(StrEnum):
    """What the training does. The model is served in every state."""

    IDLE = "idle"
    """None was begun."""
    STARTING = "starting"
    """The actor loads. Requests wait for it."""
    SAMPLING = "sampling"
    """It waits for scored groups."""
    UPDATING = "updating"
    ENDED = "ended"
    """All steps are done, or a client ended it."""
    FAILED = "failed"


@dataclass(slots=True, frozen=True)
class JobStatus:
    """The training at this moment."""

    state: JobState = JobState.IDLE
    step: int = 0
    """Completed steps; the engines have the weights after this many."""
    name: str = ""
    failure: str | None = None
    """Why it failed."""
    run_directory: str = ""
    checkpoints: dict[str, str] = field(default_factory=dict)
    """Hugging Face folders, by the name that a client gave."""
    last_checkpoint: str | None = None
    """Name of the newest of these."""


@dataclass(slots=True, frozen=True)
class JobRequest:
    """A training that a client asked for."""

    name: str
    changes: Mapping[str, Any]
    """Values by dotted key, over the service's configuration."""


class Trainer(Protocol):
    """The training as protocols see it (`rl.serving.service.Service`)."""

    model: str
    """Name of the served model."""

    @property
    def status(self) -> JobStatus:
        """What it does now."""
        ...

    async def begin(self, name: str, changes: Mapping[str, Any]) -> None:
        """Start a training, and wait until it takes groups.

        Args:
            name: Names its run directory.
            changes: Values by dotted key, over the service's configuration.

        Raises:
            ConfigError: A change is wrong, named by its key; or another training runs.
        """
        ...

    async def submit(self, group: list[Trajectory]) -> None:
        """Score a group and give it to the next batch; returns when it is journaled.

        Args:
            group: Trajectories of one prompt; the reward `environment` reads `Trajectory.environment["score"]`.
        """
        ...

    async def close_batch(self) -> None:
        """Train on what was submitted, and wait until the new weights are published.

        With nothing submitted it returns at once.

        Raises:
            RolloutError: The training failed meanwhile.
        """
        ...

    async def save(self, name: str) -> Path:
        """Save the current weights and wait; returns the Hugging Face folder."""
        ...

    async def end(self) -> None:
        """Save and end the training, and wait. The model stays served."""
        ...
