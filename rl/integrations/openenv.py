"""Environments behind an OpenEnv server. The package openenv is not needed here.

    rl_config:
      environment: rl.integrations.openenv:OpenEnv
      environment_kwargs: {base_url: "http://localhost:8000"}

docs/environments.md tells more.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import aiohttp
import requests

_OWN_FIELDS = ("done", "reward", "metadata")
"""Fields of every observation that say nothing to the model."""


class OpenEnvError(Exception):
    """The server refused, or cannot be reached."""


class OpenEnv:
    """One session on the server for each trajectory; the server's `max_concurrent_envs` must allow as many.

    Args:
        base_url: Address of the server.
        action_field: Field of the action that takes the text of a turn; by default the only one that the server's
            schema requires.
        observation_field: What the model sees of an observation; by default all of it, as JSON where there are several
            fields.
        with_tools: The model acts by calling the MCP tools that the server lists, not by text.
        reset_columns: Columns of a row that `reset` of the server gets, beside the seed.
        timeout_s: Deadline of each answer of the server, seconds.
    """

    def __init__(
        self,
        *,
        base_url: str,
        action_field: str | None = None,
        observation_field: str | None = None,
        with_tools: bool = False,
        reset_columns: Sequence[str] = (),
        timeout_s: float = 60.0,
    ) -> None:
        self._url = base_url.rstrip("/")
        self._action_field, self._observation_field = action_field, observation_field
        self._with_tools, self._reset_columns, self._timeout_s = with_tools, reset_columns, timeout_s
        self._http: aiohttp.ClientSession | None = None
        self._socket: aiohttp.ClientWebSocketResponse | None = None
        self._schema: dict[str, Any] = {}

    @property
    def tools(self) -> list[dict[str, Any]]:
        """The server's MCP tools in OpenAI's form. Raises OpenEnvError."""
        if not self._with_tools:
            return []
        question: dict[str, Any] = {"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {}}
        try:
            answer = requests.post(f"{self._url}/mcp", json=question, timeout=self._timeout_s).json()
            return [_as_function(tool) for tool in answer["result"]["tools"]]
        except (requests.RequestException, KeyError, TypeError) as error:
            raise OpenEnvError(f"{self._url}: lists no MCP tools ({type(error).__name__}: {error}).") from error

    async def reset(self, seed: int, **row: Any) -> Any:
        """Open a session and begin an episode in it."""
        self._http = aiohttp.ClientSession()
        try:
            if not self._with_tools:
                await self._read_schema()
            self._socket = await self._http.ws_connect(f"{self._url}/ws", max_msg_size=0)
        except (aiohttp.ClientError, TimeoutError) as error:
            raise OpenEnvError(f"{self._url}: no OpenEnv server answers: {error}. Start it.") from error
        columns = {name: row[name] for name in self._reset_columns}
        answer = await self._ask({"type": "reset", "data": {"seed": seed, **columns}})
        return self._shown(answer["observation"])

    async def step(self, action: str | dict[str, Any]) -> tuple[Any, float | None, bool]:
        """Send an action: the text of a turn, or a call."""
        if isinstance(action, dict):
            sent = {"type": "call_tool", "tool_name": action["name"], "arguments": action["arguments"]}
        else:
            sent = {str(self._action_field): self._typed(action)}
        try:
            answer = await self._ask({"type": "step", "data": sent})
        except _InvalidActionError as error:
            return f"Error: {error}", None, False
        return self._shown(answer["observation"]), answer.get("reward"), bool(answer.get("done"))

    async def close(self) -> None:
        """End the session."""
        if self._socket is not None and not self._socket.closed:
            await self._socket.send_json({"type": "close"})
            await self._socket.close()
        if self._http is not None:
            await self._http.close()

    async def _read_schema(self) -> None:
        """Find the field that takes the text."""
        assert self._http is not None
        async with self._http.get(f"{self._url}/schema") as answer:
            answer.raise_for_status()
            self._schema = (await answer.json())["action"]
        if self._action_field is None:
            required = self._schema.get("required", [])
            if len(required) != 1:
                names = ", ".join(self._schema.get("properties", {}))
                raise OpenEnvError(f"{self._url}: an action has the fields {names}. Name one as action_field.")
            self._action_field = required[0]

    def _typed(self, text: str) -> Any:
        """A text as the action's field takes it: the last number in it where that is a number."""
        kind = self._schema.get("properties", {}).get(self._action_field, {}).get("type")
        if kind not in ("integer", "number"):
            return text
        found = re.findall(r"-?\d+" if kind == "integer" else r"-?\d+(?:\.\d+)?", text)
        return (int if kind == "integer" else float)(found[-1]) if found else text

    async def _ask(self, message: dict[str, Any]) -> dict[str, Any]:
        assert self._socket is not None, "reset opens it"
        try:
            await self._socket.send_json(message)
            answer = await self._socket.receive_json(timeout=self._timeout_s)
        except (aiohttp.ClientError, TypeError, TimeoutError) as error:
            raise OpenEnvError(f"{self._url}: no answer to {message['type']}: {error!r}.") from error
        data: dict[str, Any] = answer["data"]
        if answer["type"] != "error":
            return data
        if data.get("code") == "VALIDATION_ERROR" and message["type"] == "step":
            reasons = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in data.get("errors", [])]
            raise _InvalidActionError("; ".join(reasons) or data["message"])
        advice = " Raise max_concurrent_envs of the server." if data.get("code") == "CAPACITY_REACHED" else ""
        raise OpenEnvError(f"{self._url}: {data.get('code')}: {data.get('message')}.{advice}")

    def _shown(self, observation: dict[str, Any]) -> Any:
        """What the model sees of an observation."""
        if "tool_name" in observation and "result" in observation:
            return _said_by_tool(observation)
        fields = {name: value for name, value in observation.items() if name not in _OWN_FIELDS and value is not None}
        if self._observation_field is not None:
            if self._observation_field not in fields:
                raise OpenEnvError(
                    f"{self._url}: an observation has the fields {', '.join(fields)}, not '{self._observation_field}'. "
                    "Correct observation_field."
                )
            return fields[self._observation_field]
        return next(iter(fields.values())) if len(fields) == 1 else fields or None


class _InvalidActionError(Exception):
    """The action does not satisfy the server's schema, which is the model's mistake."""


def _as_function(tool: dict[str, Any]) -> dict[str, Any]:
    schema = tool.get("inputSchema") or tool.get("input_schema") or {"type": "object", "properties": {}}
    function = {"name": tool["name"], "description": tool.get("description") or "", "parameters": schema}
    return {"type": "function", "function": function}


def _said_by_tool(observation: dict[str, Any]) -> Any:
    """The text of a tool's result, or of its error."""
    if observation.get("error"):
        error = observation["error"]
        return f"Error: {error.get('message', error) if isinstance(error, dict) else error}"
    result = observation["result"]
    content = result.get("content") if isinstance(result, dict) else None
    texts = [part["text"] for part in content or [] if isinstance(part, dict) and "text" in part]
    return "\n".join(texts) if texts else result
