"""Imports user code by name: rewards, tools and functions of a configuration."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import zlib
from pathlib import Path
from types import ModuleType
from typing import Any

CONVENTIONS = ("verl", "trl", "trl_text")
"""Prefixes that say for which framework a reward function was written; see `rl.rewards.conventions`."""
_FOLDERS: set[Path] = set()
"""Folders of files that were imported by their path."""


def import_target(target: str) -> Any:
    """Import `package.module:name` or `path/file.py:name`.

    Raises:
        ImportError: No such module or file.
        AttributeError: Nothing of that name in it.
    """
    place, _, name = target.rpartition(":")
    return getattr(import_place(place), name)


def split_convention(name: str) -> tuple[str, str]:
    """Split a reward's name into its convention and its import path.

    Example: `verl:my_rewards.py:compute_score` gives `verl` and `my_rewards.py:compute_score`; a name without such a
    prefix gives an empty text and itself.
    """
    prefix, _, target = name.partition(":")
    return (prefix, target) if prefix in CONVENTIONS and ":" in target else ("", name)


def import_place(place: str) -> ModuleType:
    """Import a module by its name, or a file by its path.

    Args:
        place: `package.module`, also looked for in the working folder, or `path/file.py`; a relative path starts in the
            working folder. A file may import its neighbors, as a script may: its folder comes first on `sys.path`.

    Raises:
        ImportError: There is none.
    """
    if not place.endswith(".py"):
        if not {"", os.getcwd()} & set(sys.path):
            sys.path.insert(0, os.getcwd())
        return importlib.import_module(place)
    path = Path(place).expanduser().resolve()
    if not path.is_file():
        raise ImportError(f"no file {path}, nor one of this name beside the configuration")
    _import_from(path.parent)
    name = _module_name(path)
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None, "the name of the file ends in .py"
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pydantic look their module up
    spec.loader.exec_module(module)
    return module


def _import_from(folder: Path) -> None:
    """Put a folder first on `sys.path`, and forget modules of other such folders that have the name of a file in it."""
    for name, module in list(sys.modules.items()):
        file = _file_of(module)
        if file.parent in _FOLDERS - {folder} and (folder / file.name).is_file():
            del sys.modules[name]
    if str(folder) in sys.path:
        sys.path.remove(str(folder))
    sys.path.insert(0, str(folder))
    _FOLDERS.add(folder)
    importlib.invalidate_caches()  # a file that was just written is found


def _module_name(path: Path) -> str:
    """The name of the file, or a unique one if that is taken (`json.py`, `search.py`)."""
    known = sys.modules.get(path.stem)
    is_free = path.stem.isidentifier() and (known is None or _file_of(known) == path)
    return path.stem if is_free else f"{path.stem}_{zlib.crc32(str(path).encode()):08x}"


def _file_of(module: Any) -> Path:
    return Path(getattr(module, "__file__", None) or os.devnull)
