"""Decodes and checks the JSON bodies of requests, which may be malformed or hostile."""

from __future__ import annotations

import json
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from rl.errors import first_problem

T = TypeVar("T")


class BodyError(ValueError):
    """The body is not JSON; answered with HTTP 400."""


class RequestError(ValueError):
    """A field is missing or wrong; answered with HTTP 422."""


def decode(body: bytes | bytearray) -> Any:
    """Decode JSON.

    Raises:
        BodyError: It is not JSON, is nested too deeply, or has a number with too many digits.
    """
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise BodyError(f"the body is not JSON: {error}") from error


def check(adapter: TypeAdapter[T], body: Any) -> T:
    """Check a decoded body. Unknown fields are ignored, and null means the default.

    Args:
        adapter: The adapter of the request's dataclass.
        body: Decoded JSON.

    Raises:
        RequestError: The body is not an object, or a field is missing or wrong; names the first one.
    """
    if not isinstance(body, dict):
        raise RequestError("the body must be a JSON object")
    try:
        return adapter.validate_python({name: value for name, value in body.items() if value is not None})
    except ValidationError as error:
        raise RequestError(first_problem(error)) from None
