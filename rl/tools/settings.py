"""Reads the `config` of a tool's YAML entry into the tool's dataclass."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from typing import Any, TypeVar, get_type_hints

from rl.errors import ToolError, unknown_name
from rl.tools.base import ToolConfig

_POSITIVE = ("num_workers", "rate_limit", "default_timeout", "queue_timeout")
_TYPES = ("native",)

Settings = TypeVar("Settings", bound=ToolConfig)


def read_settings(
    where: str, config_class: type[Settings], given: dict[str, Any], overrides: dict[str, Any] | None = None
) -> Settings:
    """Build the settings of a tool.

    Args:
        where: The entry, for messages.
        config_class: The tool's dataclass.
        given: What stands in the YAML; `timeout` is read as `default_timeout`.
        overrides: What takes its place.

    Returns:
        The settings.

    Raises:
        ToolError: A key is unknown, or a value of the wrong type or out of range.
    """
    fields = {field.name for field in dataclasses.fields(config_class)}
    values = _with_full_names(where, given, fields) | _with_full_names(where, overrides or {}, fields)
    check_keys(where, values, fields)
    hints = get_type_hints(config_class)
    config = config_class(**{key: _typed(f"{where}.{key}", hints[key], value) for key, value in values.items()})
    for key in _POSITIVE:
        if not getattr(config, key) > 0:
            raise ToolError(f"{where}.{key}: must be above 0, got {getattr(config, key)}.")
    if config.type not in _TYPES:
        raise ToolError(unknown_name(f"{where}.type", config.type, _TYPES))
    return config


def check_keys(where: str, given: dict[str, Any], known: Collection[str]) -> None:
    """Refuse keys that nobody reads.

    Raises:
        ToolError: A key is not among the known ones.
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


def _typed(where: str, hint: Any, value: Any) -> Any:
    """Check a setting against a plain type; whole numbers pass for float, other annotations are not checked."""
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint in (int, float, str, bool) and type(value) is not hint:
        raise ToolError(f"{where}: must be {hint.__name__}, got {value!r}.")
    return value
