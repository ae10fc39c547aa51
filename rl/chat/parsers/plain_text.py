"""Arguments written as plain text in a call: their types come from the tool's JSON Schema."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from rl.chat.parsers.json_calls import decode_json, encode_json
from rl.errors import ConfigError

_PYTHON_LITERALS = {"None": None}
"""Python's spelling of a JSON literal, as templates print it; `_READERS` handles booleans."""
_CHOICES = ("anyOf", "oneOf", "allOf")
_JSON_TYPES = {
    type(None): "null",
    bool: "boolean",
    int: "integer",
    float: "number",
    str: "string",
    list: "array",
    dict: "object",
}
_BOOLEANS = {"true": True, "1": True, "false": False, "0": False}


def parameters_of(tool: Mapping[str, Any]) -> dict[str, Any]:
    """The properties of a tool's JSON Schema by name, with `$ref`s to its `$defs` resolved."""
    schema = tool["function"].get("parameters") or {}
    definitions = schema.get("$defs") or {}
    return {name: _without_references(p, definitions) for name, p in (schema.get("properties") or {}).items()}


def to_value(text: str, schema: Mapping[str, Any]) -> Any:
    """Read an argument written as text as the first of the schema's types, in the order of `_READERS`, that fits.

    If the schema does not allow text, any JSON value is read, so that the check against the schema can name it. A text
    that cannot be read stays a text; so does every text if the schema names no type.

    Args:
        text: As written.
        schema: The argument's schema; empty if unknown.

    Source: `coerce_to_schema_type` of vLLM (vllm/tool_parsers/utils.py), which serves what is trained here.
    """
    types = _types(schema)
    for kind, read in _READERS.items():
        if kind in types:
            try:
                return read(text)
            except (ValueError, RecursionError):
                continue
    if not types or "string" in types:
        return text
    try:
        return _PYTHON_LITERALS[text.strip()] if text.strip() in _PYTHON_LITERALS else _read_json(text)
    except (ValueError, RecursionError):
        return text


def to_text(value: Any) -> str:
    """The text of an argument: a text as it is, everything else as JSON."""
    return value if isinstance(value, str) else encode_json(value)


@dataclass(slots=True, frozen=True)
class OneTextArgument:
    """A tool that is called with a single text."""

    tool: str
    argument: str
    schema: Mapping[str, Any] = field(default_factory=dict)
    """The argument's schema. For an array, the text is its only element, or a whole array in JSON."""

    def to_arguments(self, text: str) -> dict[str, Any]:
        """The arguments of a call with this text."""
        value = to_value(text, self.schema)
        is_list = isinstance(value, list) or "array" not in _types(self.schema)
        return {self.argument: value if is_list else [text]}

    def to_text(self, arguments: Mapping[str, Any]) -> str:
        """The text that gives these arguments."""
        value = arguments.get(self.argument, "")
        text = value[0] if isinstance(value, list) and len(value) == 1 else value
        if isinstance(text, str) and self.to_arguments(text) == {self.argument: value}:
            return text
        return to_text(value)


def one_text_argument(tool: Mapping[str, Any], format_name: str) -> OneTextArgument:
    """Find the argument that takes the text: the only required one, or the only one.

    Args:
        tool: In OpenAI's form.
        format_name: Name of the parser, for the error.

    Raises:
        ConfigError: There is no such argument.
    """
    function = tool["function"]
    parameters = parameters_of(tool)
    candidates = [name for name in (function.get("parameters") or {}).get("required") or () if name in parameters]
    candidates = candidates or list(parameters)
    if len(candidates) != 1:
        raise ConfigError(
            f"rl_config.tool_parser_format: {format_name} gives a tool one text, but '{function['name']}' takes "
            f"{', '.join(candidates) or 'nothing'}. Set hermes, or a tool with one required argument."
        )
    return OneTextArgument(function["name"], candidates[0], parameters[candidates[0]])


def _read_null(text: str) -> None:
    if text.lower() != "null":
        raise ValueError(text)


def _read_number(text: str) -> int | float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(text)
    return int(value) if value.is_integer() else value


def _read_boolean(text: str) -> bool:
    literal = text.strip().lower()
    if literal not in _BOOLEANS:
        raise ValueError(text)
    return _BOOLEANS[literal]


def _read_json(text: str) -> Any:
    text = text.strip()
    value, end = decode_json(text)
    if end < len(text):
        raise ValueError(text)
    return value


_READERS: dict[str, Callable[[str], Any]] = {
    "null": _read_null,
    "integer": int,
    "number": _read_number,
    "boolean": _read_boolean,
    "object": _read_json,
    "array": _read_json,
}
"""By type of JSON Schema, in the order in which they are tried."""


def _without_references(schema: Any, definitions: Mapping[str, Any], depth: int = 8) -> Any:
    """An argument's schema with `$ref`s replaced by their definitions, as deep as its types need."""
    if not isinstance(schema, dict) or depth == 0:
        return {}
    found = definitions.get(str(schema["$ref"]).rpartition("/")[2]) if "$ref" in schema else None
    if found is not None:
        return _without_references(found, definitions, depth - 1)
    choices = {key: schema[key] for key in _CHOICES if isinstance(schema.get(key), list)}
    return schema | {
        key: [_without_references(choice, definitions, depth - 1) for choice in parts] for key, parts in choices.items()
    }


def _types(schema: Mapping[str, Any]) -> set[str]:
    """The JSON types that a schema names at its top, by its `enum`, and inside `anyOf`, `oneOf` and `allOf`."""
    named = schema.get("type") or []
    types = {named} if isinstance(named, str) else set(named)
    types |= {_JSON_TYPES[type(value)] for value in schema.get("enum") or () if type(value) in _JSON_TYPES}
    for key in _CHOICES:
        for choice in schema.get(key) or ():
            types |= _types(choice) or {"string"}
    return types
