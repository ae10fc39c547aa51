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
        (
            {"class_name": None},
            "must be `path/file.py:name` or `package.module:name`, or `package.module.name`, got None",
        ),
        ({"config": {"default_timeot": 3}}, "Did you mean 'default_timeout'"),
        ({"config": {"default_timeout": "3"}}, "default_timeout: must be a valid number, got '3'"),
        ({"config": {"rate_limit": 0}}, "rate_limit: must be greater than or equal to 1, got 0"),
        ({"config": {"timeout": 3, "default_timeout": 3}}, "got both timeout and default_timeout"),
        ({"config": {"type": "natve"}}, "type: must be 'native', got 'natve'"),
        ({"config": [1]}, "config: must be a mapping of settings, got [1]"),
        ({"function": "a.b:c"}, "has class_name and function. An entry has only one kind"),
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


def test_load_toolbox_names_the_kinds_of_entries(tmp_path):
    with pytest.raises(ToolError, match=r"tools\[1\]: needs class_name, function or mcp, got config"):
        load_toolbox(write(tmp_path, {"config": {}}))
    with pytest.raises(ToolError, match="Did you mean 'function'"):
        load_toolbox(write(tmp_path, {"functon": "a:b"}))


SEED_RETOOL = """
tools:
  - class_name: "rl.tools.retool.ReTool"
    config:
      sandbox_fusion_url: "http://localhost:8080/run_code"
      num_workers: 128
      enable_global_rate_limit: true
      rate_limit: 128
      default_timeout: 30
      default_language: "python"
      memory_limit_mb: 1024
      type: native
    tool_schema:
      type: "function"
      function:
        name: "code_interpreter"
        description: "A tool for executing code."
        parameters:
          type: "object"
          properties:
            code:
              type: "string"
              description: "The code to execute."
          required: ["code"]
"""
SEED_SEARCH = """
tools:
  - class_name: "rl.tools.search_tool.SearchTool"
    config:
      retrieval_service_url: "http://localhost:8080/retrieve"
      num_workers: 120
      enable_global_rate_limit: true
      rate_limit: 120
      timeout: 30
      topk: 3
      type: native
    tool_schema:
      type: "function"
      function:
        name: "search"
        description: "Searches the web for relevant information based on the given query."
        parameters:
          type: "object"
          properties:
            query_list:
              type: "array"
              item:
                type: "string"
              description: "A list of fully-formed semantic queries."
          required: ["query_list"]
"""


def test_load_toolbox_reads_the_files_of_mindspeed_users(tmp_path):
    path = tmp_path / "tools.yaml"
    path.write_text(SEED_RETOOL)
    retool = load_toolbox(path)
    assert retool.tools["code_interpreter"].config.rate_limit == 128
    assert len(retool.warnings) == 1
    assert "num_workers: has no effect, 'code_interpreter' is asynchronous" in retool.warnings[0]
    path.write_text(SEED_SEARCH)
    search = load_toolbox(path)
    assert search.tools["search"].config.default_timeout == 30
    assert search.schemas[0]["function"]["parameters"]["properties"]["query_list"]["items"] == {"type": "string"}
    assert any("an array has `item`" in warning for warning in search.warnings)
    for seed in (SEED_RETOOL, SEED_SEARCH):
        path.write_text(seed.replace('"rl.tools', '"mindspeed_rl.tools'))
        with pytest.raises(ToolError, match=r"The class is 'rl\.tools\.\w+\.\w+' here: use that"):
            load_toolbox(path)


def test_load_toolbox_warns_of_a_rate_limit_that_is_off(tmp_path):
    toolbox = load_toolbox(write(tmp_path, entry(config={"rate_limit": 3})))
    assert toolbox.warnings == [
        f"{tmp_path}/tools.yaml: tools[1].config.rate_limit: has no effect without enable_global_rate_limit. "
        "Set it to true."
    ]


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.name)
def test_shipped_files_load_without_warnings(path):
    assert load_toolbox(path).warnings == []
