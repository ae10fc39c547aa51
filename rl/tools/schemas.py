"""Checks the schema of a tool, and the arguments of calls against it."""

from __future__ import annotations

from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError, best_match

from rl.errors import ToolError

_SCHEMAS_IN = ("items", "additionalProperties", "not", "if", "then", "else", "contains", "propertyNames")
_LISTS_IN = ("anyOf", "oneOf", "allOf", "prefixItems")
_TABLES_IN = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
"""Keywords of JSON Schema whose value is a schema, a list of schemas, or a mapping to schemas."""


class ArgumentCheck:
    """Checks the arguments of calls against a tool's schema, which is in OpenAI's form."""

    def __init__(self, schema: dict[str, Any]) -> None:
        self._name: str = schema["function"]["name"]
        self._parameters: dict[str, Any] = schema["function"].get("parameters", {})
        self._validator = Draft202012Validator(self._parameters)

    def problem(self, arguments: dict[str, Any]) -> str | None:
        """What is wrong with the arguments, for the model; None if they satisfy the schema."""
        error = best_match(self._validator.iter_errors(arguments))
        if error is None:
            return None
        where = "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in error.absolute_path)
        place = f" at arguments{where}" if where else ""
        return f"Error: invalid arguments for '{self._name}'{place}: {error.message}. Fields: {self._fields()}."

    def _fields(self) -> str:
        required = set(self._parameters.get("required", []))
        fields = [
            f"{name} ({_type_of(field)}{', required' if name in required else ''})"
            for name, field in self._parameters.get("properties", {}).items()
        ]
        return ", ".join(fields) or "none"


def checked_schema(where: str, schema: Any) -> tuple[dict[str, Any], list[str]]:
    """Check a tool's schema in a YAML file, and correct `item` of an array to `items`.

    Args:
        where: The entry, for messages.
        schema: `{"type": "function", "function": {name, description, parameters}}`.

    Returns:
        The schema, and a warning for each correction.

    Raises:
        ToolError: The schema is invalid.
    """
    function = schema.get("function") if isinstance(schema, dict) else None
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(function, dict) or not isinstance(name, str) or not name:
        raise ToolError(f"{where}: needs `function.name`, got {schema!r}. Use OpenAI's function schema.")
    warnings: list[str] = []
    parameters = _with_items(function.get("parameters", {}), f"{where}.function.parameters", warnings)
    try:
        Draft202012Validator.check_schema(parameters)
    except SchemaError as error:
        raise ToolError(
            f"{where}: parameters of '{name}' are not a JSON Schema: {error.message}. Correct it."
        ) from error
    corrected = {**function, "parameters": parameters} if "parameters" in function else function
    return {"type": schema.get("type", "function"), "function": corrected}, warnings


def _with_items(schema: Any, where: str, warnings: list[str]) -> Any:
    """The schema with `items` instead of `item` in arrays."""
    if not isinstance(schema, dict):
        return schema
    fixed = dict(schema)
    if fixed.get("type") == "array" and "items" not in fixed and isinstance(fixed.get("item"), dict):
        warnings.append(f"{where}: an array has `item`, which has no meaning. Read as `items`; correct it.")
        fixed = {("items" if key == "item" else key): value for key, value in fixed.items()}
    for key, value in fixed.items():
        place = f"{where}.{key}"
        if key in _SCHEMAS_IN:
            fixed[key] = _with_items(value, place, warnings)
        elif key in _LISTS_IN and isinstance(value, list):
            fixed[key] = [_with_items(part, f"{place}[{i}]", warnings) for i, part in enumerate(value)]
        elif key in _TABLES_IN and isinstance(value, dict):
            fixed[key] = {name: _with_items(part, f"{place}.{name}", warnings) for name, part in value.items()}
    return fixed


def _type_of(field: Any) -> str:
    kind = field.get("type", "any") if isinstance(field, dict) else "any"
    return " or ".join(map(str, kind)) if isinstance(kind, list) else str(kind)
