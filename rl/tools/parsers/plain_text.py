"""Arguments that stand in a call as plain text: their types come from the tool's JSON Schema."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rl.errors import ConfigError
from rl.tools.parsers.json_calls import decode_json, encode_json

_PYTHON_LITERALS = {"True": "true", "False": "false", "None": "null"}
"""How chat templates write JSON's literals where they print the value itself."""


def parameters_of(tool: Mapping[str, Any]) -> dict[str, Any]:
    """The properties of a tool's JSON Schema by name, `$ref`s to its `$defs` followed."""
    schema = tool["function"].get("parameters") or {}
    definitions = schema.get("$defs") or {}
    properties = schema.get("properties") or {}
    return {name: definitions.get(str(p.get("$ref", "")).rpartition("/")[2], p) for name, p in properties.items()}


def to_value(text: str, schema: Mapping[str, Any]) -> Any:
    """The value of an argument written as text.

    Args:
        text: As written.
        schema: Of the argument; empty where it is not known.

    Returns:
        The text itself where the schema allows a text or says nothing; else the JSON value it spells, or the text where
        it spells none, for the check against the schema to name.
    """
    types = _types(schema)
    if not types or "string" in types:
        return text
    literal = text.strip()
    literal = _PYTHON_LITERALS.get(literal, literal)
    try:
        value, end = decode_json(literal)
    except (ValueError, RecursionError):
        return text
    return value if end == len(literal) else text


def to_text(value: Any) -> str:
    """The text of an argument: a text as it is, everything else as JSON."""
    return value if isinstance(value, str) else encode_json(value)


@dataclass(slots=True, frozen=True)
class OneTextArgument:
    """A tool that is called with a single text."""

    tool: str
    argument: str
    schema: Mapping[str, Any] = field(default_factory=dict)
    """Of the argument. Where it is an array, the text is its only element, or a whole array spelled in JSON."""

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
        format_name: Of the parser, for the error.

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


def _types(schema: Mapping[str, Any]) -> set[str]:
    """The JSON types that a schema names at its top, inside `anyOf` and `oneOf` too."""
    named = schema.get("type") or []
    types = {named} if isinstance(named, str) else set(named)
    for key in ("anyOf", "oneOf"):
        for choice in schema.get(key) or ():
            types |= _types(choice)
    return types
