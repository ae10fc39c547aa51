from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from rl.errors import ToolError
from rl.tools.base import ToolConfig, ToolOutput
from rl.tools.function_tool import FunctionTool, function_schema
from rl.tools.registry import Toolbox, load_toolbox
from rl.types import ToolCall, ToolResult, ToolStatus

CONFIGS = Path(__file__).resolve().parents[3] / "configs" / "tools"


@dataclass
class Place:
    latitude: float
    longitude: float


def weather(
    place: Place, days: int = 1, unit: Literal["C", "F"] = "C", stations: list[str] | None = None
) -> dict[str, object]:
    """Forecast the weather.

    From the nearest station.

    Args:
        place: Where.
        days: How far ahead,
            at most a week.
        unit: Of the temperature.
    """
    assert isinstance(place, Place)
    return {"latitude": place.latitude, "days": days, "unit": unit}


async def stop_here(title: str) -> ToolOutput:
    """End the task.

    :param title: Of the report.
    """
    return ToolOutput(title, reward=1.0, stop=True)


def fail() -> None:
    """Fail."""
    raise OSError("no such station")


async def run(function, **arguments: object) -> ToolResult:
    toolbox = Toolbox([FunctionTool(ToolConfig(), function)])
    session = toolbox.open_session("p/0")
    try:
        return await session.execute(ToolCall(function.__name__, arguments))
    finally:
        await session.close()
        await toolbox.close()


def test_schema_comes_from_signature_and_docstring():
    function = function_schema(weather)["function"]
    assert function["name"] == "weather"
    assert function["description"] == "Forecast the weather.\n\nFrom the nearest station."
    parameters = function["parameters"]
    assert parameters["required"] == ["place"]
    assert parameters["properties"]["days"] == {
        "type": "integer", "default": 1, "description": "How far ahead,\nat most a week.",
    }  # fmt: skip
    assert parameters["properties"]["unit"]["enum"] == ["C", "F"]
    assert parameters["properties"]["stations"]["anyOf"] == [
        {"type": "array", "items": {"type": "string"}},
        {"type": "null"},
    ]
    assert parameters["properties"]["place"]["description"] == "Where."
    assert "title" not in str(parameters)


def test_schema_keeps_a_parameter_called_title():
    parameters = function_schema(stop_here)["function"]["parameters"]
    assert parameters["properties"] == {"title": {"type": "string", "description": "Of the report."}}


async def test_function_gets_the_types_it_names_and_its_value_is_json():
    result = await run(weather, place={"latitude": 48, "longitude": 11.5}, unit="F")
    assert (result.status, result.text) == (ToolStatus.OK, '{"latitude": 48.0, "days": 1, "unit": "F"}')


@pytest.mark.parametrize(
    "arguments",
    [{}, {"place": {"latitude": 1}}, {"place": {"latitude": 1, "longitude": 2}, "unit": "K"}, {"place": 1, "more": 2}],
)
async def test_arguments_are_checked_before_the_function_is_called(arguments):
    assert (await run(weather, **arguments)).status == ToolStatus.INVALID_ARGUMENTS


async def test_coroutine_functions_run_on_the_loop_and_may_stop_and_reward():
    result = await run(stop_here, title="Done")
    assert (result.text, result.reward, result.stop) == ("Done", 1.0, True)


async def test_what_a_function_raises_is_an_error_result():
    result = await run(fail)
    assert (result.status, result.text) == (ToolStatus.ERROR, "Error: OSError: no such station")


def untyped(a):
    """Do."""


def positional(a: int, /) -> None:
    """Do."""


def variadic(*a: int) -> None:
    """Do."""


def strange(a: Toolbox) -> None:
    """Do."""


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("untyped", r"untyped\(a\): has no type"),
        ("positional", "must be usable by keyword, got positional-only"),
        ("variadic", "got variadic positional"),
        ("strange", "strange: no JSON schema"),
        ("wether", "Did you mean 'weather'"),
        ("Place", "is not a function"),
    ],
)
def test_functions_that_cannot_be_tools_are_refused(tmp_path, name, message):
    path = tmp_path / "tools.yaml"
    path.write_text(f"tools: [{{function: '{__name__}:{name}'}}]")
    with pytest.raises(ToolError, match=message) as error:
        load_toolbox(path)
    assert str(error.value).startswith(f"{path}: tools[1].function")


@pytest.mark.parametrize(("given", "message"), [("nowhere:f", "does not import"), ("weather", "package.module:name")])
def test_paths_that_name_no_function_are_refused(tmp_path, given, message):
    path = tmp_path / "tools.yaml"
    path.write_text(f"tools: [{{function: '{given}'}}]")
    with pytest.raises(ToolError, match=message):
        load_toolbox(path)


async def test_the_shipped_calculator_calculates():
    toolbox = load_toolbox(CONFIGS / "calculator.yaml")
    session = toolbox.open_session("p/0")
    right = await session.execute(ToolCall("calculator", {"expression": "2 ^ 8 - 1"}))
    wrong = await session.execute(ToolCall("calculator", {"expression": "2 +"}))
    await session.close()
    assert (right.text, right.status) == ("255", ToolStatus.OK)
    assert wrong.status == ToolStatus.ERROR
    assert toolbox.warnings == []
