"""Tests with a real server on its standard input and output."""

import asyncio
import sys
from pathlib import Path

import pytest
import yaml

from rl.errors import ToolError
from rl.tools.registry import Toolbox, load_toolbox
from rl.types import ToolCall, ToolStatus

SERVER = '''
import os
from mcp.server.mcpserver import MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp.types import (
    BlobResourceContents, EmbeddedResource, ImageContent, ResourceLink, TextContent, TextResourceContents,
)

server = MCPServer("tiny")
total = 0

@server.tool()
def add(number: int) -> int:
    """Add to the total."""
    global total
    total += number
    return total

@server.tool()
def fail() -> str:
    """Fail."""
    raise ToolError("cannot")

@server.tool()
def mixed() -> list:
    """Answer with every kind of content."""
    return [
        TextContent(type="text", text="words"),
        ImageContent(type="image", data="aGk=", mime_type="image/png"),
        EmbeddedResource(type="resource", resource=TextResourceContents(uri="file:///a.txt", text="of a file")),
        EmbeddedResource(type="resource", resource=BlobResourceContents(uri="file:///a.bin", blob="aGk=")),
        ResourceLink(type="resource_link", name="page", uri="https://example.org/"),
    ]

@server.tool()
def die() -> str:
    """End the server."""
    os._exit(1)

server.run("stdio")
'''


@pytest.fixture(scope="module")
def toolbox_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mcp")
    (folder / "server.py").write_text(SERVER)
    return write(folder, {"command": "python", "args": [str(folder / "server.py")]}, {"queue_timeout": 20})


def write(folder: Path, mcp: object, config: dict[str, object] | None = None) -> Path:
    path = folder / "tools.yaml"
    path.write_text(yaml.safe_dump({"tools": [{"mcp": mcp, "config": config or {}}]}))
    return path


def test_python_is_the_one_that_runs_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even if another Python comes first on the path, as in an environment that is not activated."""
    other = tmp_path / "python"
    other.write_text("#!/bin/sh\necho I am another one >&2\nexit 1\n")
    other.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    show = "import shutil, sys; sys.exit(f'{sys.executable} {shutil.which(chr(112) + chr(121) + chr(116) + \"hon\")}')"
    with pytest.raises(ToolError) as error:
        load_toolbox(write(tmp_path, {"command": "python", "args": ["-c", show]}))
    folder = Path(sys.executable).parent
    assert f"it printed: {folder}/python {folder}/python." in str(error.value)
    with pytest.raises(ToolError, match="it printed: I am another one"):
        load_toolbox(write(tmp_path, {"command": "python", "env": {"PATH": str(tmp_path)}}))


async def run(toolbox: Toolbox, *calls: ToolCall) -> list[tuple[ToolStatus, str]]:
    session = toolbox.open_session("p/0")
    try:
        results = [await session.execute(call) for call in calls]
    finally:
        await session.close()
    return [(r.status, r.text) for r in results]


async def test_mcp_tools_are_listed_called_and_reconnected(toolbox_path: Path) -> None:
    toolbox = load_toolbox(toolbox_path)
    assert toolbox.names == ["add", "fail", "mixed", "die"]
    assert toolbox.schemas[0]["function"]["description"] == "Add to the total."
    assert toolbox.schemas[0]["function"]["parameters"]["properties"]["number"]["type"] == "integer"
    add = ToolCall("add", {"number": 2})
    try:
        first, second, failed, invalid, mixed = await run(
            toolbox, add, add, ToolCall("fail", {}), ToolCall("add", {}), ToolCall("mixed", {})
        )
        assert mixed == (
            ToolStatus.OK,
            "words\n(image, image/png)\nof a file\n(file:///a.bin, binary)\n(page: https://example.org/)",
        )
        assert (first, second) == ((ToolStatus.OK, "2"), (ToolStatus.OK, "4"))  # one server for all calls
        assert failed[0] is ToolStatus.ERROR
        assert "cannot" in failed[1]
        assert invalid[0] is ToolStatus.INVALID_ARGUMENTS
        toolbox.tools["die"].config.queue_timeout = 0.5
        assert (await run(toolbox, ToolCall("die", {})))[0][0] is ToolStatus.UNAVAILABLE
        assert await run(toolbox, add) == [(ToolStatus.OK, "2")]  # a new server
    finally:
        await toolbox.close()
    assert not [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]


@pytest.mark.parametrize(
    ("mcp", "message"),
    [
        ({}, "needs either command or url"),
        ({"command": "a", "url": "b"}, "needs either command or url"),
        ({"command": "no-such-program-here"}, "no answer from 'no-such-program-here'"),
        ({"command": sys.executable, "args": ["-c", "pass"]}, "no answer from"),
        (
            {"command": "python", "args": ["-c", "import sys; print('I lack x'); sys.exit('I lack y')"]},
            r"; it printed: I lack y\. Start it",
        ),
        ({"command": sys.executable, "args": "-c"}, r"args: must be a valid array, got '-c'"),
        ({"url": "http://127.0.0.1:9/mcp"}, "no answer from 'http://127.0.0.1:9/mcp'"),
        ({"url": "http://127.0.0.1:9/mcp", "args": []}, "args, env and cwd need a command, got a url"),
        ({"comand": "a", "command": "b"}, "Did you mean 'command'"),
    ],
)
def test_mcp_entries_that_cannot_work_are_refused(tmp_path: Path, mcp: object, message: str) -> None:
    path = write(tmp_path, mcp)
    with pytest.raises(ToolError, match=message) as error:
        load_toolbox(path)
    assert str(error.value).startswith(f"{path}: tools[1].mcp")
