"""What a class with Gymnasium's methods offers, found before a run: its form, its signatures, its tools."""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable, Mapping
from typing import Any

from rl.errors import ConfigError, ToolError
from rl.rollout.user_code import UserCode
from rl.tools.function_tool import function_schema
from rl.tools.schemas import checked_schema

_OWN_METHODS = ("reset", "close", "render")
"""Public methods that are no tools."""
_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def has_gym_form(kind: type) -> bool:
    """Whether a class has Gymnasium's methods, rather than those of `rl.rollout.environments.Environment`.

    `step` takes an `action`, `reset` takes the columns of a row by name, or there is no `step`.
    """
    reset, step = getattr(kind, "reset", None), getattr(kind, "step", None)
    if not callable(reset):
        return False
    if not callable(step):
        return True
    names = list(parameters_of(step))[1:2]
    if names == ["turn"]:
        return False
    needed = [p for p in list(parameters_of(reset).values())[1:] if p.default is p.empty and p.kind in _POSITIONAL]
    return names == ["action"] or not needed


def tools_of_class(code: UserCode, make: Callable[[], Any]) -> list[dict[str, Any]]:
    """What the model can call in an environment of Gymnasium's form.

    With `step`, these are its `tools`: schemas in OpenAI's form, or typed functions that stand for them. Without
    `step`, they are its public methods.

    Args:
        code: The class.
        make: Makes an instance, for `tools` that is a property.

    Returns:
        Schemas in OpenAI's form; empty if the model acts by text.

    Raises:
        ConfigError: A schema is wrong, or there is neither `step` nor a public method.
    """
    kind = code.function
    where = f"{code.where}: '{code.name}'"
    assert isinstance(kind, type), "a function that makes environments has no methods"
    try:
        if callable(getattr(kind, "step", None)):
            given = getattr(kind, "tools", ())
            return [_schema(where, tool) for tool in (_tools_of(where, make) if isinstance(given, property) else given)]
        methods = [types.MethodType(method, object()) for method in _public_methods(kind)]
        schemas = [function_schema(method) for method in methods]
    except ToolError as error:
        raise ConfigError(f"{where}: {error}") from error
    if not schemas:
        raise ConfigError(
            f"{where} has no method step, and no public method that the model could call. Write `step(self, action)`."
        )
    return schemas


def check_class(code: UserCode) -> None:
    """Find out whether the methods of a class can be called.

    Raises:
        ConfigError: `step` or `close` takes other arguments.
    """
    for name, arguments in (("step", ["action"]), ("close", [])):
        method = getattr(code.function, name, None)
        if method is None:
            continue
        try:
            inspect.signature(method).bind(None, *arguments)
        except TypeError as error:
            wanted = f"`def {name}({', '.join(['self', *arguments])})`"
            raise ConfigError(f"{code.where}: {name} of '{code.name}' must be {wanted}: {error}.") from error


def parameters_of(function: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    """The parameters of a function, in order; without `self` if it is bound."""
    return inspect.signature(function).parameters


def _public_methods(kind: type) -> list[Callable[..., Any]]:
    """In the order in which they are written, those of base classes first."""
    names = {name: None for base in reversed(kind.__mro__) for name in vars(base)}
    found = [(name, getattr(kind, name)) for name in names if not name.startswith("_") and name not in _OWN_METHODS]
    return [value for _, value in found if inspect.isfunction(value)]


def _tools_of(where: str, make: Callable[[], Any]) -> list[Any]:
    """The property `tools` of an instance, which may have asked a server for them."""
    try:
        return list(make().tools)
    except Exception as error:  # user code may raise anything
        raise ConfigError(f"{where}: its tools cannot be read. {type(error).__name__}: {error}") from error


def _schema(where: str, tool: Any) -> dict[str, Any]:
    return checked_schema(f"{where}: tools", function_schema(tool) if callable(tool) else tool)[0]
