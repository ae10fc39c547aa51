from pathlib import Path

import pytest
import yaml

from rl.errors import ToolError
from rl.tools.registry import load_toolbox

CONFIGS = Path(__file__).resolve().parents[3] / "configs" / "tools"
SCHEMA = {"type": "function", "function": {"name": "code_interpreter", "parameters": {"type": "object"}}}


def write(folder: Path, *entries: object) -> Path:
    path = folder / "tools.yaml"
    path.write_text(yaml.safe_dump({"tools": list(entries)}))
    return path


def entry(**changes: object) -> dict[str, object]:
    return {"class_name": "rl.tools.retool.ReTool", "config": {}, "tool_schema": SCHEMA, **changes}


def test_load_toolbox_reads_the_shipped_file():
    toolbox = load_toolbox(CONFIGS / "retool_config.yaml")
    assert toolbox.names == ["code_interpreter"]
    assert toolbox.schemas[0]["function"]["parameters"]["required"] == ["code"]
    assert toolbox.tools["code_interpreter"].config.rate_limit == 128


def test_load_toolbox_applies_overrides():
    url = "http://localhost:1/run_code"
    toolbox = load_toolbox(
        CONFIGS / "retool_config.yaml",
        overrides={"code_interpreter": {"sandbox_fusion_url": url, "default_timeout": 5}},
    )
    config = toolbox.tools["code_interpreter"].config
    assert (config.sandbox_fusion_url, config.default_timeout) == (url, 5.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"class_name": "mindspeed_rl.tools.retool.ReTool"}, "The class is 'rl.tools.retool.ReTool' here"),
        ({"class_name": "rl.tools.retool.ReTol"}, "Did you mean 'ReTool'"),
        ({"class_name": "rl.tools.nowhere.ReTool"}, "'rl.tools.nowhere' does not import"),
        ({"class_name": "pathlib.Path"}, "is not a tool"),
        ({"class_name": None}, "must be `package.module.Class`"),
        ({"config": {"default_timeot": 3}}, "Did you mean 'default_timeout'"),
        ({"config": {"default_timeout": "3"}}, "default_timeout: must be float, got '3'"),
        ({"config": {"rate_limit": 0}}, "rate_limit: must be above 0, got 0"),
        ({"tool_schema": {"function": {}}}, "needs `function.name`"),
        ({"tool_schema": {"function": {"name": "a", "parameters": {"type": "objekt"}}}}, "are not a JSON Schema"),
        ({"clas_name": "x"}, "Did you mean 'class_name'"),
    ],
)
def test_load_toolbox_names_file_entry_and_problem(tmp_path, changes, message):
    other = {"function": {"name": "other"}}
    path = write(tmp_path, entry(tool_schema=other), entry(**changes))
    with pytest.raises(ToolError) as error:
        load_toolbox(path)
    assert str(error.value).startswith(f"{path}: tools[2]")
    assert message in str(error.value)


def test_load_toolbox_refuses_two_tools_of_one_name(tmp_path):
    with pytest.raises(ToolError, match=r"tools\[2\]: the tool name 'code_interpreter' is taken"):
        load_toolbox(write(tmp_path, entry(), entry()))


@pytest.mark.parametrize("text", ["", "tools: []", "tools: {a: 1}", "[1]", "tools: [", "\x00"])
def test_load_toolbox_refuses_a_malformed_file(tmp_path, text):
    path = tmp_path / "tools.yaml"
    path.write_text(text)
    with pytest.raises(ToolError, match=r"tools\.yaml"):
        load_toolbox(path)


def test_load_toolbox_refuses_a_missing_file_and_an_unknown_override(tmp_path):
    with pytest.raises(ToolError, match="cannot be read"):
        load_toolbox(tmp_path / "none.yaml")
    with pytest.raises(ToolError, match="Did you mean 'code_interpreter'"):
        load_toolbox(CONFIGS / "retool_config.yaml", overrides={"code_interpretr": {}})
