"""Tools written for verl, which is not imported: classes with `create`, `execute`, `calc_reward` and `release`.

    class Submit:
        def __init__(self, config: dict, tool_schema): ...
        async def create(self, instance_id=None, **kwargs) -> tuple[str, ToolResponse]: ...
        async def execute(self, instance_id, parameters: dict, **kwargs) -> tuple[ToolResponse, float, dict]: ...
        async def calc_reward(self, instance_id, **kwargs) -> float: ...
        async def release(self, instance_id, **kwargs) -> None: ...

Source: `verl/tools/base_tool.py`, `verl/experimental/agent_loop/tool_agent_loop.py` of verl 0.9. Earlier forms work
too: an instance id alone from `create`, text alone from `execute`.
"""

from __future__ import annotations

import asyncio
import dataclasses
import inspect
import json
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import Any

from pydantic import BaseModel, ConfigDict

from rl.errors import ToolError
from rl.tools.base import Tool, ToolConfig, ToolOutput
from rl.tools.entries import ToolEntry
from rl.tools.schemas import checked_schema
from rl.tools.settings import read_settings

_METHODS = ("create", "execute", "release")
_CALC_REWARD = "calc_reward"


class _Record(BaseModel):
    model_config = ConfigDict(extra="allow")


class _Property(_Record):
    type: Any = None


class _Parameters(_Record):
    type: str = "object"
    properties: dict[str, _Property] = {}
    required: list[str] = []


class _Function(_Record):
    name: str
    description: str = ""
    parameters: _Parameters = _Parameters()


class VerlSchema(_Record):
    """A tool's schema with the attributes of verl's `OpenAIFunctionToolSchema`."""

    type: str = "function"
    function: _Function


@dataclass(slots=True)
class VerlState:
    """The instance of one trajectory."""

    instance_id: Any
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    """`extra_info.tools_kwargs.<tool>` of the row: `create_kwargs`, `execute_kwargs` and so on."""


class VerlTool(Tool):
    """Runs the calls of an object of verl's contract.

    Args:
        config: Limits.
        schema: The tool in OpenAI's form.
        inner: The object.
    """

    def __init__(self, config: ToolConfig, schema: dict[str, Any], inner: Any) -> None:
        super().__init__(config, schema)
        self._inner = inner
        reward = getattr(type(inner), _CALC_REWARD, None)
        self._has_reward = reward is not None and reward.__qualname__ != f"BaseTool.{_CALC_REWARD}"

    @property
    def run_limit_s(self) -> float | None:
        """The whole time of a call, because verl's tools wait for a free worker inside `execute`."""
        limit: float = self.config.queue_timeout + self.config.default_timeout
        return limit

    async def create(self, trajectory_id: str, row: Mapping[str, Any] | None = None) -> VerlState:
        """Create the instance of a trajectory with the `create_kwargs` of its row."""
        kwargs = _tools_kwargs(row or {}).get(self.name) or {}
        given = kwargs.get("create_kwargs") or {}
        arguments = {**given, "instance_id": uuid.uuid4().hex, "create_kwargs": given}
        made = await _call(self._inner.create, **_accepted(self._inner.create, arguments))
        return VerlState(made[0] if isinstance(made, tuple) else made, kwargs)

    async def execute(self, state: VerlState, arguments: dict[str, Any]) -> ToolOutput:
        """Run one call. What `calc_reward` then gives is the metric `calc_reward`."""
        value = await self._run("execute", state, arguments)
        response, reward, metrics = (*value, None, None)[:3] if isinstance(value, tuple) else (value, None, None)
        numbers = {k: float(v) for k, v in (metrics or {}).items() if isinstance(v, Real)}
        if self._has_reward:
            numbers[_CALC_REWARD] = float(await self._run(_CALC_REWARD, state))
        return ToolOutput(_text_of(response), reward=reward, metrics=numbers)

    async def release(self, state: VerlState) -> None:
        """Release the instance."""
        await self._run("release", state)

    async def _run(self, method: str, state: VerlState, *arguments: Any) -> Any:
        function = getattr(self._inner, method)
        kwargs = _accepted(function, state.kwargs.get(f"{method}_kwargs") or {})
        return await _call(function, state.instance_id, *arguments, **kwargs)


def is_verl_class(value: Any) -> bool:
    """Whether an object is a class with the methods of verl's contract, and no tool of this project."""
    return (
        isinstance(value, type)
        and not issubclass(value, Tool)
        and all(callable(getattr(value, method, None)) for method in _METHODS)
    )


def load_verl_tool(
    entry: ToolEntry, found: type, overrides: dict[str, dict[str, Any]], warnings: list[str]
) -> VerlTool:
    """Build the tool of an entry. The class gets the whole `config`; limits are read from it too.

    Args:
        entry: An entry with `class_name`.
        found: The class.
        overrides: Settings to replace, by tool name; those of the tool are removed.
        warnings: Corrections are added.

    Raises:
        ToolError: The class cannot be built or called, or a setting or the schema is wrong.
    """
    where = f"{entry.where}.class_name"
    if "trajectory_id" in inspect.signature(found.create).parameters:  # type: ignore[attr-defined]
        raise ToolError(
            f"{where}: '{entry.target}' has a `create` with trajectory_id, as this project's tools. Derive the class "
            "from rl.tools.base.Tool."
        )
    given, record = entry.schema, None
    if given is not None:
        given, corrections = checked_schema(f"{entry.where}.tool_schema", given)
        warnings += corrections
        record = VerlSchema.model_validate(given)
    changes = overrides.pop(given["function"]["name"], {}) if given is not None else {}
    settings = {**entry.settings, **changes}
    try:
        inner = found(config=settings, tool_schema=record)
        own = record or inner.get_openai_tool_schema()
    except Exception as error:  # the user's class may raise anything
        raise ToolError(f"{where}: '{entry.target}' raised {type(error).__name__}: {error}. Correct it.") from error
    if given is None:
        plain = own.model_dump(exclude_none=True) if isinstance(own, BaseModel) else own
        given, _ = checked_schema(f"{entry.where}.tool_schema", plain)
    return VerlTool(_limits(f"{entry.where}.config", settings), given, inner)


def _limits(where: str, settings: Mapping[str, Any]) -> ToolConfig:
    """The settings that a class of verl's and this project's tools share."""
    known = {one.name for one in dataclasses.fields(ToolConfig)} | {"timeout"}
    shared = {name: value for name, value in settings.items() if name in known}
    if "default_timeout" in shared:
        shared.pop("timeout", None)
    return read_settings(where, ToolConfig, shared)


def _tools_kwargs(row: Mapping[str, Any]) -> Mapping[str, Any]:
    extra_info = row.get("extra_info")
    found = extra_info.get("tools_kwargs") if isinstance(extra_info, Mapping) else None
    return found if isinstance(found, Mapping) else {}


def _accepted(function: Callable[..., Any], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments that a function takes by name."""
    parameters = inspect.signature(function).parameters
    takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    return {name: value for name, value in arguments.items() if takes_all or name in parameters}


async def _call(function: Callable[..., Any], *arguments: Any, **kwargs: Any) -> Any:
    """Call a method on the event loop, or in a thread if it is a plain function."""
    if inspect.iscoroutinefunction(function):
        return await function(*arguments, **kwargs)
    value = await asyncio.to_thread(function, *arguments, **kwargs)
    return await value if inspect.isawaitable(value) else value


def _text_of(response: Any) -> str:
    """The text of verl's `ToolResponse`, or of what stands in its place. Of images and videos only the kind remains."""
    if response is None or isinstance(response, str):
        return response or ""
    fields = (
        response
        if isinstance(response, Mapping)
        else {k: getattr(response, k, None) for k in ("text", "image", "video")}
    )
    if "text" not in fields and not {"image", "video"} & set(fields):
        return json.dumps(response, ensure_ascii=False, default=str)
    media = [f"({kind})" for kind in ("image", "video") if isinstance(fields.get(kind), Sequence) and fields[kind]]
    return "\n".join(part for part in (fields.get("text"), *media) if part)
