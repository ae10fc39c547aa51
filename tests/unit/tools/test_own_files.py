"""A tool in a file of the user's own, beside a configuration, given in each form that there is."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from rl.errors import ToolError
from rl.tools.registry import load_toolbox
from rl.types import ToolCall
from tests.unit.config.test_imports import clean_imports, write

__all__ = ["clean_imports"]

CODE = '''
from __future__ import annotations
from dataclasses import dataclass
from units_of_mine import FACTOR
from rl.tools.base import Tool, ToolConfig

@dataclass
class ScaleConfig(ToolConfig):
    more: float = 0.0

class Scale(Tool):
    config_class = ScaleConfig

    async def execute(self, state, arguments):
        return {"value": FACTOR * arguments["value"] + self.config.more}

@dataclass
class Size:
    value: float

def scale(size: Size) -> dict:
    """Scale."""
    return {"value": FACTOR * size.value}
'''
SCHEMA = {"type": "function", "function": {"name": "scale", "parameters": {"type": "object"}}}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write(tmp_path / "project" / "my_tools.py", CODE)
    write(tmp_path / "project" / "units_of_mine.py", "FACTOR = 10\n")
    monkeypatch.chdir(tmp_path / "project")
    return tmp_path / "project"


def load(folder: Path, **entry: object):
    write(folder / "tools" / "tools.yaml", yaml.safe_dump({"tools": [entry]}))
    return load_toolbox(folder / "tools" / "tools.yaml")


@pytest.mark.parametrize("class_name", ["my_tools.py:Scale", "./my_tools.py:Scale", "my_tools:Scale", "my_tools.Scale"])
async def test_a_class_is_found_in_ones_own_file(folder: Path, class_name: str):
    toolbox = load(folder, class_name=class_name, config={"more": 1}, tool_schema=SCHEMA)
    session = toolbox.open_session("p/0")
    assert (await session.execute(ToolCall("scale", {"value": 2}))).text == '{"value": 21.0}'
    await session.close()


@pytest.mark.parametrize("function", ["my_tools.py:scale", "my_tools:scale"])
async def test_a_function_is_found_in_ones_own_file(folder: Path, function: str):
    toolbox = load(folder, function=function)
    session = toolbox.open_session("p/0")
    assert (await session.execute(ToolCall("scale", {"size": {"value": 2}}))).text == '{"value": 20.0}'
    await session.close()


FORMS = "must be `path/file.py:name` or `package.module:name`"


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("class_name", "my_tool.py:Scale", "my_tool.py, nor one of this name beside the configuration. Check the path"),
        ("class_name", "my_tool.Scale", "A file of your own is given as `path/my_tool.py:Scale`."),
        (
            "class_name",
            "my_tools.py:Scales",
            "in my_tools.py: unknown name 'Scales'. Did you mean 'Scale'? Known: Scale.",
        ),
        ("class_name", "my_tools.py:scale", "'my_tools.py:scale' is not a tool, got <function scale at "),
        ("class_name", "my_tools.py", f"{FORMS}, or `package.module.name`"),
        (
            "function",
            "my_tools.py:Scale",
            "'my_tools.py:Scale' is not a function, got <class 'my_tools.Scale'>. A class",
        ),
        ("function", "my_tools.py:scal", "Did you mean 'scale'? Known: scale."),
        ("function", "my_tools.scale", f"{FORMS}, got 'my_tools.scale'"),
        ("function", ["a"], f"{FORMS}, got ['a']"),
    ],
)
def test_what_is_not_in_ones_own_file_is_named(folder: Path, key: str, value: object, message: str):
    schema = {"tool_schema": SCHEMA} if key == "class_name" else {}
    with pytest.raises(ToolError) as error:
        load(folder, **{key: value}, **schema)
    assert message in str(error.value)


def test_a_file_that_raises_is_named_with_what_it_raised(folder: Path):
    write(folder / "broken_tools.py", "import nothing_of_that_name\n")
    with pytest.raises(
        ToolError, match=r"'broken_tools.py' does not import: ModuleNotFoundError: No module named 'noth"
    ):
        load(folder, function="broken_tools.py:f")
