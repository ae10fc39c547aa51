"""Scored groups on disk: what the service acknowledged to a client survives its death.

A group is one file, named by its number. The next checkpoint makes those that were trained on superfluous.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from rl.batches import Sample
from rl.errors import CheckpointError
from rl.rollout.group_text import to_text
from rl.types import Prompt, Trajectory


class Journal:
    """The files of one run.

    Args:
        folder: Made if it does not exist.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def write(self, number: int, prompt: Prompt, record: Sequence[Trajectory], rows: Sequence[Sample]) -> None:
        """Write a group; it is on disk when the call returns.

        Args:
            number: The group's number.
            prompt: The group's prompt.
            record: Its trajectories, without tokens.
            rows: Their training rows.

        Raises:
            OSError: The disk is full.
        """
        self.write_text(number, to_text(prompt, record, rows))

    def write_text(self, number: int, text: str) -> None:
        """Write a group that is text already; see `write`."""
        path = self._path(number)
        partial = path.with_suffix(".partial")
        with partial.open("w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(path)

    def remove(self, numbers: Sequence[int]) -> None:
        """Remove groups that a checkpoint covers."""
        for number in numbers:
            self._path(number).unlink(missing_ok=True)

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:08d}.json"


def read_journal(folder: Path) -> Iterator[tuple[int, str]]:
    """The groups of a run, in order: number and text; none without the folder.

    Raises:
        CheckpointError: A file cannot be read.
    """
    for path in sorted(folder.glob("[0-9]*.json")):
        try:
            yield int(path.stem), path.read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise CheckpointError(
                f"{path}: the group cannot be read ({error}). Remove the file to go on without it."
            ) from error
