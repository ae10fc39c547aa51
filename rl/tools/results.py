"""Converts what a tool returns to text, a reward and metrics. The model never reads a repr."""

from __future__ import annotations

import inspect
import json
from collections.abc import AsyncIterable, Iterable
from dataclasses import replace
from typing import Any

from pydantic_core import to_jsonable_python

from rl.tools.base import ToolOutput


def as_output(value: Any) -> ToolOutput:
    """Convert the return value of `Tool.execute` or of a function. Values other than text become JSON.

    Raises:
        TypeError: The value cannot be a result, such as a coroutine that was not awaited.
    """
    if not isinstance(value, ToolOutput):
        return ToolOutput(_as_text(value))
    reward = None if value.reward is None else _as_number("reward", value.reward)
    metrics = {str(name): _as_number(f"metrics[{name!r}]", number) for name, number in value.metrics.items()}
    return replace(value, text=_as_text(value.text), reward=reward, metrics=metrics)


def _as_text(value: Any) -> str:
    if isinstance(value, str):
        return str(value)
    if isinstance(value, bytes | bytearray):
        return value.decode("utf-8", "replace")
    if inspect.isawaitable(value) or isinstance(value, AsyncIterable):
        if inspect.iscoroutine(value):
            value.close()
        raise TypeError(f"the tool returned a {type(value).__name__}: write `async def`, and await in it")
    try:
        plain = to_jsonable_python(value, fallback=_as_plain)
    except UnicodeDecodeError:
        plain = to_jsonable_python(value, fallback=_as_plain, bytes_mode="base64")
    return json.dumps(plain, ensure_ascii=False)


def _as_plain(value: Any) -> Any:
    """Convert types that pydantic does not know: arrays, tensors, tables, other collections; anything else to text."""
    for method in ("tolist", "to_dict"):
        if callable(convert := getattr(value, method, None)):
            return convert()
    return list(value) if isinstance(value, Iterable) else str(value)


def _as_number(name: str, value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise TypeError(f"the tool's {name} must be a number, got {value!r}") from error
