"""The base class of tools, their settings and their results."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Field

from rl.types import ToolStatus


@dataclass
class ToolConfig:
    """Settings of every tool, from `config` of its YAML entry. Derive from this class to add settings."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(arbitrary_types_allowed=True)

    num_workers: Annotated[int, Field(ge=1)] = 10
    """Threads in each rollout worker, for a tool whose `execute` is a plain function."""
    enable_global_rate_limit: bool = False
    """Apply `rate_limit`. Without it only `num_workers` limits plain functions and nothing limits async ones."""
    rate_limit: Annotated[int, Field(ge=1)] = 10
    """Concurrent calls of this tool, in all rollout workers together."""
    default_timeout: Annotated[float, Field(gt=0)] = 30.0
    """Time limit of one call, seconds. `timeout` in the YAML means the same."""
    queue_timeout: Annotated[float, Field(gt=0)] = 60.0
    """Longest wait for a free worker, for retries and for the service's own queue, seconds. A call ends within
    `queue_timeout + default_timeout` seconds, whatever happens."""
    type: Literal["native"] = "native"
    """Kept from the original YAML, which knows no other type."""


@dataclass(slots=True)
class ToolOutput:
    """The result of a call, for tools that return more than text."""

    text: str
    status: ToolStatus = ToolStatus.OK
    reward: float | None = None
    """A reward for the turn that made the call."""
    stop: bool = False
    """End the trajectory."""
    metrics: dict[str, float] = field(default_factory=dict)


class ServiceUnavailableError(Exception):
    """The service behind a tool failed (no connection, HTTP 5xx); the call is retried."""


class ToolTimeoutError(Exception):
    """A tool's service reports that the call reached its time limit. The model reads the exception's text."""


class Tool:
    """One tool, built once in each rollout worker. Derive from this class and write `execute`.

    `execute` may be a coroutine function, which runs on the event loop and is cancelled at its deadline, or a plain
    function, which runs in a thread. A thread past its deadline is abandoned and replaced. A coroutine must not block,
    because it would block all trajectories of the process. An exception in `execute` becomes an error result with its
    text. `ServiceUnavailableError`, from `create` too, is retried first. Any other exception in `create` ends the call
    with the status UNAVAILABLE.
    """

    config_class: ClassVar[type[ToolConfig]] = ToolConfig
    """The dataclass for the YAML `config`."""

    def __init__(self, config: ToolConfig, schema: dict[str, Any]) -> None:
        """Store settings and schema.

        Args:
            config: An instance of `config_class`.
            schema: The tool in OpenAI's form, `{"type": "function", "function": {name, description, parameters}}`.
        """
        self.config: Any = config
        self.schema = schema
        self.name: str = schema["function"]["name"]

    @property
    def is_async(self) -> bool:
        """Whether `execute` returns an awaitable and so needs no thread."""
        return inspect.iscoroutinefunction(self.execute)

    @property
    def run_limit_s(self) -> float | None:
        """Time limit of one attempt once a worker is free, seconds; None if the service has its own queue and limit."""
        limit: float = self.config.default_timeout
        return limit

    async def create(self, trajectory_id: str) -> Any:
        """Create the state of one trajectory, at its first call of this tool.

        A `create` with a second parameter `row` also gets the other columns of the data row, by name.

        Args:
            trajectory_id: `<prompt id>/<sample index>`.

        Returns:
            The state that `execute` and `release` receive.
        """
        return trajectory_id

    def execute(self, state: Any, arguments: dict[str, Any]) -> Any:
        """Run one call; a plain function or a coroutine function.

        Args:
            state: What `create` returned.
            arguments: They satisfy the schema.

        Returns:
            The text for the model, a `ToolOutput`, or any other value, which the model reads as JSON.
        """
        raise NotImplementedError(f"{type(self).__name__}.execute")

    async def release(self, state: Any) -> None:
        """Undo `create`, at the end of the trajectory, however it ended."""

    async def check(self) -> None:
        """Check, before a run starts, that the service behind the tool answers.

        Raises:
            ToolError: It does not.
        """

    async def close(self) -> None:
        """Release the tool's resources at the end of the run."""
