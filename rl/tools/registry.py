"""Builds the tools of a run from the YAML file that `rl_config.tool_config_path` names."""

from __future__ import annotations

import asyncio
import dataclasses
import importlib
from pathlib import Path
from typing import Any, get_type_hints

import yaml
from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError

from rl.errors import ToolError, unknown_name
from rl.tools.base import Tool, ToolConfig
from rl.tools.execution import ToolRunner, ToolSession

_ENTRY_KEYS = ("class_name", "config", "tool_schema")
_MOVED = "mindspeed_rl.tools."


class Toolbox:
    """The tools of a run."""

    def __init__(self, tools: list[Tool]) -> None:
        self.tools = {tool.name: tool for tool in tools}
        self._runners = {tool.name: ToolRunner(tool) for tool in tools}

    @property
    def schemas(self) -> list[dict[str, Any]]:
        """The tools in OpenAI's form, as chat templates take them."""
        return [tool.schema for tool in self.tools.values()]

    @property
    def names(self) -> list[str]:
        """What the model may call."""
        return list(self.tools)

    def open_session(self, trajectory_id: str) -> ToolSession:
        """Begin the tool use of one trajectory; the caller closes the session whatever happens."""
        return ToolSession(self._runners, trajectory_id)

    async def check(self) -> None:
        """Find out whether the services behind the tools answer.

        Raises:
            ToolError: One does not.
        """
        for tool in self.tools.values():
            await tool.check()

    async def close(self) -> None:
        """Free what the tools hold."""
        await asyncio.gather(*(tool.close() for tool in self.tools.values()))


def load_toolbox(path: Path, *, overrides: dict[str, dict[str, Any]] | None = None) -> Toolbox:
    """Build the tools of a YAML file: `tools: [{class_name, config, tool_schema}]`.

    Args:
        path: The file.
        overrides: Settings to replace, by tool name: `{"code_interpreter": {"sandbox_fusion_url": url}}`.

    Returns:
        The tools; nothing is started yet.

    Raises:
        ToolError: The file, an entry, a class, a setting or a schema is wrong.
    """
    entries = _read_entries(Path(path))
    tools: dict[str, Tool] = {}
    remaining = dict(overrides or {})
    for number, entry in enumerate(entries, start=1):
        where = f"{path}: tools[{number}]"
        _check_keys(where, entry, _ENTRY_KEYS)
        schema = _checked_schema(where, entry.get("tool_schema"))
        name = schema["function"]["name"]
        if name in tools:
            raise ToolError(f"{where}: the tool name '{name}' is taken by an earlier entry. Give each its own name.")
        tool_class = _import_tool_class(where, entry.get("class_name"))
        settings = {**(entry.get("config") or {}), **remaining.pop(name, {})}
        tools[name] = tool_class(_read_config(f"{where}.config", tool_class.config_class, settings), schema)
    for name in remaining:
        raise ToolError(unknown_name(f"{path}: override", name, tools))
    return Toolbox(list(tools.values()))


def _read_entries(path: Path) -> list[dict[str, Any]]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ToolError(f"{path}: cannot be read, {error.strerror}. Check rl_config.tool_config_path.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ToolError(f"{path}: is not valid YAML: {error}. Correct the file.") from error
    entries = content.get("tools") if isinstance(content, dict) else None
    if not isinstance(entries, list) or not entries or not all(isinstance(e, dict) for e in entries):
        raise ToolError(f"{path}: needs a list `tools` of entries with {', '.join(_ENTRY_KEYS)}, got {entries!r}.")
    return entries


def _check_keys(where: str, given: dict[str, Any], known: Any) -> None:
    for key in given:
        if key not in known:
            raise ToolError(unknown_name(where, str(key), known))


def _checked_schema(where: str, schema: Any) -> dict[str, Any]:
    function = schema.get("function") if isinstance(schema, dict) else None
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(function, dict) or not isinstance(name, str) or not name:
        raise ToolError(f"{where}.tool_schema: needs `function.name`, got {schema!r}. Use OpenAI's function schema.")
    try:
        Draft202012Validator.check_schema(function.get("parameters", {}))
    except SchemaError as error:
        raise ToolError(
            f"{where}.tool_schema: parameters of '{name}' are not a JSON Schema: {error.message}. Correct it."
        ) from error
    return {"type": schema.get("type", "function"), "function": function}


def _import_tool_class(where: str, class_name: Any) -> type[Tool]:
    if not isinstance(class_name, str) or "." not in class_name:
        raise ToolError(f"{where}.class_name: must be `package.module.Class`, got {class_name!r}.")
    if class_name.startswith(_MOVED):
        here = "rl.tools." + class_name.removeprefix(_MOVED)
        raise ToolError(f"{where}.class_name: got '{class_name}'. The class is '{here}' here: use that.")
    module_name, _, attribute = class_name.rpartition(".")
    try:
        module = importlib.import_module(module_name)
    except (ImportError, SyntaxError) as error:
        raise ToolError(
            f"{where}.class_name: '{module_name}' does not import: {error}. Check the path and what it needs."
        ) from error
    found = getattr(module, attribute, None)
    if found is None:
        classes = [k for k, v in vars(module).items() if isinstance(v, type) and issubclass(v, Tool)]
        raise ToolError(unknown_name(f"{where}.class_name in {module_name}", attribute, classes))
    if not isinstance(found, type) or not issubclass(found, Tool):
        raise ToolError(f"{where}.class_name: '{class_name}' is not a tool. Derive it from rl.tools.base.Tool.")
    return found


def _read_config(where: str, config_class: type[ToolConfig], settings: dict[str, Any]) -> ToolConfig:
    fields = {field.name for field in dataclasses.fields(config_class)}
    _check_keys(where, settings, fields)
    hints = get_type_hints(config_class)
    values = {key: _typed(f"{where}.{key}", hints[key], value) for key, value in settings.items()}
    config = config_class(**values)
    for key in ("num_workers", "rate_limit", "default_timeout", "queue_timeout"):
        if getattr(config, key) <= 0:
            raise ToolError(f"{where}.{key}: must be above 0, got {getattr(config, key)}.")
    return config


def _typed(where: str, hint: Any, value: Any) -> Any:
    """Check a setting against a plain type; whole numbers pass for float, other annotations are not checked."""
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint in (int, float, str, bool) and type(value) is not hint:
        raise ToolError(f"{where}: must be {hint.__name__}, got {value!r}.")
    return value
