"""Resolves relative paths: one rule for every file that a configuration names.

`~` is the home folder. A file to read is looked for in the working folder, then in the folder of configurations, then
in the folder above that, and `configs/...` at last in the package. A file to write is relative to the working folder.
docs/configuration.md explains this to users.
"""

from __future__ import annotations

import os
import re
import typing
from collections.abc import Sequence
from dataclasses import is_dataclass
from pathlib import Path

from rl.config.imports import split_convention
from rl.config.keys import set_value, value_at
from rl.config.kinds import Place
from rl.config.schema import Config, DatasetConfig
from rl.config.sources import shipped_folder

_FUNCTION = re.compile(r"(.+\.py)(:\w+)")


def locate(path: str, folders: Sequence[Path]) -> str:
    """Find a file or folder.

    Args:
        path: As written.
        folders: Where to look after the working folder.

    Returns:
        The path as written if it is absolute, in the working folder, or nowhere; otherwise the absolute path.
    """
    path = os.path.expanduser(path)
    if not path or os.path.isabs(path) or os.path.lexists(path):
        return path
    found = next((folder / path for folder in folders if (folder / path).exists()), None)
    shipped = shipped_folder()
    if found is None and path.removeprefix("./").startswith("configs/"):
        found = shipped / path.removeprefix("./").removeprefix("configs/")
    return str(found.resolve()) if found is not None and found.exists() else path


def locate_function(name: str, folders: Sequence[Path]) -> str:
    """Find the file of `path/file.py:name`; other forms of names, and the prefix of a reward, stay as they are."""
    convention, target = split_convention(name)
    parts = _FUNCTION.fullmatch(target)
    prefix = f"{convention}:" if convention else ""
    return prefix + locate(parts[1], folders) + parts[2] if parts else name


def locate_files(config: Config | DatasetConfig, folder: Path) -> None:
    """Apply the rule to every key that holds a path, and rename a reward everywhere.

    Args:
        config: Changed in place.
        folder: The folder of configurations.
    """
    folders = (folder, folder.resolve().parent)
    for path in path_keys(type(config), Place.INPUT):
        if isinstance(value := value_at(config, path), dict):
            set_value(config, path, {name: locate(file, folders) for name, file in value.items()})
        elif value:
            set_value(config, path, locate(value, folders))
    for path in path_keys(type(config), Place.OUTPUT):
        set_value(config, path, os.path.expanduser(value_at(config, path)))
    for path in path_keys(type(config), Place.CODE):
        if value := value_at(config, path):
            set_value(config, path, locate_function(value, folders))
    if isinstance(config, Config):
        rl = config.rl_config
        names = {name: locate_function(name, folders) for name in rl.verifier_function}
        rl.verifier_function = [names[name] for name in rl.verifier_function]
        rl.verifier_kwargs = {names.get(name, name): kwargs for name, kwargs in rl.verifier_kwargs.items()}
        for name in names:
            if rl.filter_groups_metric == name or rl.filter_groups_metric.startswith(f"{name}/"):
                rl.filter_groups_metric = names[name] + rl.filter_groups_metric.removeprefix(name)


def path_keys(cls: type, place: Place, prefix: str = "") -> tuple[str, ...]:
    """Dotted paths of the keys below a section that hold paths of this kind."""
    keys: list[str] = []
    for name, kind in typing.get_type_hints(cls, include_extras=True).items():
        if is_dataclass(kind):
            keys += path_keys(typing.cast(type, kind), place, f"{prefix}{name}.")
        elif any(place in getattr(part, "__metadata__", ()) for part in (kind, *typing.get_args(kind))):
            keys.append(prefix + name)
    return tuple(keys)
