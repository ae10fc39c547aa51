"""Plain mappings to typed dataclasses, collecting every unknown key and wrong type on the way."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from difflib import SequenceMatcher, get_close_matches
from enum import StrEnum
from functools import cache
from textwrap import shorten
from typing import Any, TypeVar

from rl.config.migration import MIGRATIONS
from rl.config.problems import Problem, error, warning

T = TypeVar("T")

_SLIP = 0.88


def build_section(cls: type[T], node: Any, path: str, problems: list[Problem], root: type) -> T:
    """Build a dataclass from a plain mapping.

    Args:
        cls: The dataclass.
        node: What YAML gave for it.
        path: Dotted path of the section, empty at the root.
        problems: Receives a problem for each unknown key and each value of a wrong type, whose field keeps its default.
        root: The dataclass of the whole configuration, where suggestions for unknown keys are looked for.

    Returns:
        The dataclass, complete even where there were problems.
    """
    if not isinstance(node, dict):
        problems.append(error(f"{path}: must be a section of keys, got {_show(node)}. Write its keys below it.", path))
        return cls()
    hints = field_types(typing.cast(type, cls))
    values: dict[str, Any] = {}
    for key, value in node.items():
        where = f"{path}.{key}" if path else str(key)
        if key not in hints:
            problems.append(_unknown_key(where, value, root))
            continue
        converted = _convert(hints[key], value, where, problems, root)
        if converted is not _WRONG:
            values[key] = converted
    return cls(**values)


@cache
def field_types(cls: type) -> dict[str, Any]:
    """Types of a dataclass's fields by name, with string annotations resolved."""
    hints = typing.get_type_hints(cls)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


@cache
def key_paths(cls: type, prefix: str = "") -> tuple[str, ...]:
    """Dotted paths of all keys below a section, without the names of the sections themselves."""
    paths: list[str] = []
    for name, kind in field_types(cls).items():
        if dataclasses.is_dataclass(kind):
            paths.extend(key_paths(typing.cast(type, kind), f"{prefix}{name}."))
        else:
            paths.append(prefix + name)
    return tuple(paths)


@cache
def section_paths(cls: type, prefix: str = "") -> tuple[str, ...]:
    """Dotted paths of all sections below one."""
    paths: list[str] = []
    for name, kind in field_types(cls).items():
        if dataclasses.is_dataclass(kind):
            paths += [prefix + name, *section_paths(typing.cast(type, kind), f"{prefix}{name}.")]
    return tuple(paths)


def default_mapping(cls: type) -> dict[str, Any]:
    """The defaults of a section as plain YAML types."""
    return plain_mapping(cls())


def plain_mapping(section: Any) -> dict[str, Any]:
    """A section's values as plain YAML types: enum members as their text."""
    return typing.cast("dict[str, Any]", _plain(dataclasses.asdict(section)))


class _Wrong:
    """Stands for a value that could not be converted."""


_WRONG = _Wrong()
_NAMES = {int: "an integer", float: "a number", bool: "true or false", str: "text"}


def _convert(kind: Any, value: Any, where: str, problems: list[Problem], root: type) -> Any:
    """The value as its field's type, or `_WRONG` after adding a problem."""
    if dataclasses.is_dataclass(kind):
        return build_section(typing.cast(type, kind), value, where, problems, root)
    origin = typing.get_origin(kind)
    if origin is types.UnionType or origin is typing.Union:
        if value is None:
            return None
        (inner,) = [arg for arg in typing.get_args(kind) if arg is not type(None)]
        return _convert(inner, value, where, problems, root)
    if kind is Any:
        return value
    if origin is list:
        return _convert_list(kind, value, where, problems, root)
    if origin is dict:
        return _convert_dict(kind, value, where, problems, root)
    return _convert_scalar(kind, value, where, problems)


def _convert_scalar(kind: Any, value: Any, where: str, problems: list[Problem]) -> Any:
    if isinstance(kind, type) and issubclass(kind, StrEnum):
        choices = [member.value for member in kind]
        if isinstance(value, str) and value.lower() in choices:
            return kind(value.lower())
        near = get_close_matches(str(value), choices, n=1)
        hint = f" Did you mean '{near[0]}'?" if near else ""
        problems.append(error(f"{where}: must be one of {', '.join(choices)}, got {_show(value)}.{hint}", where))
        return _WRONG
    is_bool = isinstance(value, bool)
    if kind is bool and is_bool:
        return value
    if kind is int and not is_bool and (isinstance(value, int) or (isinstance(value, float) and value.is_integer())):
        return int(value)
    if kind is float and not is_bool and isinstance(value, int | float):
        try:
            return float(value)
        except OverflowError:  # an integer of more than 308 digits
            return math.inf if value > 0 else -math.inf
    if kind is str and isinstance(value, str):
        return value
    text = f"{where}: must be {_NAMES[kind]}, got {_show(value)}. Write {_example(kind, value)}."
    problems.append(error(text, where))
    return _WRONG


def _convert_list(kind: Any, value: Any, where: str, problems: list[Problem], root: type) -> Any:
    if not isinstance(value, list):
        problems.append(error(f"{where}: must be a list, got {_show(value)}. Write [{_yaml(value)}].", where))
        return _WRONG
    (inner,) = typing.get_args(kind)
    items = [_convert(inner, item, f"{where}[{i}]", problems, root) for i, item in enumerate(value)]
    return _WRONG if any(item is _WRONG for item in items) else items


def _convert_dict(kind: Any, value: Any, where: str, problems: list[Problem], root: type) -> Any:
    value = {} if value is None else value
    if not isinstance(value, dict):
        text = f"{where}: must be a mapping of names to values, got {_show(value)}. Write {{name: value}}."
        problems.append(error(text, where))
        return _WRONG
    _, inner = typing.get_args(kind)
    kept = {str(key): item for key, item in value.items() if item is not None}  # null takes an inherited entry out
    items = {key: _convert(inner, item, f"{where}.{key}", problems, root) for key, item in kept.items()}
    return _WRONG if any(item is _WRONG for item in items.values()) else items


def _unknown_key(where: str, value: Any, root: type) -> Problem:
    """Advice for a key of MindSpeed-RL, else the nearest key of any section."""
    if entry := MIGRATIONS.get(root, {}).get(where):
        if entry.accepts(value):
            return warning(f"{where}: has no effect here, got {_show(value)}. {entry.advice}")
        return error(f"{where}: this setting of MindSpeed-RL is not available, got {_show(value)}. {entry.advice}")
    near = nearest_key(where, (*key_paths(root), *section_paths(root)))
    hint = f" Did you mean {near}?" if near else " All keys are in docs/configuration.md."
    return error(f"{where}: unknown key, got {_show(value)}.{hint}")


def nearest_key(where: str, known: tuple[str, ...]) -> str | None:
    """The known path whose last part is `where`'s but for a slip of the keyboard, preferring the same section.

    A slip: the same letters in another order, one letter too many or too few, or 88 % of both in common. Names that
    differ in one letter are often of two things (num_gpus, num_cpus), and a wrong guess is worse than none.

    Returns:
        The path, or None where nothing is so similar.
    """
    section, _, name = where.lower().replace("-", "_").rpartition(".")

    def likeness(path: str) -> tuple[float, bool]:
        other_section, _, other = path.rpartition(".")
        return SequenceMatcher(None, name, other, autojunk=False).ratio(), section == other_section

    best = max(known, key=likeness)
    other = best.rpartition(".")[2]
    ratio = likeness(best)[0]
    longer = max(len(name), len(other))
    is_one_letter = abs(len(name) - len(other)) == 1 and ratio * (len(name) + len(other)) == 2 * (longer - 1)
    return best if ratio >= _SLIP or is_one_letter or sorted(name) == sorted(other) else None


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value.value if isinstance(value, StrEnum) else value


def _show(value: Any) -> str:
    """A value and its kind, as in `'ten' (text)`; of a section or a long value only so much as identifies it."""
    if value is None:
        return "null"
    if isinstance(value, dict):
        return f"a section with {', '.join(map(str, value)) or 'no keys'}"
    kinds = {bool: "true or false", int: "integer", float: "number", str: "text", list: "list"}
    return f"{shorten(repr(value), 60, placeholder=' ...')} ({kinds.get(type(value), type(value).__name__)})"


def _example(kind: type, value: Any) -> str:
    """How a right value would be written, from the wrong one where that can be guessed."""
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


def _yaml(value: Any) -> str:
    return "" if value is None else str(value)
