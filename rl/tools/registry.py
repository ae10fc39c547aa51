"""Builds the tools of a run from the YAML file that `rl_config.tool_config_path` names."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rl.errors import ToolError, unknown_name
from rl.tools.base import Tool, ToolConfig
from rl.tools.deadlines import LoopClock
from rl.tools.entries import ToolEntry, read_entries
from rl.tools.execution import ToolRunner, ToolSession
from rl.tools.function_tool import load_function_tool
from rl.tools.limits import PermitSource, SharedLimiter
from rl.tools.named import import_named
from rl.tools.schemas import checked_schema
from rl.tools.settings import read_settings
from rl.tools.verl_tool import is_verl_class, load_verl_tool

MOVED_CLASSES = {
    "mindspeed_rl.tools.retool.ReTool": "rl.tools.retool.ReTool",
    "mindspeed_rl.tools.search_tool.SearchTool": "rl.tools.search_tool.SearchTool",
    "verl.tools.sandbox_fusion_tools.SandboxFusionTool": "rl.tools.retool.ReTool",
    "verl.tools.search_tool.SearchTool": "rl.tools.search_tool.SearchTool",
}
"""Tools of other frameworks, and those here with the same settings and schema."""
_LEASE_GRACE_S = 10.0


class Toolbox:
    """The tools of a run.

    Args:
        tools: Tools with distinct names.
        warnings: Corrections, and settings without effect.
    """

    def __init__(self, tools: list[Tool], warnings: list[str] | None = None) -> None:
        self.tools = {tool.name: tool for tool in tools}
        self.warnings = warnings or []
        self._clock = LoopClock()
        self._runners = {tool.name: ToolRunner(tool, self._clock) for tool in tools}

    @property
    def schemas(self) -> list[dict[str, Any]]:
        """The tools in OpenAI's form, as chat templates take them."""
        return [tool.schema for tool in self.tools.values()]

    @property
    def names(self) -> list[str]:
        """The names of the tools."""
        return list(self.tools)

    def open_session(self, trajectory_id: str, row: Mapping[str, Any] | None = None) -> ToolSession:
        """Open the tools for one trajectory. The caller must close the session.

        Args:
            trajectory_id: `<prompt id>/<sample index>`.
            row: The other columns of the data row, for tools whose `create` asks for them.
        """
        return ToolSession(self._runners, trajectory_id, row or {})

    def run_in_caller(self) -> None:
        """For breakpoints: run tools in the thread that calls them, without deadlines. Before the first call only."""
        self._clock.expect_stalls()
        for runner in self._runners.values():
            runner.run_in_caller()

    def share_rate_limits(self, permits_of: Callable[[str, int], PermitSource]) -> None:
        """Share the rate limits of the tools with other processes. To be called before the first call of a tool.

        Args:
            permits_of: Maps a tool's name and `rate_limit` to the shared source of permits.
        """
        for name, tool in self.tools.items():
            config = tool.config
            if config.enable_global_rate_limit:
                lease_s = config.queue_timeout + config.default_timeout + _LEASE_GRACE_S
                self._runners[name].share_permits(SharedLimiter(permits_of(name, config.rate_limit), lease_s))

    async def check(self) -> None:
        """Check that the services behind the tools answer.

        Raises:
            ToolError: One does not.
        """
        for tool in self.tools.values():
            await tool.check()

    async def close(self) -> None:
        """Release the tools' resources."""
        for runner in self._runners.values():
            runner.close()
        await asyncio.gather(*(tool.close() for tool in self.tools.values()))


def load_toolbox(path: Path, *, overrides: dict[str, dict[str, Any]] | None = None) -> Toolbox:
    """Build the tools of a YAML file, which has a list `tools` with three kinds of entries.

    `{class_name, config, tool_schema}` is a class, `{function, config}` a typed function, and `{mcp, config}` a server
    with a list of tools.

    Args:
        path: The file.
        overrides: Settings to replace, by tool name: `{"code_interpreter": {"sandbox_fusion_url": url}}`.

    Raises:
        ToolError: The file, an entry, a class, a function, a server, a setting or a schema is wrong.
    """
    tools: dict[str, Tool] = {}
    warnings: list[str] = []
    remaining = dict(overrides or {})
    for entry in read_entries(Path(path)):
        for tool in _KINDS[entry.kind](entry, remaining, warnings):
            if tool.name in tools:
                raise ToolError(
                    f"{entry.where}: the tool name '{tool.name}' is taken by an earlier entry. Give each its own name."
                )
            tools[tool.name] = tool
    for name in remaining:
        raise ToolError(unknown_name(f"{path}: override", name, tools))
    return Toolbox(list(tools.values()), warnings)


def _class_tools(entry: ToolEntry, overrides: dict[str, dict[str, Any]], warnings: list[str]) -> list[Tool]:
    tool_class = import_tool_class(entry.where, entry.target)
    if not issubclass(tool_class, Tool):
        return [load_verl_tool(entry, tool_class, overrides, warnings)]
    schema, corrections = checked_schema(f"{entry.where}.tool_schema", entry.schema)
    warnings += corrections
    changes = overrides.pop(schema["function"]["name"], None)
    tool = tool_class(read_settings(f"{entry.where}.config", tool_class.config_class, entry.settings, changes), schema)
    warnings += _idle_settings(entry, tool)
    return [tool]


def _function_tools(entry: ToolEntry, overrides: dict[str, dict[str, Any]], warnings: list[str]) -> list[Tool]:
    name = str(entry.target).rpartition(":")[2]
    config = read_settings(f"{entry.where}.config", ToolConfig, entry.settings, overrides.pop(name, None))
    tool = load_function_tool(f"{entry.where}.function", entry.target, config)
    warnings += _idle_settings(entry, tool)
    return [tool]


def _mcp_tools(entry: ToolEntry, overrides: dict[str, dict[str, Any]], warnings: list[str]) -> list[Tool]:
    try:
        from rl.tools.mcp_tool import load_mcp_tools
    except ImportError as error:
        raise ToolError(
            f"{entry.where}.mcp: the package 'mcp' does not import: {error}. Install it: `pip install 'turnwise[mcp]'`."
        ) from error
    where = f"{entry.where}.config"
    tools = load_mcp_tools(f"{entry.where}.mcp", entry.target, read_settings(where, ToolConfig, entry.settings))
    for tool in tools:
        tool.config = read_settings(where, ToolConfig, entry.settings, overrides.pop(tool.name, None))
    return list(tools)


_KINDS = {"class_name": _class_tools, "function": _function_tools, "mcp": _mcp_tools}
"""How an entry becomes tools."""


def _idle_settings(entry: ToolEntry, tool: Tool) -> list[str]:
    """Settings that were given and do nothing."""
    where, given, idle = f"{entry.where}.config", entry.settings, []
    if "num_workers" in given and tool.is_async:
        idle.append(
            f"{where}.num_workers: has no effect, '{tool.name}' is asynchronous and needs no threads. "
            "To limit its concurrent calls set enable_global_rate_limit and rate_limit."
        )
    if "rate_limit" in given and not tool.config.enable_global_rate_limit:
        idle.append(f"{where}.rate_limit: has no effect without enable_global_rate_limit. Set it to true.")
    return idle


def import_tool_class(where: str, class_name: Any) -> type:
    """Import a tool's class: one derived from `Tool`, or of verl's contract (`rl.tools.verl_tool`).

    Args:
        where: The entry, for messages.
        class_name: `package.module.Class`, `package.module:Class` or `path/file.py:Class`.

    Raises:
        ToolError: The path is malformed, does not import, or the class is not a tool.
    """
    if here := MOVED_CLASSES.get(str(class_name)):
        raise ToolError(f"{where}.class_name: got '{class_name}'. The class is '{here}' here: use that.")
    advice = "Derive it from rl.tools.base.Tool; a function goes under function."
    where = f"{where}.class_name"
    try:
        found: type = import_named(where, class_name, "tool", _is_tool_class, advice, may_be_dotted=True)
    except ToolError as error:
        if isinstance(error.__cause__, ModuleNotFoundError) and str(error.__cause__.name).split(".")[0] == "verl":
            raise ToolError(
                f"{where}: '{class_name}' needs the package verl, which is not installed. Install it, or remove the "
                "base class and verl's types, which are not needed here: docs/tools.md."
            ) from error
        raise
    return found


def _is_tool_class(value: Any) -> bool:
    return is_verl_class(value) or (isinstance(value, type) and issubclass(value, Tool) and value is not Tool)
