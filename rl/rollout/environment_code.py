"""Finds the environment that the configuration names, whichever form its class has."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rl.config.schema import RLConfig
from rl.errors import ConfigError
from rl.rollout.environments import Environment
from rl.rollout.gym_class import check_class, has_gym_form, tools_of_class
from rl.rollout.gym_environment import GymEnvironment
from rl.rollout.user_code import UserCode, load_named
from rl.tools.threads import CallerThread, ThreadPool

BUILT_IN = "tools"
"""The environment that is always there: the tools of `rl_config.tool_config_path`."""


class EnvironmentCode(UserCode):
    """The user's environment: a class, or a function that makes one.

    Attributes:
        tools: What the model can call in it, in OpenAI's form; empty where its turns are texts.

    Args:
        code: What was found.
        plain_text: Takes the token that ends a turn away from its text.
        threads: Run plain methods.

    Raises:
        ConfigError: A method or a tool of the class is wrong.
    """

    def __init__(self, code: UserCode, plain_text: Callable[[str], str], threads: ThreadPool) -> None:
        super().__init__(code.where, code.name, code.function, code.kwargs)
        self._plain_text, self._threads = plain_text, threads
        self.tools: list[dict[str, Any]] = []
        if not isinstance(code.function, type):
            return
        if has_gym_form(code.function):
            check_class(self)
            self.tools = tools_of_class(self, super().make)
            return
        for name, num_arguments in (("reset", 1), ("step", 1), ("close", 0)):
            self.check_method(name, num_arguments)

    def make(self) -> Environment:
        """One trajectory's environment. Raises UserCodeError."""
        world = super().make()
        if has_gym_form(type(world)):
            return GymEnvironment(world, self, self.tools, self._plain_text, self._threads)
        made: Environment = world
        return made


def load_environment(rl: RLConfig, plain_text: Callable[[str], str] = str) -> EnvironmentCode | None:
    """Find the environment that the configuration names; None where tools are all there is.

    Args:
        rl: Names it.
        plain_text: Takes the token that ends a turn away from its text.

    Raises:
        ConfigError: There is none of this name, or it cannot be made with `environment_kwargs` or used.
    """
    where = "rl_config.environment"
    if rl.environment == BUILT_IN:
        return None
    code = load_named(where, rl.environment, [BUILT_IN], rl.environment_kwargs)
    code.check_call(0, "with the keyword arguments alone")
    if not callable(code.function):
        raise ConfigError(f"{where}: '{rl.environment}' must be a class, got {code.function!r:.80}.")
    return EnvironmentCode(code, plain_text, (CallerThread if rl.in_process else ThreadPool)("environment"))
