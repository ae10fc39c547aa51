"""Reads overrides of the command line, `key=value`. For a key of text, the value is exactly what is typed."""

from __future__ import annotations

import dataclasses
import re
import typing
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import GrammarParseError, OmegaConfBaseException

from rl.config.keys import field_types, not_null
from rl.config.kinds import Choice
from rl.config.migration import RENAMED
from rl.config.yaml_files import parse_yaml, unfinished_reference
from rl.errors import ConfigError

_QUOTED = re.compile(r"""(['"])((?:\\.|(?!\1).)*)\1""", re.DOTALL)
_ITEM = re.compile(r"""\s*("(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*'|(?:\$\{[^}]*\}|[^,])*?)\s*(?:,|$)""", re.DOTALL)
_FUNCTION = re.compile(r"(.+?:\w+)(?:\.(.+))?")
_NOT_IN_KEYS = re.compile(r"""[\s=~+@$'"(){}\[\]]""")


@dataclass(slots=True, frozen=True)
class Overrides:
    """The overrides of one command."""

    choices: list[str]
    """Choices of groups, and removals, in Hydra's grammar."""
    removed: list[str]
    """Earlier names of removed keys, which a composition has beside the present ones."""
    values: list[tuple[list[str], Any]]
    """The names down to each key, and its value."""


def read_overrides(root: type, overrides: Iterable[str], is_group: Callable[[str], bool]) -> Overrides:
    """Read the overrides of a command.

    Args:
        root: The class whose keys are set.
        overrides: `key=value`, `group=name`, `~key` or `~group`; a `+` before a key has no effect.
        is_group: Whether a folder of configurations has this name.

    Raises:
        ConfigError: An override has another form, or a list or mapping is malformed.
    """
    read = Overrides([], [], [])
    for override in overrides:
        left, separator, typed = override.partition("=")
        key = left.strip().lstrip("+")
        if key.startswith("~"):
            earlier, now = _both_names(key[1:])
            read.choices.append(override.strip() if earlier is None else f"~{now}{separator}{typed.strip()}")
            read.removed.extend([] if earlier is None else [earlier])
        elif not separator:
            raise ConfigError(f"override: must be key=value, got '{override}'. Write for example rl_config.epochs=2.")
        elif is_group(key) and typed.strip() in ("null", ""):
            read.choices.append(f"~{key}")
        elif is_group(key) and not typed.strip().startswith("["):
            read.choices.append(
                f"{left.strip()}={QuotedString(_text(typed.strip()) or '', Quote.single).with_quotes()}"
            )
        elif is_group(key) or "@" in key or key.startswith(("hydra.", "hydra/")):
            read.choices.append(override)
        else:
            names, kind = _place(root, key)
            if not all(names) or any(_NOT_IN_KEYS.search(name) for name in names[:-1] if ":" not in name):
                raise ConfigError(
                    f"override: '{key}' cannot be a key, got '{override}'. Write the names of sections and key with "
                    "dots between them: rl_config.epochs=2."
                )
            present = RENAMED.get(key)
            if present is not None:  # the earlier name stays, for a note
                _, kind = _place(root, present)
                read.values.append((present.split("."), _value(kind, typed.strip(), override)))
            read.values.append((names, _value(kind, typed.strip(), override)))
    return read


def apply_values(tree: DictConfig, overrides: Overrides) -> None:
    """Remove the earlier names and set the values in a composition; a mapping is merged into an existing one.

    Raises:
        ConfigError: A key is below another key that is not a section.
    """
    for old in overrides.removed:
        section, _, name = old.rpartition(".")
        keys = OmegaConf.select(tree, section)
        if isinstance(keys, DictConfig):
            with open_dict(keys):
                keys.pop(name, None)
    for names, value in overrides.values:
        key = "".join(f"[{name}]" if "." in name else f".{name}" for name in names).lstrip(".")
        try:
            OmegaConf.update(tree, key, value, merge=True, force_add=True)
        except GrammarParseError as failure:
            raise ConfigError(unfinished_reference(".".join(names))) from failure
        except (OmegaConfBaseException, AssertionError) as failure:  # it asserts that the parent is a section
            reason = " ".join(str(failure).split("full_key:")[0].split()).rstrip(".")
            raise ConfigError(
                f"{'.'.join(names)}: cannot be set ({reason}), got {value!r:.80}. Correct the key: all are in "
                "docs/configuration.md."
            ) from failure


def _both_names(key: str) -> tuple[str | None, str]:
    """The earlier name and the present one of a key or of a part of it; None for the earlier one if there is none."""
    for old, present in RENAMED.items():
        for name in (old, present):
            if key == name or key.startswith(f"{name}."):
                return old + key[len(name) :], present + key[len(name) :]
    return None, key


def _place(root: type, key: str) -> tuple[list[str], Any]:
    """Names down to a key, and its type in the schema; None if the schema does not have it.

    In a mapping, the dots of a function's name (`path/file.py:function`) belong to the name.
    """
    names: list[str] = []
    kind: Any = root
    rest = key
    while rest:
        function = _FUNCTION.fullmatch(rest) if typing.get_origin(kind) is dict else None
        name, _, rest = (function[1], "", function[2] or "") if function else rest.partition(".")
        names.append(name)
        if dataclasses.is_dataclass(kind):
            kind = field_types(typing.cast(type, kind)).get(name)
        elif typing.get_origin(kind) is dict:
            kind = typing.get_args(kind)[1]
        elif kind is not Any:
            kind = None
    return ([*names, ""] if key.endswith(".") or not key else names), kind


def _value(kind: Any, typed: str, override: str) -> Any:
    """The typed value, converted by the type of the key."""
    kind = not_null(kind)
    is_choice = typing.get_origin(kind) is typing.Literal or (isinstance(kind, type) and issubclass(kind, Choice))
    if kind is str or is_choice:
        return _text(typed)
    if kind == list[str] and typed.startswith("[") and typed.endswith("]"):
        return [_text(item) for item in _items(typed[1:-1])]
    try:
        parsed = OverridesParser.create().parse_override(f"key={typed}")
        if not parsed.is_sweep_override():
            return parsed.value()
    except (HydraException, RecursionError, ValueError):
        pass  # Hydra's grammar does not have quoted keys, letters beyond ASCII, or thousands of digits
    if typed[:1] not in ("[", "{"):
        return typed
    try:
        return parse_yaml("override", typed)
    except ConfigError as failure:
        raise ConfigError(
            f"override: cannot be read, got '{override:.200}'. Close every bracket, and put quotes of the shell around "
            "the whole: 'rl_config.verifier_weight=[1.0, 0.5]'."
        ) from failure


def _text(typed: str) -> str | None:
    """Text without its quotes, None for `null`, everything else as it is."""
    if quoted := _QUOTED.fullmatch(typed):
        mark = quoted[1]
        return quoted[2].replace(f"\\{mark}", mark)
    return None if typed == "null" else typed


def _items(typed: str) -> list[str]:
    """Split a list at its commas, except those within quotes and `${...}`."""
    items = [found[1] for found in _ITEM.finditer(typed) if found[0]]
    return items if typed.strip() else []
