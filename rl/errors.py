"""Exceptions for users. Messages have the form `where: what is wrong, got what. What to do.`"""

from __future__ import annotations

import reprlib
from bdb import BdbQuit
from collections.abc import Iterable
from difflib import get_close_matches
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ValidationError

_LONGEST_SHOWN = 50


class TurnwiseError(Exception):
    """Base of all errors caused by the user or the environment, not by a bug; shown without a traceback."""


class ConfigError(TurnwiseError):
    """A configuration key is unknown, has the wrong type, is out of range, or conflicts with another."""


class DataError(TurnwiseError):
    """A dataset file is missing, empty or malformed."""


class ModelError(TurnwiseError):
    """A model or tokenizer folder is missing, corrupt, or belongs to an unsupported family."""


class ToolError(TurnwiseError):
    """A tool cannot be built from its YAML entry."""


class ServiceError(TurnwiseError):
    """A service (sandbox, retriever) cannot start or does not answer."""


class RewardError(TurnwiseError):
    """A reward function cannot be loaded, cannot read a row, or gives no usable score."""


class WeightSyncError(TurnwiseError):
    """Published weights are missing, damaged, or differ from those in the engine."""


class RolloutError(TurnwiseError):
    """Rollouts cannot continue: an engine died, or a service failed for too many trajectories."""


class WorkerDiedError(RolloutError):
    """The process of a worker or its engine ended. Other workers of the same kind continue without it."""


class TrainingError(TurnwiseError):
    """Training cannot continue, for example because successive steps have NaN or Inf, or no reward."""


class StoppedError(TurnwiseError):
    """A run has saved and ended because a signal asked for it, and goes on when its command is given again."""


class CheckpointError(TurnwiseError):
    """A checkpoint is missing, incomplete, or does not fit this configuration."""


def raise_if_quit(error: BaseException) -> None:
    """End the run if someone left a debugger with `quit`. To be called where any exception of user code is data.

    Raises:
        KeyboardInterrupt: The error is that of a debugger.
    """
    if isinstance(error, BdbQuit):
        raise KeyboardInterrupt from error


def unknown_name(where: str, name: str, choices: Iterable[str]) -> str:
    """Build an error message for an unknown name, with the nearest known name and all choices.

    Args:
        where: The key or file with the name, for example `rl_config.adv_estimator`.
        name: The unknown name.
        choices: All known names.
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
