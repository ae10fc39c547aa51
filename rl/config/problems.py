"""What checks of a configuration find: problems of three severities, collected rather than raised one by one."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from rl.errors import ConfigError


class Severity(StrEnum):
    """What a problem does to a run."""

    ERROR = "error"
    """The run does not start."""
    WARNING = "warning"
    """The run starts; a key does nothing, or probably not what was meant."""
    NOTE = "note"
    """Could not be checked on this machine."""


@dataclass(slots=True, frozen=True)
class Problem:
    """One finding, in the words that the user reads."""

    severity: Severity
    text: str
    """`where: what is wrong, got what. What to do.`"""


def error(text: str) -> Problem:
    """Make a problem that keeps the run from starting."""
    return Problem(Severity.ERROR, text)


def warning(text: str) -> Problem:
    """Make a problem that the user should know of."""
    return Problem(Severity.WARNING, text)


def note(text: str) -> Problem:
    """Make a problem that says what was not checked."""
    return Problem(Severity.NOTE, text)


def raise_errors(problems: Iterable[Problem]) -> None:
    """Raise all errors among the problems as one.

    Raises:
        ConfigError: There is at least one; its message has a line for each.
    """
    errors = [problem.text for problem in problems if problem.severity is Severity.ERROR]
    if errors:
        raise ConfigError("\n".join(errors))
