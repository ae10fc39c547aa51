"""Tests with a real server of the Streamable HTTP transport, on the loopback interface."""

import asyncio
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from rl.tools.registry import load_toolbox
from rl.types import ToolCall, ToolStatus
from tests.unit.tools.test_mcp_tool import run, write

SERVER = '''
import sys
from mcp.server.mcpserver import MCPServer
from mcp.server.mcpserver.exceptions import ToolError

server = MCPServer("tiny")
total = 0

@server.tool()
async def add(number: int) -> int:
    """Add to the total."""
    global total
    total += number
    return total

@server.tool()
async def fail() -> str:
    """Fail."""
    raise ToolError("cannot")

server.run("streamable-http", host="127.0.0.1", port=int(sys.argv[1]))
'''
START_TIMEOUT_S = 60.0
ADD = ToolCall("add", {"number": 2})


class Server:
    """A server that can be killed and restarted on the same port."""

    def __init__(self, folder: Path) -> None:
        (folder / "server.py").write_text(SERVER)
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port: int = probe.getsockname()[1]
        self._program = folder / "server.py"
        self.start()

    def start(self) -> None:
        self._process = subprocess.Popen([sys.executable, str(self._program), str(self.port)])
        deadline = time.monotonic() + START_TIMEOUT_S
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
                return
            except OSError:
                assert self._process.poll() is None and time.monotonic() < deadline
                time.sleep(0.05)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait(10)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    started = Server(tmp_path)
    yield started
    started.kill()


async def test_mcp_tools_of_a_url_are_listed_called_and_outlive_a_restart(server: Server, tmp_path: Path):
    toolbox = load_toolbox(write(tmp_path, {"url": f"http://127.0.0.1:{server.port}/mcp"}, {"queue_timeout": 60}))
    assert toolbox.names == ["add", "fail"]
    assert toolbox.schemas[0]["function"]["parameters"]["properties"]["number"]["type"] == "integer"
    try:
        first, second, failed, invalid = await run(toolbox, ADD, ADD, ToolCall("fail", {}), ToolCall("add", {}))
        assert (first, second) == ((ToolStatus.OK, "2"), (ToolStatus.OK, "4"))  # one server for all calls
        assert failed[0] is ToolStatus.ERROR and "cannot" in failed[1]
        assert invalid[0] is ToolStatus.INVALID_ARGUMENTS
        server.kill()
        session = toolbox.open_session("p/1")
        waiting = asyncio.ensure_future(session.execute(ADD))
        await asyncio.to_thread(server.start)
        result = await waiting
        assert (result.status, result.text) == (ToolStatus.OK, "2")  # a new server
        await session.close()
    finally:
        await toolbox.close()
    assert not [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
