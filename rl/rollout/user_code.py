"""Environments and rollout functions of the user's: found by name before a run, and called so that errors are data."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from rl.errors import ConfigError, RolloutError, ToolError, raise_if_quit, unknown_name
from rl.tools.named import import_named

logger = logging.getLogger(__name__)


class UserCodeError(Exception):
    """The user's code raised, or returned something wrong. Ends one trajectory."""


class OutOfTokensError(Exception):
    """A rollout function asked for another turn when the token budget was used up."""


class UserCode:
    """A class or function of the user's, with its keyword arguments.

    Args:
        where: The key that names it, for messages.
        name: As it is named there.
        function: What was found.
        kwargs: Keyword arguments.
    """

    def __init__(self, where: str, name: str, function: Callable[..., Any], kwargs: Mapping[str, Any]) -> None:
        self.where, self.name, self.function, self.kwargs = where, name, function, dict(kwargs)
        self._has_warned = False

    def make(self) -> Any:
        """Call it with its keyword arguments alone, as a class is.

        Raises:
            UserCodeError: It raised.
        """
        return self.run("__init__", lambda: self.function(**self.kwargs))

    def run(self, what: str, function: Callable[[], Any]) -> Any:
        """Call a plain function of it.

        Args:
            what: Name of the part, for messages.
            function: The part.

        Raises:
            UserCodeError: It raised.
        """
        try:
            return function()
        except (Exception, SystemExit) as error:
            raise_if_quit(error)
            raise self.failure(f"{what}: {type(error).__name__}: {error}", error) from error

    async def call(self, what: str, begin: Callable[[], Any]) -> Any:
        """Await a part of it.

        Args:
            what: Name of the part, for messages.
            begin: Calls it.

        Raises:
            UserCodeError: It raised, is no coroutine function, or says so itself.
            RolloutError: The engine died meanwhile.
            OutOfTokensError: The token budget is used up.
        """
        try:
            given = begin()
            if not inspect.isawaitable(given):
                raise TypeError(f"{what} must be `async def`, got {given!r:.80}")
            return await given
        except (RolloutError, OutOfTokensError, UserCodeError):
            raise
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise  # the trajectory's deadline
            raise self.failure(f"{what}: cancelled itself", error) from error
        except (Exception, SystemExit) as error:
            raise_if_quit(error)
            raise self.failure(f"{what}: {type(error).__name__}: {error}", error) from error

    def failure(self, text: str, error: BaseException | None = None) -> UserCodeError:
        """What to raise for something that went wrong; the first is logged with its traceback."""
        if not self._has_warned:
            self._has_warned = True
            logger.error(
                "%s: '%s' failed. %s. Such trajectories are not trained on. Told once; stop_reason/environment_failed "
                "counts.",
                *(self.where, self.name, text),
                exc_info=error,
            )
        return UserCodeError(f"{self.name}: {text}")

    def check_call(self, num_arguments: int, advice: str) -> None:
        """Find out whether it can be called with so many arguments and its keyword arguments.

        Raises:
            ConfigError: It cannot.
        """
        try:
            signature = inspect.signature(self.function)
        except ValueError:
            return  # it is not written in Python
        parameters = list(signature.parameters.values())
        if not any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters):
            known = [p.name for p in parameters[num_arguments:] if p.kind is not inspect.Parameter.VAR_POSITIONAL]
            for key in self.kwargs:
                if key not in known:
                    raise ConfigError(unknown_name(f"{self.where}_kwargs", key, known))
        try:
            signature.bind(*[None] * num_arguments, **self.kwargs)
        except TypeError as error:
            raise ConfigError(
                f"{self.where}: '{self.name}' cannot be called {advice}, got {signature} and the arguments "
                f"{', '.join(self.kwargs) or 'none'}: {error}. Give its other parameters a default, or a value in "
                f"{self.where}_kwargs."
            ) from error

    def check_method(self, name: str, num_arguments: int) -> None:
        """Find out whether the class has a coroutine method that takes so many arguments.

        Raises:
            ConfigError: It has not.
        """
        method = getattr(self.function, name, None)
        wanted = f"`async def {name}(self{', ...' if num_arguments else ''})`"
        if method is None:
            raise ConfigError(f"{self.where}: '{self.name}' has no method {name}. Write {wanted}.")
        if not inspect.iscoroutinefunction(method):
            raise ConfigError(f"{self.where}: {name} of '{self.name}' must be a coroutine. Write {wanted}.")
        try:
            inspect.signature(method).bind(*[None] * (num_arguments + 1))
        except TypeError as error:
            raise ConfigError(
                f"{self.where}: {name} of '{self.name}' must take {num_arguments} argument(s) beside self: {error}."
            ) from error


def load_named(where: str, name: str, built_in: Iterable[str], kwargs: Mapping[str, Any]) -> UserCode:
    """Find a class or function of the user's.

    Args:
        where: The key that names it.
        name: `package.module:attribute` or `path/file.py:attribute`.
        built_in: Other names that the key may have, for messages.
        kwargs: Keyword arguments.

    Raises:
        ConfigError: It is not such a path, or does not import.
    """
    if ":" not in name:
        advice = " Or give `package.module:attribute` or `path/file.py:attribute`."
        raise ConfigError(unknown_name(where, name, built_in) + advice)
    try:
        found = import_named(where, name, "class or function", callable, "Name a class or an `async def`.")
    except ToolError as error:
        raise ConfigError(str(error)) from error
    return UserCode(where, name, found, kwargs)
