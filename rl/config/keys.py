"""The keys of a section by their dotted paths."""

from __future__ import annotations

import dataclasses
import types
import typing
from difflib import SequenceMatcher
from enum import StrEnum
from functools import cache
from typing import Any

_SLIP = 0.88


@cache
def field_types(cls: type) -> dict[str, Any]:
    """Types of a section's keys by name, without their bounds."""
    hints = typing.get_type_hints(cls)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


def not_null(kind: Any) -> Any:
    """The type of a key's values besides null."""
    if typing.get_origin(kind) not in (types.UnionType, typing.Union):
        return kind
    (inner,) = [part for part in typing.get_args(kind) if part is not types.NoneType]
    return inner


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
def section_paths(cls: type) -> tuple[str, ...]:
    """Dotted paths of all sections below one."""
    paths = [path.split(".")[:-1] for path in key_paths(cls)]
    return tuple(dict.fromkeys(".".join(path[:end]) for path in paths for end in range(1, len(path) + 1)))


def value_at(config: Any, path: str) -> Any:
    """The value of a dotted path."""
    node: Any = config
    for part in path.split("."):
        node = getattr(node, part)
    return node


def set_value(config: Any, path: str, value: Any) -> None:
    """Give the key of a dotted path a value."""
    section, _, key = path.rpartition(".")
    setattr(value_at(config, section) if section else config, key, value)


def default_mapping(cls: type) -> dict[str, Any]:
    """The defaults of a section as plain YAML types."""
    return plain_mapping(cls())


def plain_mapping(section: Any) -> dict[str, Any]:
    """A section's values as plain YAML types: enum members as their text."""
    return typing.cast("dict[str, Any]", _plain(dataclasses.asdict(section)))


def nearest_key(where: str, cls: type) -> str | None:
    """Find the key or section whose last part differs from `where`'s by a typing mistake, preferring the same section.

    A typing mistake: the same letters in another order, one letter too many or too few, or 88 % in common. Names that
    differ in one letter often mean two things (num_gpus, num_cpus), and a wrong guess is worse than none.
    """
    section, _, name = where.lower().replace("-", "_").rpartition(".")

    def likeness(path: str) -> tuple[float, bool]:
        other_section, _, other = path.rpartition(".")
        return SequenceMatcher(None, name, other, autojunk=False).ratio(), section == other_section

    best = max((*key_paths(cls), *section_paths(cls)), key=likeness)
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
