"""The tools of servers that speak the Model Context Protocol (needs the package `mcp`)."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, TextIO

from mcp import Client, MCPError, StdioServerParameters
from mcp.client.stdio import stdio_client
from mcp.types import CallToolResult, EmbeddedResource, ResourceLink, TextContent, TextResourceContents
from mcp_types import CONNECTION_CLOSED, REQUEST_TIMEOUT

from rl.errors import ToolError
from rl.tools.base import ServiceUnavailableError, Tool, ToolConfig, ToolOutput
from rl.tools.results import as_output
from rl.tools.schemas import checked_schema
from rl.tools.settings import read_dataclass
from rl.types import ToolStatus

logger = logging.getLogger(__name__)

_START_TIMEOUT_S = 30.0
_CLOSE_TIMEOUT_S = 10.0
_MAX_LAST_LINES = 3
_OF_THE_SERVICE = (CONNECTION_CLOSED, REQUEST_TIMEOUT)


@dataclass(slots=True, frozen=True)
class McpServer:
    """A server: a program to start and talk to over its standard input and output, or an address."""

    command: str = ""
    """Searched first in the folder of this Python, so that `python` and programs of its environment are found."""
    args: list[str] = field(default_factory=list)
    env: dict[str, str] = field(default_factory=dict)
    """Environment variables of the program, in addition to a few default ones."""
    cwd: str | None = None
    url: str = ""
    """Address of a server with the Streamable HTTP transport, such as http://localhost:8000/mcp."""

    def client(self, messages: TextIO | None = None) -> Client:
        """Make a client, not yet connected.

        Args:
            messages: A real file for the program's standard error; None for this process's.
        """
        if self.url:
            return Client(self.url)
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
        env = {"PATH": path} | self.env
        server = StdioServerParameters(command=self.command, args=self.args, env=env, cwd=self.cwd)
        return Client(stdio_client(server, errlog=messages or sys.stderr))

    def __str__(self) -> str:
        return self.url or " ".join([self.command, *self.args])


class McpConnection:
    """A connection to a server, opened by the first call, shared by all tools and trajectories of a process.

    It has a task of its own, because a client must be opened and closed in the same task. If it breaks, the next call
    opens a new one.
    """

    def __init__(self, server: McpServer) -> None:
        self._server = server
        self._client: asyncio.Future[Client] | None = None
        self._closing = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def call(self, name: str, arguments: dict[str, Any]) -> CallToolResult:
        """Call a tool of the server.

        Raises:
            ServiceUnavailableError: The server cannot be reached, or disconnected.
            MCPError: It refused the call.
        """
        if self._task is None or self._task.done():
            self._client = asyncio.get_running_loop().create_future()
            self._closing = asyncio.Event()
            self._task = asyncio.ensure_future(self._live(self._client, self._closing))
        assert self._client is not None, "made with the task"
        closing = self._closing
        client = await asyncio.shield(self._client)
        try:
            return await client.call_tool(name, arguments)
        except MCPError as error:
            if error.code not in _OF_THE_SERVICE:
                raise
            closing.set()
            raise ServiceUnavailableError(f"{self._server}: {error}") from error

    async def close(self) -> None:
        """End the connection, and the program that was started for it."""
        self._closing.set()
        if self._task is not None:
            await asyncio.wait({self._task}, timeout=_CLOSE_TIMEOUT_S)

    async def _live(self, opened: asyncio.Future[Client], closing: asyncio.Event) -> None:
        try:
            async with self._server.client() as client:
                opened.set_result(client)
                await closing.wait()
        except Exception as error:  # the transport may raise anything, or a group
            failure = ServiceUnavailableError(f"{self._server}: {_first(error)}")
            if opened.done():
                logger.warning("MCP server %s", failure)
            else:
                opened.set_exception(failure)


class McpTool(Tool):
    """One tool of a server."""

    def __init__(self, config: ToolConfig, schema: dict[str, Any], connection: McpConnection) -> None:
        super().__init__(config, schema)
        self._connection = connection

    async def execute(self, state: Any, arguments: dict[str, Any]) -> ToolOutput:
        """Forward the call. The result is the text of the answer, with a mention of images, audio and links."""
        answer = await self._connection.call(self.name, arguments)
        parts = [_as_text(content) for content in answer.content]
        if not parts and answer.structured_content is not None:
            parts = [as_output(answer.structured_content).text]
        return ToolOutput("\n".join(parts), ToolStatus.ERROR if answer.is_error else ToolStatus.OK)

    async def close(self) -> None:
        """End the connection of all the server's tools."""
        await self._connection.close()


def load_mcp_tools(where: str, given: Any, config: ToolConfig) -> list[McpTool]:
    """List the tools of a server. They share a connection, which the first call opens.

    Args:
        where: The key of the YAML, for messages.
        given: `{command, args, env, cwd}` or `{url}`.
        config: Settings of each tool.

    Raises:
        ToolError: The server cannot be reached or has no tools, or a setting is wrong.
    """
    server = _read_server(where, given)
    with TemporaryFile("w+", errors="replace") as messages:
        try:
            with ThreadPoolExecutor(1) as thread:  # the caller may be running an event loop
                listing = asyncio.wait_for(_list_tools(server, messages), _START_TIMEOUT_S)
                listed = thread.submit(lambda: asyncio.run(listing)).result()
        except Exception as error:  # the transport may raise anything, or a group
            raise ToolError(
                f"{where}: no answer from '{server}': {_first(error)}{_last_words(messages)}. "
                "Start it, or correct the entry."
            ) from error
    if not listed:
        raise ToolError(f"{where}: '{server}' has no tools. Check that it is the right server.")
    connection = McpConnection(server)
    return [
        McpTool(config, checked_schema(f"{where}: {schema['function']['name']}", schema)[0], connection)
        for schema in listed
    ]


def _read_server(where: str, given: Any) -> McpServer:
    if not isinstance(given, dict) or ("command" in given) == ("url" in given):
        raise ToolError(f"{where}: needs either command or url, got {given!r}.")
    server = read_dataclass(where, McpServer, given)
    if "url" in given and len(given) > 1:
        raise ToolError(f"{where}: args, env and cwd need a command, got a url. Remove them.")
    return server


async def _list_tools(server: McpServer, messages: TextIO) -> list[dict[str, Any]]:
    schemas: list[dict[str, Any]] = []
    async with server.client(messages) as client:
        cursor: str | None = None
        while True:
            page = await client.list_tools(cursor=cursor)
            for tool in page.tools:
                function = {"name": tool.name, "description": tool.description or "", "parameters": tool.input_schema}
                schemas.append({"type": "function", "function": function})
            cursor = page.next_cursor
            if not cursor:
                return schemas


def _as_text(content: Any) -> str:
    """One part of an answer, for the model: its text, or a description of other content."""
    if isinstance(content, TextContent):
        return content.text
    if isinstance(content, EmbeddedResource):
        resource = content.resource
        if isinstance(resource, TextResourceContents):
            return resource.text
        return f"({resource.uri}, {resource.mime_type or 'binary'})"
    if isinstance(content, ResourceLink):
        return f"({content.name}: {content.uri})"
    return f"({content.type}, {content.mime_type})"


def _last_words(messages: TextIO) -> str:
    """The last lines that a program printed before it ended."""
    messages.seek(0)
    lines = [line.strip() for line in messages.read().splitlines() if line.strip()]
    return f"; it printed: {' / '.join(lines[-_MAX_LAST_LINES:])}" if lines else ""


def _first(error: BaseException) -> str:
    """The text of an error, or of the first error in a group."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return f"{type(error).__name__}: {error}"
