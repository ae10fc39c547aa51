"""A typed Python function as a tool: its schema comes from its signature and docstring."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from docstring_parser import parse as parse_docstring
from pydantic import TypeAdapter, validate_call
from pydantic.errors import PydanticUserError

from rl.errors import ToolError
from rl.tools.base import Tool, ToolConfig
from rl.tools.named import import_named


class FunctionTool(Tool):
    """Calls a function with the arguments of a call, brought to the types that its signature names.

    A coroutine function runs on the event loop, any other in a thread. Text and a `ToolOutput` are results as they
    are; whatever else it returns reaches the model as JSON.

    Args:
        config: Limits.
        function: Every parameter has a type and can be given by name.

    Raises:
        ToolError: A parameter is neither.
    """

    def __init__(self, config: ToolConfig, function: Callable[..., Any]) -> None:
        super().__init__(config, function_schema(function))
        self._function = validate_call(function)
        self._is_async = inspect.iscoroutinefunction(function)

    @property
    def is_async(self) -> bool:
        """As the function is."""
        return self._is_async

    def execute(self, state: Any, arguments: dict[str, Any]) -> Any:
        """Call the function; of a coroutine function the result is awaitable."""
        return self._function(**arguments)


def load_function_tool(where: str, path: Any, config: ToolConfig) -> FunctionTool:
    """Import a function and make a tool of it.

    Args:
        where: The key of the YAML, for messages.
        path: `package.module:name` or `path/file.py:name`.
        config: Limits.

    Raises:
        ToolError: There is no such function, or its signature cannot be a schema.
    """
    function = import_named(where, path, "function", inspect.isfunction, "A class goes under class_name.")
    try:
        return FunctionTool(config, function)
    except ToolError as error:
        raise ToolError(f"{where}: {error}") from error


def function_schema(function: Callable[..., Any]) -> dict[str, Any]:
    """Describe a function in OpenAI's form.

    Parameters and their types come from the signature (whatever pydantic has a JSON schema for), descriptions from the
    docstring in Google's, NumPy's or Sphinx's style.

    Args:
        function: Every parameter has a type and can be given by name.

    Returns:
        `{"type": "function", "function": {name, description, parameters}}`.

    Raises:
        ToolError: A parameter is neither, or its type has no JSON schema.
    """
    name = function.__name__
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise ToolError(f"{name}({parameter}): must be a parameter with a name, got {parameter.kind.description}.")
        if parameter.annotation is parameter.empty:
            raise ToolError(f"{name}({parameter}): has no type. Annotate it: the model's schema is made from it.")
    try:
        adapter: TypeAdapter[Any] = TypeAdapter(function)  # type: ignore[arg-type]  # pydantic takes functions too
        parameters = _without_titles(adapter.json_schema())
    except (PydanticUserError, NameError) as error:
        raise ToolError(f"{name}: no JSON schema for its parameters: {error}. Use plain types.") from error
    parameters.setdefault("properties", {})
    docstring = parse_docstring(inspect.getdoc(function) or "")
    for documented in docstring.params:
        if documented.arg_name in parameters["properties"] and documented.description:
            parameters["properties"][documented.arg_name].setdefault("description", documented.description)
    description = "\n\n".join(part for part in (docstring.short_description, docstring.long_description) if part)
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}


def _without_titles(schema: Any) -> Any:
    """Leave out the titles that pydantic makes from the names; a field that is called title has a schema, no text."""
    if isinstance(schema, dict):
        return {
            key: _without_titles(value) for key, value in schema.items() if key != "title" or not isinstance(value, str)
        }
    return [_without_titles(part) for part in schema] if isinstance(schema, list) else schema
