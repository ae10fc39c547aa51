"""What a tool returns and what the model reads of it, alike for functions and for classes."""

from __future__ import annotations

import asyncio
import datetime
import decimal
import enum
from collections import Counter, deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import BaseModel

from rl.tools.base import Tool, ToolConfig, ToolOutput
from rl.tools.function_tool import FunctionTool
from rl.tools.registry import Toolbox
from rl.tools.results import as_output
from rl.types import ToolCall, ToolResult, ToolStatus


@dataclass
class Point:
    x: int
    names: set[str]


class Model(BaseModel):
    x: int = 1


class Colour(enum.Enum):
    RED = "red"


class Table:
    """As pandas has them."""

    def to_dict(self) -> dict[str, list[int]]:
        return {"a": [1, 2]}


VALUES: list[tuple[Any, str]] = [
    ("text", "text"),
    ("", ""),
    (None, "null"),
    (True, "true"),
    (0.5, "0.5"),
    ({"a": "é", "b": None}, '{"a": "é", "b": null}'),
    ({1: 2}, '{"1": 2}'),
    ([1, "a"], '[1, "a"]'),
    ((1, 2), "[1, 2]"),
    ({3}, "[3]"),
    (range(3), "[0, 1, 2]"),
    (deque([1]), "[1]"),
    (Counter("aab"), '{"a": 2, "b": 1}'),
    ({"a": 1}.keys(), '["a"]'),
    (b"caf\xc3\xa9", "café"),
    (b"\xff!", "�!"),
    ({"a": b"b"}, '{"a": "b"}'),
    ({"a": b"\xff"}, '{"a": "_w=="}'),
    (Point(1, {"p"}), '{"x": 1, "names": ["p"]}'),
    (Model(), '{"x": 1}'),
    ([Model()], '[{"x": 1}]'),
    (Colour.RED, '"red"'),
    (datetime.date(2026, 1, 2), '"2026-01-02"'),
    (decimal.Decimal("1.50"), '"1.50"'),
    (Path("/a/b"), '"/a/b"'),
    (np.float32(1.5), "1.5"),
    (np.int64(3), "3"),
    (np.bool_(True), "true"),
    ({"a": np.array([[1, 2]])}, '{"a": [[1, 2]]}'),
    (torch.tensor([1.5]), "[1.5]"),
    (torch.tensor(2), "2"),
    (Table(), '{"a": [1, 2]}'),
    (ValueError("no such row"), '"no such row"'),
    (ToolOutput("text"), "text"),
    (ToolOutput({"a": 1}), '{"a": 1}'),  # type: ignore[arg-type]
]


@pytest.mark.parametrize(("value", "text"), VALUES, ids=range(len(VALUES)))
def test_what_a_tool_returns_is_text_or_json(value: Any, text: str):
    assert as_output(value).text == text


def test_numbers_of_a_result_are_plain_floats():
    output = as_output(ToolOutput("", reward=np.float32(0.5), metrics={"n": np.int64(2), "t": torch.tensor(3.0)}))  # type: ignore[arg-type,dict-item]
    assert (output.reward, output.metrics) == (0.5, {"n": 2.0, "t": 3.0})
    assert {type(number) for number in (output.reward, *output.metrics.values())} == {float}


class Returning(Tool):
    def __init__(self, value: Any) -> None:
        super().__init__(ToolConfig(), {"type": "function", "function": {"name": "tool"}})
        self.value = value

    def execute(self, state: str, arguments: dict[str, Any]) -> Any:
        return self.value


class ReturningLater(Returning):
    async def execute(self, state: str, arguments: dict[str, Any]) -> Any:
        return self.value


def function_tool(value: Any) -> Tool:
    def tool() -> Any:
        """Return."""
        return value

    return FunctionTool(ToolConfig(), tool)


async def result_of(tool: Tool) -> ToolResult:
    session = Toolbox([tool]).open_session("p/0")
    result = await session.execute(ToolCall("tool", {}))
    await session.close()
    return result


@pytest.mark.parametrize("make", [Returning, ReturningLater, function_tool])
async def test_classes_and_functions_answer_alike(make: Any):
    result = await result_of(make({"point": Point(1, {"p"})}))
    assert (result.status, result.text) == (ToolStatus.OK, '{"point": {"x": 1, "names": ["p"]}}')
    wrong = await result_of(make(ToolOutput("", metrics={"n": "many"})))  # type: ignore[dict-item]
    assert (wrong.status, wrong.text) == (
        ToolStatus.ERROR,
        "Error: TypeError: the tool's metrics['n'] must be a number, got 'many'",
    )


async def stream():
    yield 1


@pytest.mark.parametrize(("value", "kind"), [(lambda: asyncio.sleep(0), "coroutine"), (stream, "async_generator")])
async def test_a_plain_function_that_returns_what_must_be_awaited_is_an_error(value: Any, kind: str):
    result = await result_of(Returning(value()))
    assert result.status is ToolStatus.ERROR
    assert f"TypeError: the tool returned a {kind}: write `async def`, and await in it" in result.text
