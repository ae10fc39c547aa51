"""Checks of JSON values that requests of all APIs share."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Set
from typing import Any, NoReturn

from rl.errors import unknown_name
from rl.serving.errors import ApiError, bad_request

_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


def read_body(body: bytes | bytearray) -> Mapping[str, Any]:
    """Decode the body of a request.

    Raises:
        ApiError: It is not a JSON object.
    """
    try:
        given = json.loads(body, parse_constant=_refuse_constant)
        if _SURROGATE.search(body):  # half a pair has no UTF-8
            given = json.loads(json.dumps(given, ensure_ascii=False).encode("utf-8", "replace"))
    except (ValueError, RecursionError) as error:
        raise ApiError(400, f"The body is not JSON: {error}.") from error
    if not isinstance(given, Mapping):
        raise ApiError(400, f"The body must be a JSON object, got {type(given).__name__}.")
    return given


def neutral(
    given: Mapping[str, Any], known: Set[str], without_effect: Set[str], accepted: Mapping[str, tuple[Any, ...]]
) -> dict[str, Any]:
    """Leave out keys without effect and keys that are null.

    Args:
        given: The body.
        known: Keys to keep.
        without_effect: Keys that are ignored.
        accepted: Keys that are ignored with these values alone.

    Raises:
        ApiError: There is another key, or another value of such a key.
    """
    kept = {}
    for key, value in given.items():
        if value is None or key in without_effect:
            continue
        if key in known:
            kept[key] = value
        elif key not in accepted:
            raise ApiError(400, unknown_name("request", key, [*known, *accepted]), param=key)
        elif value not in accepted[key]:
            allowed = " or ".join(json.dumps(v) for v in accepted[key])
            raise bad_request(key, f"only {allowed} is supported, got {json.dumps(value):.80}. Remove the key.")
    return kept


def json_objects(key: str, values: Any) -> list[Mapping[str, Any]]:
    """A value that must be a list of JSON objects.

    Args:
        key: Where it stands, for the message.
        values: The value.

    Raises:
        ApiError: It is not.
    """
    if not isinstance(values, list) or not all(isinstance(value, Mapping) for value in values):
        raise bad_request(key, f"must be JSON objects, got {json.dumps(values):.80}.")
    return values


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")
