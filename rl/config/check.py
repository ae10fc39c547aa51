"""Builds sections from plain mappings: pydantic checks them, and its errors become our problems."""

from __future__ import annotations

import dataclasses
import re
import typing
from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from rl.config.keys import field_types, nearest_key, not_null
from rl.config.kinds import Section
from rl.config.migration import MIGRATIONS
from rl.config.problems import Problem, error, warning

S = TypeVar("S", bound=Section)

_WANTED = {
    "int_type": (int, "an integer"),
    "float_type": (float, "a number"),
    "finite_number": (float, "a finite number"),
    "bool_type": (bool, "true or false"),
    "string_type": (str, "text"),
}
_BOUNDS = {
    "greater_than": "above",
    "greater_than_equal": "at least",
    "less_than": "below",
    "less_than_equal": "at most",
}


def check_section(cls: type[S], tree: dict[Any, Any], path: str = "") -> tuple[S, list[Problem]]:
    """Build a section from a plain mapping.

    Args:
        cls: The section's class.
        tree: What YAML gave for it.
        path: Dotted path of the section, empty at the root.

    Returns:
        The section, complete even if there are problems: the default replaces a value that cannot be used. And a
        problem for each unknown key and each value of a wrong type or out of range.
    """
    prepared, adapter = _prepare(cls, tree), TypeAdapter(cls)
    try:
        return adapter.validate_python(prepared), []
    except ValidationError as failure:
        details = failure.errors(include_url=False)
    problems = [_problem(cls, path, found) for found in details]
    for found in details:
        *sections, key = _names(cls, found["loc"])
        node = prepared
        for name in sections:
            node = node[name]
        node.pop(key, None)
    return adapter.validate_python(prepared), problems


def _prepare(kind: Any, value: Any) -> Any:
    """Convert what YAML may write: keys that are not text, 4.0 for 4, null to remove an inherited entry."""
    kind = not_null(kind)
    if dataclasses.is_dataclass(kind) and isinstance(value, dict):
        hints = field_types(typing.cast(type, kind))
        return {name: _prepare(hints.get(name), item) for name, item in _with_text_keys(value)}
    if typing.get_origin(kind) is dict and isinstance(value, dict | None):
        inner = typing.get_args(kind)[1]
        return {str(name): _prepare(inner, item) for name, item in (value or {}).items() if item is not None}
    return int(value) if kind is int and isinstance(value, float) and value.is_integer() else value


def _with_text_keys(section: dict[Any, Any]) -> Iterable[tuple[str, Any]]:
    """The entries of a section; pydantic refuses names with half a surrogate pair."""
    return ((str(key).encode("utf-8", "backslashreplace").decode(), item) for key, item in section.items())


def _names(cls: type, place: tuple[int | str, ...]) -> list[str]:
    """Names down to the key of an error, without the parts below the key, such as the number of an item."""
    names: list[str] = []
    kind: Any = cls
    for name in place:
        if dataclasses.is_dataclass(kind):
            names.append(str(name))
            kind = field_types(typing.cast(type, kind)).get(str(name))
    return names


def _problem(cls: type, path: str, found: ErrorDetails) -> Problem:
    """Describe an error of pydantic: `where: what is wrong, got what. What to do.`"""
    parts = [f"[{part}]" if isinstance(part, int) else f".{part}" for part in found["loc"]]
    where = f"{path}{''.join(parts)}".removeprefix(".")
    key = ".".join(filter(None, (path, *_names(cls, found["loc"]))))
    value, context = found["input"], found.get("ctx", {})
    match found["type"]:
        case "unexpected_keyword_argument":
            return _unknown_key(where, value, cls)
        case "int_type" | "float_type" | "finite_number" | "bool_type" | "string_type" as wrong:
            kind, name = _WANTED[wrong]
            text = f"must be {name}, got {_show(value)}. Write {_example(kind, value)}."
        case "greater_than" | "greater_than_equal" | "less_than" | "less_than_equal" as bound:
            (limit,) = context.values()
            text = f"must be {_BOUNDS[bound]} {limit:,.15g}, got {value!s:.60}. Correct the value."
        case "enum" | "literal_error":
            text = _wrong_choice(re.findall("'(.*?)'", context["expected"]), value)
        case "list_type":
            text = f"must be a list, got {_show(value)}. Write [{'' if value is None else value}]."
        case "dict_type":
            text = f"must be a mapping of names to values, got {_show(value)}. Write {{name: value}}."
        case "dataclass_type":
            text = f"must be a section of keys, got {_show(value)}. Write its keys below it."
        case "value_error":  # from a validator of `rl.config.kinds`
            text = str(context["error"])
        case _:
            text = f"cannot be used ({found['msg']}), got {_show(value)}. Correct the value."
    return error(f"{where}: {text}", key)


def _unknown_key(where: str, value: Any, cls: type) -> Problem:
    """Advice for a key of MindSpeed-RL, otherwise the nearest key of any section."""
    if entry := MIGRATIONS.get(cls, {}).get(where):
        if entry.accepts(value):
            return warning(f"{where}: has no effect here, got {_show(value)}. {entry.advice}")
        return error(f"{where}: this setting is not available here, got {_show(value)}. {entry.advice}")
    near = nearest_key(where, cls)
    hint = f" Did you mean {near}?" if near else " All keys are in docs/configuration.md."
    return error(f"{where}: unknown key, got {_show(value)}.{hint}")


def _wrong_choice(choices: list[str], value: Any) -> str:
    near = get_close_matches(str(value), choices, n=1)
    hint = f" Did you mean '{near[0]}'?" if near else ""
    return f"must be one of {', '.join(choices)}, got {_show(value)}.{hint}"


def _show(value: Any) -> str:
    """A value and its kind, as in `'ten' (text)`; shortened if it is a section or long."""
    if value is None:
        return "null"
    if isinstance(value, dict):
        return f"a section with {', '.join(map(str, value)) or 'no keys'}"
    kinds = {bool: "true or false", int: "integer", float: "number", str: "text", list: "list"}
    text = repr(value)
    return f"{text if len(text) <= 60 else text[:56] + ' ...'} ({kinds.get(type(value), type(value).__name__)})"


def _example(kind: type, value: Any) -> str:
    """How to write a correct value, derived from the wrong one if possible."""
    if kind is bool:
        return "true or false without quotes"
    if kind is str and isinstance(value, int | float):
        return "it between quotes"
    if isinstance(value, str):
        try:
            return f"it without quotes, as {kind(value)}"
        except ValueError:
            pass
    return {int: "a whole number such as 8", float: "a number such as 0.2", str: "a name or path"}[kind]
