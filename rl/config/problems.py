"""Problems that checks of a configuration find. They have three severities and are collected, not raised one by one."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from rl.errors import ConfigError


class Severity(StrEnum):
    """The effect of a problem on a run."""

    ERROR = "error"
    """The run does not start."""
    WARNING = "warning"
    """The run starts; a key has no effect, or probably not the intended one."""
    NOTE = "note"
    """Something could not be checked on this machine."""


@dataclass(slots=True, frozen=True)
class Problem:
    """One problem, in the words that the user reads."""

    severity: Severity
    text: str
    """`where: what is wrong, got what. What to do.`"""
    key: str = ""
    """Dotted path of a key whose value cannot be used; its default replaces it."""


def error(text: str, key: str = "") -> Problem:
    """Make a problem that prevents the run."""
    return Problem(Severity.ERROR, text, key)


def warning(text: str) -> Problem:
    """Make a problem that the user should know about."""
    return Problem(Severity.WARNING, text)


def note(text: str) -> Problem:
    """Make a problem that says what was not checked."""
    return Problem(Severity.NOTE, text)


def without_consequences(problems: Iterable[Problem], wrong: Iterable[Problem]) -> list[Problem]:
    """Drop problems that mention keys without a usable value: the rules checked the default in its place.

    Args:
        problems: Problems from the rules between keys.
        wrong: Problems of single values.
    """
    names = {problem.key.rpartition(".")[2].partition("[")[0] for problem in wrong if problem.key}
    mention = re.compile(rf"\b({'|'.join(map(re.escape, names))})\b")
    return [problem for problem in problems if not (names and mention.search(problem.text))]


def raise_errors(problems: Iterable[Problem]) -> None:
    """Raise all errors among the problems as one.

    Raises:
        ConfigError: There is at least one; its message has a line for each.
    """
    errors = [problem.text for problem in problems if problem.severity is Severity.ERROR]
    if errors:
        raise ConfigError("\n".join(errors))
