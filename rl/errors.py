"""The exceptions a user can meet. Each message reads `where: what is wrong, got what. What to do.`"""

from __future__ import annotations

import reprlib
from collections.abc import Iterable
from difflib import get_close_matches
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ValidationError

_LONGEST_SHOWN = 50


class TurnwiseError(Exception):
    """Base of every error that is the user's or the environment's, not a bug; shown without a traceback."""


class ConfigError(TurnwiseError):
    """A configuration key is unknown, of the wrong type, out of range, or contradicts another."""


class DataError(TurnwiseError):
    """A dataset file is missing, empty or malformed."""


class ModelError(TurnwiseError):
    """A model or tokenizer folder is missing, corrupt, or of an unsupported family."""


class ToolError(TurnwiseError):
    """A tool cannot be built from its YAML entry."""


class ServiceError(TurnwiseError):
    """A service (sandbox, retriever) cannot start or does not answer."""


class RewardError(TurnwiseError):
    """A reward function cannot be found or returned something that is not a score."""


class WeightSyncError(TurnwiseError):
    """Published weights did not arrive as they were sent."""


class RolloutError(TurnwiseError):
    """Rollouts cannot go on: an engine died, or a service failed for too many trajectories."""


class WorkerDiedError(RolloutError):
    """The process of a worker ended, or that of its engine. Where others do the same work, they go on without it."""


class TrainingError(TurnwiseError):
    """The update cannot go on: step after step has NaN or Inf in it, or no reward."""


class CheckpointError(TurnwiseError):
    """A checkpoint is missing, incomplete, or does not fit this configuration."""


def unknown_name(where: str, name: str, choices: Iterable[str]) -> str:
    """Say that a name is not known, suggest the nearest one, and list the choices.

    Args:
        where: The key or file that holds the name, for example `rl_config.adv_estimator`.
        name: What was given.
        choices: What may be given.

    Returns:
        The message for a `ConfigError` or a sibling of it.
    """
    known = sorted(choices) or ["none"]
    near = get_close_matches(name, known, n=1, cutoff=0.6)
    hint = f" Did you mean '{near[0]}'?" if near else ""
    return f"{where}: unknown name '{name}'.{hint} Known: {', '.join(known)}."


def first_problem(error: ValidationError) -> str:
    """Describe the first problem that pydantic found: `topk: must be greater than or equal to 1, got 0`.

    The message of a validator's own ValueError is kept as it is. A value is shortened, whatever its size and depth.
    """
    problem = error.errors(include_url=False)[0]
    place, text = ".".join(map(str, problem["loc"])), problem["msg"]
    where = f"{place:.100}: " if place else ""
    if problem["type"] == "missing":
        return f"{where}is missing"
    if problem["type"] == "value_error":
        return where + text.removeprefix("Value error, ")
    text = text.replace("Input should", "must", 1).replace("should", "must", 1)
    return f"{where}{text}, got {reprlib.repr(problem['input']):.{_LONGEST_SHOWN}}"
