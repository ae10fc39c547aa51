"""What a tool is: its settings, its schema, and the class that one derives from to write a new one."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field
from typing import Any, ClassVar

from rl.types import ToolStatus


@dataclass
class ToolConfig:
    """Settings every tool understands, from `config` of its YAML entry. A tool with more derives from this."""

    num_workers: int = 10
    """Threads of a tool whose `execute` is a plain function, in each rollout worker, at least 1."""
    enable_global_rate_limit: bool = False
    """Apply `rate_limit`; without it only `num_workers` bounds plain functions and nothing bounds async ones."""
    rate_limit: int = 10
    """Calls of this tool in progress at once in all rollout workers together, at least 1."""
    default_timeout: float = 30.0
    """Longest run of one call, seconds, above 0. `timeout` in the YAML means the same."""
    queue_timeout: float = 60.0
    """Longest wait for a free worker, for retries and for the service's own queue, seconds, above 0. A call has ended
    `queue_timeout + default_timeout` seconds after it began, whatever happened."""
    type: str = "native"
    """Kept from the original YAML; `native` is the only one."""


@dataclass(slots=True)
class ToolOutput:
    """What `Tool.execute` may return where plain text is not enough."""

    text: str
    status: ToolStatus = ToolStatus.OK
    reward: float | None = None
    """A reward for the turn that made the call."""
    stop: bool = False
    """End the trajectory."""
    metrics: dict[str, float] = field(default_factory=dict)


class ServiceUnavailableError(Exception):
    """The service behind a tool failed for its own reasons (no connection, 5xx); the call is retried."""


class ToolTimeoutError(Exception):
    """Raised by a tool whose service reports that the call ran into its time limit; the text is what the model sees."""


class Tool:
    """One tool, built once in each rollout worker. Derive, and write `execute`.

    `execute` may be a coroutine function, which runs on the event loop and is cancelled at its deadline, or a plain
    function, which runs in a thread; a thread past its deadline is abandoned and replaced. A coroutine must not block:
    all trajectories of the process wait meanwhile. What `execute` raises becomes an error result with the exception's
    text. `ServiceUnavailableError`, from `create` too, is retried first; whatever else `create` raises ends the call as
    unavailable.
    """

    config_class: ClassVar[type[ToolConfig]] = ToolConfig
    """The dataclass that the YAML `config` is read into."""

    def __init__(self, config: ToolConfig, schema: dict[str, Any]) -> None:
        """Keep the settings.

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
        """Longest attempt once a worker is free, seconds; None where the service limits the run, behind a queue."""
        limit: float = self.config.default_timeout
        return limit

    async def create(self, trajectory_id: str) -> Any:
        """Make the state of one trajectory, on its first call of this tool.

        Args:
            trajectory_id: `<prompt id>/<sample index>`.

        Returns:
            Whatever `execute` and `release` want to be given.
        """
        return trajectory_id

    def execute(self, state: Any, arguments: dict[str, Any]) -> Any:
        """Run one call; a plain function or a coroutine function.

        Args:
            state: What `create` returned.
            arguments: Checked against the schema.

        Returns:
            The text for the model, a `ToolOutput`, or any other value, which the model reads as JSON.
        """
        raise NotImplementedError(f"{type(self).__name__}.execute")

    async def release(self, state: Any) -> None:
        """Undo `create`, at the end of the trajectory, whatever happened in it."""

    async def check(self) -> None:
        """Find out whether the service behind the tool answers, before a run starts.

        Raises:
            ToolError: It does not.
        """

    async def close(self) -> None:
        """Free what the tool holds for the whole run."""
