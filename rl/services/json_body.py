"""JSON from strangers. Standard library alone."""

from __future__ import annotations

import json
import reprlib
from typing import Any


class BodyError(ValueError):
    """The body is not JSON; answered with HTTP 400."""


def decode(body: bytes | bytearray) -> Any:
    """Decode JSON.

    Args:
        body: Any bytes.

    Returns:
        What they say.

    Raises:
        BodyError: It is not JSON, nests too deep, or has a number of too many digits.
    """
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:  # the latter for brackets in brackets
        raise BodyError(f"the body is not JSON: {error}") from error


def show(value: Any) -> str:
    """A short text for a wrong value, whatever its size and depth."""
    return f"{reprlib.repr(value):.50}"
