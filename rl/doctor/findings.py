"""What a check of `rl doctor` found, and how checks run: each with a deadline."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from queue import Empty, SimpleQueue

from rl.errors import TurnwiseError


class Status(StrEnum):
    """How bad a finding is."""

    OK = "ok"
    WARN = "warn"
    """A run starts, and may be slow or fail later."""
    FAIL = "fail"
    """A run does not start, or will fail."""


@dataclass(slots=True, frozen=True)
class Finding:
    """One line of the report."""

    status: Status
    text: str
    """What was found and what it means; unless it is ok, what to do."""


def ok(text: str) -> Finding:
    """Nothing to do."""
    return Finding(Status.OK, text)


def warn(text: str) -> Finding:
    """A run starts, and may be slow or fail later."""
    return Finding(Status.WARN, text)


def fail(text: str) -> Finding:
    """A run does not start, or will fail."""
    return Finding(Status.FAIL, text)


@dataclass(slots=True, frozen=True)
class Check:
    """One check."""

    name: str
    function: Callable[[], Iterable[Finding]]
    deadline_s: float = 30.0
    on_deadline: str = field(default="Something that it asks does not answer.")
    """What a passed deadline means and what to do."""

    def run(self) -> list[Finding]:
        """Run the check in a thread; a check that does not end is a finding, and its thread is left behind."""
        answers: SimpleQueue[list[Finding]] = SimpleQueue()
        threading.Thread(target=lambda: answers.put(self._findings()), daemon=True, name=f"doctor-{self.name}").start()
        try:
            return answers.get(timeout=self.deadline_s)
        except Empty:
            return [fail(f"no answer within {self.deadline_s:.0f} s. {self.on_deadline}")]

    def _findings(self) -> list[Finding]:
        try:
            return list(self.function())
        except TurnwiseError as error:
            return [fail(str(error))]
        except Exception as error:  # one broken check must not hide the others
            return [fail(f"the check itself failed with {type(error).__name__}: {error}. Please report it.")]
