"""Converts a tool YAML of MindSpeed-RL or verl, which have the same form."""

from __future__ import annotations

import copy
import inspect
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from rl.config.yaml_files import read_yaml
from rl.errors import ConfigError, ToolError
from rl.tools.base import Tool
from rl.tools.registry import MOVED_CLASSES, import_tool_class
from rl.tools.settings import check_keys

_SEARCH_PORT = ":8080/retrieve"


@dataclass(slots=True)
class Tools:
    """A converted tool YAML."""

    text: str
    changes: dict[str, str] = field(default_factory=dict)
    """What was changed, by place."""
    by_hand: dict[str, str] = field(default_factory=dict)
    """What the user must look at, by place."""


def convert_tools(path: Path) -> Tools:
    """Convert a tool YAML.

    Raises:
        ConfigError: It cannot be read, or has no list `tools`.
    """
    entries = copy.deepcopy(read_yaml(path).get("tools"))
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ConfigError(f"{path}: needs a list `tools` of entries with class_name, got {entries!r:.60}. Correct it.")
    tools = Tools("")
    for number, entry in enumerate(entries, start=1):
        where = f"tools[{number}]"
        _convert_class(tools, where, entry)
        _convert_settings(tools, where, entry)
        _convert_schema(tools, f"{where}.tool_schema", entry.get("tool_schema"))
    notes = [f"# {place}: {text}\n" for place, text in (tools.changes | tools.by_hand).items()]
    body = yaml.safe_dump({"tools": entries}, sort_keys=False, allow_unicode=True, width=120)
    tools.text = "".join([f"# {path.name}, converted by `rl migrate`.\n", *notes, body])
    return tools


def _convert_class(tools: Tools, where: str, entry: dict[str, Any]) -> None:
    name = entry.get("class_name")
    if name in MOVED_CLASSES:
        entry["class_name"] = MOVED_CLASSES[name]
        tools.changes[f"{where}.class_name"] = f"was {name}"


def _convert_settings(tools: Tools, where: str, entry: dict[str, Any]) -> None:
    """Leave out settings that do nothing here, and name those that the tool does not know."""
    settings = entry.get("config")
    try:
        tool = import_tool_class(where, entry["class_name"]) if "class_name" in entry else None
    except ToolError as failure:
        tools.by_hand[f"{where}.class_name"] = str(failure).removeprefix(f"{where}.class_name: ")
        return
    if tool is None or not issubclass(tool, Tool) or not isinstance(settings, dict):
        return  # a class of verl's form gets its settings as they are
    if settings.pop("num_workers", None) is not None:
        tools.changes[f"{where}.config.num_workers"] = "left out: calls are asynchronous, rate_limit limits them"
    known = [*inspect.signature(tool.config_class).parameters, "timeout"]
    for key in list(settings):
        try:
            check_keys(where, {key: None}, known)
        except ToolError:
            tools.by_hand[f"{where}.config.{key}"] = f"unknown setting, left out. Got {settings.pop(key)!r:.60}"
    url = str(settings.get("retrieval_service_url", ""))
    if url.endswith(_SEARCH_PORT):
        tools.by_hand[f"{where}.config.retrieval_service_url"] = (
            "8080 is the sandbox's port; `rl retriever` listens on 8000. Correct the address, or write `embedded`"
        )


def _convert_schema(tools: Tools, where: str, schema: Any) -> None:
    """`item` of an array is `items` in JSON Schema; there it was ignored."""
    if isinstance(schema, dict):
        if schema.get("type") == "array" and "item" in schema and "items" not in schema:
            schema["items"] = schema.pop("item")
            tools.changes[f"{where}.item"] = "is items in JSON Schema"
        for key, value in schema.items():
            _convert_schema(tools, f"{where}.{key}", value)
