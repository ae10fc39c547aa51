"""Reads a tool YAML into typed records: the one place where that file is parsed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rl.config.paths import locate, locate_function
from rl.config.yaml_files import read_yaml
from rl.errors import ConfigError, ToolError
from rl.tools.settings import check_keys

_KEYS = {
    "class_name": ("class_name", "config", "tool_schema"),
    "function": ("function", "config"),
    "mcp": ("mcp", "config"),
}
"""The kinds of entries by the key that tells them, and the keys of each."""


@dataclass(slots=True, frozen=True)
class ToolEntry:
    """One entry of the list `tools`."""

    where: str
    """File and number of the entry, for messages."""
    kind: str
    """`class_name`, `function` or `mcp`."""
    target: Any
    """Name of the class or function, or how to reach the server; not checked."""
    settings: dict[str, Any]
    """`config`; empty where the entry has none."""
    schema: Any
    """`tool_schema` of a class; not checked."""


def read_entries(path: Path) -> list[ToolEntry]:
    """Read a tool YAML. Relative paths in it follow the rule of `rl.config.paths`, from the file.

    Raises:
        ToolError: The file cannot be read, it has no list `tools`, or an entry has no kind or unknown keys.
    """
    try:
        content = read_yaml(path)
    except ConfigError as error:
        raise ToolError(f"rl_config.tool_config_path: {error}") from error
    entries = content.get("tools")
    if not isinstance(entries, list) or not entries or not all(isinstance(e, dict) for e in entries):
        raise ToolError(
            f"{path}: needs a list `tools` of entries with class_name, function or mcp, got {entries!r}. "
            "See docs/tools.md."
        )
    return [_entry(f"{path}: tools[{number}]", entry, path.parent) for number, entry in enumerate(entries, start=1)]


def _entry(where: str, entry: dict[str, Any], folder: Path) -> ToolEntry:
    kind = _kind(where, entry)
    check_keys(where, entry, _KEYS[kind])
    settings = entry.get("config") or {}
    if not isinstance(settings, dict):
        raise ToolError(f"{where}.config: must be a mapping of settings, got {settings!r}.")
    if isinstance(settings.get("corpus_path"), str):
        settings["corpus_path"] = locate(settings["corpus_path"], (folder,))
    target = entry[kind]
    if kind != "mcp" and isinstance(target, str):
        target = locate_function(target, (folder,))
    return ToolEntry(where, kind, target, settings, entry.get("tool_schema"))


def _kind(where: str, entry: dict[str, Any]) -> str:
    kinds = [key for key in _KEYS if key in entry]
    if len(kinds) > 1:
        raise ToolError(f"{where}: has {' and '.join(kinds)}. An entry is of one kind: split it.")
    if not kinds:
        check_keys(where, entry, [*_KEYS, "config", "tool_schema"])
        raise ToolError(f"{where}: needs class_name, function or mcp, got {', '.join(map(str, entry)) or 'nothing'}.")
    return kinds[0]
