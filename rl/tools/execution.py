"""The life of one call: validation, the wait for a free worker, the run under a deadline, retries, the result."""

from __future__ import annotations

import asyncio
import inspect
import logging
import threading
import time
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import best_match
from tenacity import AsyncRetrying, RetryError, retry_if_exception_type, stop_before_delay, wait_exponential_jitter

from rl.errors import unknown_name
from rl.tools.base import ServiceUnavailableError, Tool, ToolOutput, ToolTimeoutError
from rl.types import ToolCall, ToolResult, ToolStatus

logger = logging.getLogger(__name__)

_RETRY_FIRST_S = 0.1
_RETRY_LONGEST_S = 5.0
_CANCEL_GRACE_S = 1.0


class ToolRunner:
    """Runs the calls of one tool within its limits."""

    def __init__(self, tool: Tool) -> None:
        self.tool = tool
        self.is_async = inspect.iscoroutinefunction(tool.execute)
        config = tool.config
        bounds = [] if self.is_async else [config.num_workers]
        bounds += [config.rate_limit] if config.enable_global_rate_limit else []
        self._slots = asyncio.Semaphore(min(bounds)) if bounds else None
        self._validator = Draft202012Validator(tool.schema["function"].get("parameters", {}))

    def argument_error(self, arguments: dict[str, Any]) -> str | None:
        """What is wrong with the arguments, for the model to read; None when they satisfy the schema."""
        error = best_match(self._validator.iter_errors(arguments))
        if error is None:
            return None
        where = "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in error.absolute_path)
        place = f" at arguments{where}" if where else ""
        return f"Error: invalid arguments for '{self.tool.name}'{place}: {error.message}. Fields: {self._fields()}."

    def _fields(self) -> str:
        schema = self.tool.schema["function"].get("parameters", {})
        required = set(schema.get("required", []))
        fields = [
            f"{name} ({field.get('type', 'any')}{', required' if name in required else ''})"
            for name, field in schema.get("properties", {}).items()
        ]
        return ", ".join(fields) or "none"

    async def run(self, state: Any, arguments: dict[str, Any]) -> ToolResult:
        """Run one call to its result, at the latest after `queue_timeout + default_timeout` seconds."""
        config = self.tool.config
        start = time.monotonic()
        deadline = start + config.queue_timeout + config.default_timeout
        if not await self._take_slot(config.queue_timeout):
            text = f"Error: no worker of '{self.tool.name}' was free within {config.queue_timeout:g} s."
            return ToolResult(self.tool.name, text, ToolStatus.UNAVAILABLE, queue_s=time.monotonic() - start)
        running = time.monotonic()
        try:
            output = await self._run_with_deadline(state, arguments, deadline)
        finally:
            if self._slots is not None:
                self._slots.release()
        result = ToolResult(self.tool.name, output.text, output.status, reward=output.reward, stop=output.stop)
        result.metrics = output.metrics
        result.queue_s, result.run_s = running - start, time.monotonic() - running
        return result

    async def _take_slot(self, timeout: float) -> bool:
        """Wait for a free worker; False when none came free. A cancelled wait hands back what it was granted."""
        if self._slots is None:
            return True
        queue = asyncio.ensure_future(self._slots.acquire())
        try:
            done, _ = await asyncio.wait({queue}, timeout=timeout)
        except asyncio.CancelledError:
            if not queue.cancel():
                self._slots.release()
            raise
        return bool(done) or not queue.cancel()

    async def _run_with_deadline(self, state: Any, arguments: dict[str, Any], deadline: float) -> ToolOutput:
        limit = self.tool.run_limit_s
        remaining = deadline - time.monotonic()
        timeout = remaining if limit is None else min(limit, remaining)
        task = asyncio.ensure_future(self._attempts(state, arguments, timeout))
        try:
            done, _ = await asyncio.wait({task}, timeout=timeout)
        finally:
            if not task.done():
                task.cancel()
                await asyncio.wait({task}, timeout=_CANCEL_GRACE_S)
        if done:
            return _output_of(task, self.tool.name)
        if limit is None:
            text = f"Error: the service of '{self.tool.name}' did not answer within {timeout:g} s."
            return ToolOutput(text, ToolStatus.UNAVAILABLE)
        return ToolOutput(f"Error: '{self.tool.name}' timed out after {timeout:g} s.", ToolStatus.TIMEOUT)

    async def _attempts(self, state: Any, arguments: dict[str, Any], timeout: float) -> Any:
        """Call the tool, again with growing random waits while its service fails, for `timeout` seconds."""
        attempts = AsyncRetrying(
            retry=retry_if_exception_type(ServiceUnavailableError),
            wait=wait_exponential_jitter(_RETRY_FIRST_S, _RETRY_LONGEST_S, jitter=_RETRY_FIRST_S),
            stop=stop_before_delay(timeout),
        )
        if self.is_async:
            return await attempts(self.tool.execute, state, arguments)
        return await attempts(_run_in_thread, self.tool, state, arguments)


def _output_of(task: asyncio.Future[Any], name: str) -> ToolOutput:
    """Turn what the task returned or raised into an output; an exception of the tool is data for the model."""
    if task.cancelled():
        return ToolOutput(f"Error: '{name}' was cancelled.", ToolStatus.ERROR)
    error = task.exception()
    if error is None:
        value = task.result()
        return value if isinstance(value, ToolOutput) else ToolOutput(str(value))
    if isinstance(error, RetryError):
        cause = error.last_attempt.exception()
        logger.warning("tool '%s': %s", name, cause)
        return ToolOutput(f"Error: the service of '{name}' is not available: {cause}.", ToolStatus.UNAVAILABLE)
    if isinstance(error, ToolTimeoutError):
        return ToolOutput(str(error), ToolStatus.TIMEOUT)
    if not isinstance(error, Exception):
        raise error
    return ToolOutput(f"Error: {type(error).__name__}: {error}", ToolStatus.ERROR)


async def _run_in_thread(tool: Tool, state: Any, arguments: dict[str, Any]) -> Any:
    """Run a plain `execute` in a thread of its own. The thread outlives a cancelled wait, but holds no slot then."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Any] = loop.create_future()

    def settle(value: Any, error: BaseException | None) -> None:
        if future.done():
            return
        if error is None:
            future.set_result(value)
        else:
            future.set_exception(error)

    def work() -> None:
        value, error = None, None
        try:
            value = tool.execute(state, arguments)
        except Exception as raised:  # the one place where a plain tool may raise anything; handed to the caller
            error = raised
        if not loop.is_closed():
            loop.call_soon_threadsafe(settle, value, error)

    threading.Thread(target=work, name=f"tool-{tool.name}", daemon=True).start()
    return await future


class ToolSession:
    """The tools of one trajectory; makes a tool's state on its first call, and releases all of them in `close`."""

    def __init__(self, runners: dict[str, ToolRunner], trajectory_id: str) -> None:
        self._runners = runners
        self._trajectory_id = trajectory_id
        self._states: dict[str, asyncio.Task[Any]] = {}

    async def execute(self, call: ToolCall) -> ToolResult:
        """Run one call. What the model, the tool or its service did wrong is in the result's status.

        Args:
            call: As parsed; one with an `error` is answered with it.

        Returns:
            The result, its text not yet truncated.
        """
        if call.error is not None:
            return ToolResult(call.name, f"Error: {call.error}", ToolStatus.PARSE_ERROR)
        runner = self._runners.get(call.name)
        if runner is None:
            text = f"Error: {unknown_name('tool call', call.name, self._runners)}"
            return ToolResult(call.name, text, ToolStatus.UNKNOWN_TOOL)
        problem = runner.argument_error(call.arguments)
        if problem is not None:
            return ToolResult(call.name, problem, ToolStatus.INVALID_ARGUMENTS)
        created = self._states.get(call.name)
        if created is None:
            created = asyncio.ensure_future(runner.tool.create(self._trajectory_id))
            self._states[call.name] = created
        done, _ = await asyncio.wait({created}, timeout=runner.tool.config.queue_timeout)
        if not done:
            text = f"Error: '{call.name}' did not start within {runner.tool.config.queue_timeout:g} s."
            return ToolResult(call.name, text, ToolStatus.UNAVAILABLE)
        if created.cancelled() or created.exception() is not None:
            failed = _output_of(created, call.name)
            return ToolResult(call.name, failed.text, ToolStatus.UNAVAILABLE)
        return await runner.run(created.result(), call.arguments)

    async def close(self) -> None:
        """Release every tool that was used; a tool that fails to is logged and does not keep the others from it."""
        releases = []
        for name, created in self._states.items():
            if not created.done():
                created.cancel()
            elif not created.cancelled() and created.exception() is None:
                releases.append((name, self._runners[name].tool.release(created.result())))
        self._states.clear()
        failures = await asyncio.gather(*(release for _, release in releases), return_exceptions=True)
        for (name, _), failure in zip(releases, failures, strict=True):
            if isinstance(failure, Exception):
                logger.warning("tool '%s': release failed for %s: %r", name, self._trajectory_id, failure)
