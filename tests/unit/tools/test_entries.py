"""The records that a tool YAML is read into."""

from __future__ import annotations

from pathlib import Path

import pytest

from rl.errors import ToolError
from rl.tools.entries import ToolEntry, read_entries


def test_read_entries_gives_a_record_of_each_kind(tmp_path: Path) -> None:
    path = tmp_path / "tools.yaml"
    path.write_text(
        "tools:\n"
        "  - {class_name: a.B, config: {num_workers: 2}, tool_schema: {type: function}}\n"
        "  - {function: 'c.d:e'}\n"
        "  - {mcp: {command: run}, config: null}\n"
    )
    assert read_entries(path) == [
        ToolEntry(f"{path}: tools[1]", "class_name", "a.B", {"num_workers": 2}, {"type": "function"}),
        ToolEntry(f"{path}: tools[2]", "function", "c.d:e", {}, None),
        ToolEntry(f"{path}: tools[3]", "mcp", {"command": "run"}, {}, None),
    ]


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("{function: 'a:b', mcp: {}}", "tools[1]: has function and mcp. An entry is of one kind: split it."),
        ("{function: 'a:b', tool_schema: {}}", "tools[1]: unknown name 'tool_schema'."),
        ("{function: 'a:b', config: [1]}", "tools[1].config: must be a mapping of settings, got [1]."),
        ("{}", "tools[1]: needs class_name, function or mcp, got nothing."),
    ],
)
def test_read_entries_names_what_is_wrong(tmp_path: Path, entry: str, message: str) -> None:
    (tmp_path / "tools.yaml").write_text(f"tools: [{entry}]\n")
    with pytest.raises(ToolError) as raised:
        read_entries(tmp_path / "tools.yaml")
    assert message in str(raised.value)
