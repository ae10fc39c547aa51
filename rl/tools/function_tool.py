"""A typed Python function as a tool. Its schema comes from its signature and docstring."""

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
    """Calls a function with the arguments of a call, converted to the types in its signature.

    A coroutine function runs on the event loop, any other in a thread. The function returns text, a `ToolOutput`, or
    any other value, which the model reads as JSON.

    Raises:
        ToolError: The signature cannot become a schema; see `function_schema`.
    """

    def __init__(self, config: ToolConfig, function: Callable[..., Any]) -> None:
        super().__init__(config, function_schema(function))
        self._function = validate_call(function)
        self._is_async = inspect.iscoroutinefunction(function)

    @property
    def is_async(self) -> bool:
        """Whether the function is a coroutine function."""
        return self._is_async

    def execute(self, state: Any, arguments: dict[str, Any]) -> Any:
        """Call the function. The result of a coroutine function is awaitable."""
        return self._function(**arguments)


def load_function_tool(where: str, path: Any, config: ToolConfig) -> FunctionTool:
    """Import a function and make a tool of it.

    Args:
        where: The key of the YAML, for messages.
        path: `package.module:name` or `path/file.py:name`.
        config: The tool's settings.

    Raises:
        ToolError: There is no such function, or its signature cannot become a schema.
    """
    function = import_named(where, path, "function", inspect.isfunction, "A class goes under class_name.")
    try:
        return FunctionTool(config, function)
    except ToolError as error:
        raise ToolError(f"{where}: {error}") from error


def function_schema(function: Callable[..., Any]) -> dict[str, Any]:
    """Describe a function in OpenAI's form.

    Parameters and their types come from the signature (all types for which pydantic has a JSON schema), descriptions
    from the docstring in Google, NumPy or Sphinx style.

    Args:
        function: Every parameter must have a type, and must be usable as a keyword argument.

    Returns:
        `{"type": "function", "function": {name, description, parameters}}`.

    Raises:
        ToolError: A parameter does not meet these conditions, or its type has no JSON schema.
    """
    name = function.__name__
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise ToolError(f"{name}({parameter}): must be usable by keyword, got {parameter.kind.description}.")
        if parameter.annotation is parameter.empty:
            raise ToolError(f"{name}({parameter}): has no type. Annotate it, because the schema comes from it.")
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
    """Remove the titles that pydantic adds. A field with the name title has a schema instead of a text."""
    if isinstance(schema, dict):
        return {
            key: _without_titles(value) for key, value in schema.items() if key != "title" or not isinstance(value, str)
        }
    return [_without_titles(part) for part in schema] if isinstance(schema, list) else schema
