"""Reads the `config` of a tool's YAML entry into the tool's dataclass."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError
from pydantic_core import to_json

from rl.errors import ToolError, first_problem, unknown_name
from rl.tools.base import ToolConfig

T = TypeVar("T")
Settings = TypeVar("Settings", bound=ToolConfig)


def read_settings(
    where: str, config_class: type[Settings], given: dict[str, Any], overrides: dict[str, Any] | None = None
) -> Settings:
    """Build the settings of a tool.

    Args:
        where: The entry, for messages.
        config_class: The tool's dataclass.
        given: The settings of the YAML; `timeout` means `default_timeout`.
        overrides: Settings that replace them.

    Raises:
        ToolError: A key is unknown, or a value has the wrong type or is out of range.
    """
    fields = {field.name for field in dataclasses.fields(config_class)}
    values = _with_full_names(where, given, fields) | _with_full_names(where, overrides or {}, fields)
    return read_dataclass(where, config_class, values)


def read_dataclass(where: str, cls: type[T], values: dict[str, Any]) -> T:
    """Build a dataclass from YAML. Types are strict: 3 is a float, "3" is not.

    Raises:
        ToolError: A key is unknown, or a value has the wrong type or is out of range.
    """
    check_keys(where, values, [field.name for field in dataclasses.fields(cls)])  # type: ignore[arg-type]
    try:
        return TypeAdapter(cls).validate_json(to_json(values, inf_nan_mode="constants"), strict=True)
    except ValidationError as error:
        raise ToolError(f"{where}.{first_problem(error)}. Correct it.") from None


def check_keys(where: str, given: dict[str, Any], known: Collection[str]) -> None:
    """Refuse unknown keys.

    Raises:
        ToolError: A key is unknown; the message suggests the nearest one.
    """
    for key in given:
        if key not in known:
            raise ToolError(unknown_name(where, str(key), known))


def _with_full_names(where: str, given: dict[str, Any], fields: set[str]) -> dict[str, Any]:
    if "timeout" not in given or "timeout" in fields:
        return given
    if "default_timeout" in given:
        raise ToolError(f"{where}: got both timeout and default_timeout, which are the same. Give one.")
    return {("default_timeout" if key == "timeout" else key): value for key, value in given.items()}
