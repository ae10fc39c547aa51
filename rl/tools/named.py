"""Imports the class or the function that an entry of the tool YAML names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rl.config.imports import import_place
from rl.errors import ToolError, unknown_name


def import_named(
    where: str, given: Any, kind: str, is_kind: Callable[[Any], bool], advice: str, *, may_be_dotted: bool = False
) -> Any:
    """Import a class or a function.

    Args:
        where: The key of the YAML, for messages.
        given: `path/file.py:name` or `package.module:name`.
        kind: The kind of object to find, in one word.
        is_kind: Whether an object is of that kind. Also selects the choices that an error lists.
        advice: What to do if the object is of another kind.
        may_be_dotted: Accept `package.module.name` too.

    Raises:
        ToolError: The path is malformed, does not import, or the object is of another kind.
    """
    place, colon, name = given.rpartition(":") if isinstance(given, str) else ("", "", "")
    if isinstance(given, str) and may_be_dotted and not colon:
        place, _, name = given.rpartition(".")
    if not place or not name or name == "py":
        dotted = ", or `package.module.name`" if may_be_dotted else ""
        raise ToolError(f"{where}: must be `path/file.py:name` or `package.module:name`{dotted}, got {given!r}.")
    try:
        module = import_place(place)
    except Exception as error:  # the user's file may raise anything
        reason = f"{type(error).__name__}: {error}"
        hint = "" if colon else f" A file of your own is given as `path/{place.rpartition('.')[2]}.py:{name}`."
        raise ToolError(
            f"{where}: '{place}' does not import: {reason}. Check the path and what it needs.{hint}"
        ) from error
    found = getattr(module, name, None)
    if found is None:
        choices = [key for key, v in vars(module).items() if is_kind(v) and v.__module__ == module.__name__]
        raise ToolError(unknown_name(f"{where} in {place}", name, choices))
    if not is_kind(found):
        raise ToolError(f"{where}: '{given}' is not a {kind}, got {found!r}. {advice}")
    return found
