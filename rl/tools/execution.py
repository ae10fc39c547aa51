"""The life of one call: validation, the wait for a free worker, attempts under one deadline, the result."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

from tenacity import AsyncRetrying, retry_if_exception_type, stop_before_delay, wait_random_exponential

from rl.errors import unknown_name
from rl.tools.base import ServiceUnavailableError, Tool, ToolOutput, ToolTimeoutError
from rl.tools.breaker import CircuitBreaker
from rl.tools.coroutines import end, ended, leave, start
from rl.tools.deadlines import Deadline, LoopClock
from rl.tools.limits import Limiter
from rl.tools.results import as_output
from rl.tools.schemas import ArgumentCheck
from rl.tools.threads import MAX_ABANDONED, ThreadPool
from rl.types import ToolCall, ToolResult, ToolStatus

logger = logging.getLogger(__name__)

_RETRY_FIRST_S = 0.2
_RETRY_LONGEST_S = 5.0

_NO_LIMIT: Limiter = nullcontext()


class _NotStartedError(Exception):
    """No attempt could begin within `queue_timeout`."""


class _CreateError(Exception):
    """`Tool.create` raised."""


@dataclass(slots=True)
class _Call:
    """What one call has gone through."""

    began_at: float
    """On the event loop's clock."""
    start_by: float
    """When the last attempt must have begun, on the `LoopClock`, which stands still with the event loop."""
    num_failures: int = 0
    """Attempts that failed for the service's reasons."""
    failure: ServiceUnavailableError | None = None
    """The last of them."""
    failed_at: float | None = None
    """When the first of them ended."""
    met_open_breaker: bool = False
    run_s: float = 0.0
    blocked_s: float = 0.0
    """Seconds in which its coroutine held the event loop up."""
    is_late: bool = False
    """The attempt ran into the tool's own limit, or the call into its deadline."""
    is_left: bool = False
    """What it began still runs, though nobody waits for it."""

    def note_failure(self, error: ServiceUnavailableError, now: float) -> None:
        """Count an attempt that failed for the service's reasons."""
        self.num_failures += 1
        self.failure = error
        self.failed_at = now if self.failed_at is None else self.failed_at


class ToolRunner:
    """Runs the calls of one tool within its limits.

    Args:
        tool: The tool.
        clock: Of the event loop that all calls run on.
    """

    def __init__(self, tool: Tool, clock: LoopClock) -> None:
        self.tool = tool
        self.check = ArgumentCheck(tool.schema)
        config = tool.config
        self._clock = clock
        self._threads = None if tool.is_async else ThreadPool(f"tool-{tool.name}")
        self._workers: Limiter = _NO_LIMIT if tool.is_async else asyncio.Semaphore(config.num_workers)
        self._permits: Limiter = asyncio.Semaphore(config.rate_limit) if config.enable_global_rate_limit else _NO_LIMIT
        self._breaker = CircuitBreaker(tool.name)
        self._blocked_s = 0.0
        self._has_warned = False

    def share_permits(self, limiter: Limiter) -> None:
        """Count calls with this limiter in place of one of the process's own; before the first call."""
        self._permits = limiter

    def close(self) -> None:
        """End the idle threads."""
        if self._threads is not None:
            self._threads.close()

    def start(self, coroutine: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Run a coroutine of the tool that belongs to no call of its own: `create` or `release`."""
        return start(coroutine, self._note_stall)

    async def run(self, make_state: Callable[[], Awaitable[Any]], arguments: dict[str, Any]) -> ToolResult:
        """Run one call to its result, at the latest `queue_timeout + default_timeout` seconds from now.

        An attempt begins within `queue_timeout`, and may then take the tool's `run_limit_s`. Time in which the event
        loop stood still does not count, but for the call that held it up.

        Args:
            make_state: Gives what `Tool.create` made for the trajectory.
            arguments: Checked against the schema.
        """
        config, loop = self.tool.config, asyncio.get_running_loop()
        call = _Call(loop.time(), self._clock.time() + config.queue_timeout)
        error: Exception | None = None
        try:
            output = await self._attempts(call, make_state, arguments)
        except Exception as raised:  # a tool may raise anything; told to the model
            error = raised
        if call.is_late or error is not None:
            output = self._failure(error, call)
        took = loop.time() - call.began_at
        return ToolResult(
            self.tool.name,
            output.text,
            output.status,
            queue_s=max(took - call.run_s, 0.0),
            run_s=call.run_s,
            reward=output.reward,
            stop=output.stop,
            metrics=output.metrics,
            num_failed_attempts=call.num_failures,
            outage_s=0.0 if call.failed_at is None else loop.time() - call.failed_at,
            met_open_breaker=call.met_open_breaker,
            has_abandoned_thread=call.is_left and self._threads is not None,
            has_abandoned_coroutine=call.is_left and self._threads is None,
            blocked_s=self._take_blocked_s(),
        )

    def _take_blocked_s(self) -> float:
        """Seconds in which coroutines of the tool held the event loop up, since they were last asked for."""
        taken, self._blocked_s = self._blocked_s, 0.0
        return taken

    async def _attempts(
        self, call: _Call, make_state: Callable[[], Awaitable[Any]], arguments: dict[str, Any]
    ) -> ToolOutput:
        """Try, and again after growing random waits as long as the service is what fails.

        The first attempt goes without tenacity, which costs as much time as all else that is done for a call.
        """
        attempt = partial(self._attempt, call, make_state, arguments)
        try:
            return await attempt()
        except ServiceUnavailableError:
            wait_s = random.uniform(0.0, _RETRY_FIRST_S)
            left_s = call.start_by - self._clock.time() - wait_s
            if left_s <= 0:
                raise
            await asyncio.sleep(wait_s)
            retrying = AsyncRetrying(
                retry=retry_if_exception_type(ServiceUnavailableError),
                wait=wait_random_exponential(2 * _RETRY_FIRST_S, _RETRY_LONGEST_S),
                stop=stop_before_delay(left_s),
                reraise=True,
            )
            return await retrying(attempt)

    async def _attempt(
        self, call: _Call, make_state: Callable[[], Awaitable[Any]], arguments: dict[str, Any]
    ) -> ToolOutput:
        loop, run_limit_s = asyncio.get_running_loop(), self.tool.run_limit_s
        end_by = call.start_by + self.tool.config.default_timeout
        started_at: float | None = None
        limit = Deadline(self._clock, self.tool.name, call.start_by)
        try:
            async with limit, self._workers, self._permits:
                if self._threads is not None:
                    await self._threads.wait_for_room()
                call.met_open_breaker = call.met_open_breaker or self._breaker.is_open
                async with self._breaker.guard():
                    state = await make_state()
                    started_at = loop.time()
                    limit.move(end_by if run_limit_s is None else min(self._clock.time() + run_limit_s, end_by))
                    return await self._execute(call, limit, state, arguments)
        except TimeoutError:
            if started_at is None and limit.expired():
                raise _NotStartedError from None
            raise
        except ServiceUnavailableError as error:
            call.note_failure(error, loop.time())
            raise
        finally:
            if started_at is not None:
                call.is_late = call.is_late or limit.expired() or (call.blocked_s > 0 and limit.has_passed())
                call.run_s += loop.time() - started_at

    async def _execute(self, call: _Call, limit: Deadline, state: Any, arguments: dict[str, Any]) -> ToolOutput:
        """Run the tool in a thread or a task of its own, which is left to itself where it does not end at the limit."""

        def note_stall(seconds: float) -> None:
            self._note_stall(seconds)
            call.blocked_s += seconds
            limit.advance(seconds)

        if self._threads is not None:
            return await self._in_thread(call, self._threads, partial(self._run_plain, state, arguments))
        running = start(self._run_async(state, arguments), note_stall)
        try:
            await ended(running)
        finally:
            if not running.done():
                call.is_left = not await end(running, self.tool.name)
        if running.cancelled():
            raise RuntimeError("the tool cancelled itself")
        output: ToolOutput = running.result()
        return output

    async def _in_thread(self, call: _Call, threads: ThreadPool, function: Callable[[], ToolOutput]) -> ToolOutput:
        running = threads.start(function)
        try:
            await ended(running)
        finally:
            if not running.done():
                call.is_left = True
                threads.abandon(running)
        output: ToolOutput = running.result()
        return output

    def _run_plain(self, state: Any, arguments: dict[str, Any]) -> ToolOutput:
        try:
            return as_output(self.tool.execute(state, arguments))
        except SystemExit as error:
            raise RuntimeError(f"the tool exited with {error.code!r}") from error

    async def _run_async(self, state: Any, arguments: dict[str, Any]) -> ToolOutput:
        try:
            return as_output(await self.tool.execute(state, arguments))
        except SystemExit as error:
            raise RuntimeError(f"the tool exited with {error.code!r}") from error

    def _note_stall(self, seconds: float) -> None:
        """A coroutine of the tool has held the event loop up."""
        self._clock.lose(seconds)
        self._blocked_s += seconds
        if not self._has_warned:
            self._has_warned = True
            logger.warning(
                "tool '%s': its coroutine held up the event loop for %.1f s, and with it all other trajectories of "
                "this process. Await what takes time, or write a plain `def`, which runs in a thread. Told once; "
                "tools/%s/blocked_s counts.",
                *(self.tool.name, seconds, self.tool.name),
            )

    def _failure(self, error: Exception | None, call: _Call) -> ToolOutput:
        """In words, for the model: what was raised, or that the call was late."""
        name, config = self.tool.name, self.tool.config
        if call.is_late:
            if self.tool.run_limit_s is not None:
                return ToolOutput(f"Error: '{name}' timed out after {self.tool.run_limit_s:g} s.", ToolStatus.TIMEOUT)
            within = config.queue_timeout + config.default_timeout
            text = f"Error: the service of '{name}' did not answer within {within:g} s."
            return ToolOutput(text, ToolStatus.UNAVAILABLE)
        cause = (call.failure or self._breaker.failure) if isinstance(error, _NotStartedError) else error
        if cause is None:
            text = f"Error: no worker of '{name}' was free within {config.queue_timeout:g} s."
            if self._threads is not None and self._threads.num_left >= MAX_ABANDONED:
                text += f" {MAX_ABANDONED} earlier calls of it still run, long after their deadline."
            logger.warning("tool '%s': %s", name, text)
            return ToolOutput(text, ToolStatus.UNAVAILABLE)
        if isinstance(error, _NotStartedError | _CreateError | ServiceUnavailableError):
            logger.warning("tool '%s': %s", name, cause)
            return ToolOutput(f"Error: the service of '{name}' is not available: {cause}.", ToolStatus.UNAVAILABLE)
        if isinstance(error, ToolTimeoutError):
            return ToolOutput(str(error), ToolStatus.TIMEOUT)
        return ToolOutput(f"Error: {type(error).__name__}: {error}", ToolStatus.ERROR)


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
            status = ToolStatus.IN_THOUGHT if call.is_in_thought else ToolStatus.PARSE_ERROR
            return ToolResult(call.name, f"Error: {call.error}", status)
        runner = self._runners.get(call.name)
        if runner is None:
            text = f"Error: {unknown_name('tool call', call.name, self._runners)}"
            return ToolResult(call.name, text, ToolStatus.UNKNOWN_TOOL)
        problem = runner.check.problem(call.arguments)
        if problem is not None:
            return ToolResult(call.name, problem, ToolStatus.INVALID_ARGUMENTS)
        return await runner.run(partial(self._state, runner.tool), call.arguments)

    async def _state(self, tool: Tool) -> Any:
        """What `create` made. Calls of one turn wait for the same one; after a failed one the next call tries anew."""
        created = self._states.get(tool.name)
        if created is None or (created.done() and (created.cancelled() or created.exception() is not None)):
            created = self._states[tool.name] = self._runners[tool.name].start(tool.create(self._trajectory_id))
        try:
            return await asyncio.shield(created)
        except ServiceUnavailableError:
            raise
        except Exception as error:  # the one place where `create` may raise anything
            raise _CreateError(f"{type(error).__name__}: {error}") from error

    async def close(self) -> None:
        """Release every tool that was used; a tool that fails to is logged and does not keep the others from it."""
        states, self._states = self._states, {}
        if pending := [(created, name) for name, created in states.items() if not created.done()]:
            await asyncio.gather(*(end(created, name) for created, name in pending))
        made = {name: c.result() for name, c in states.items() if c.done() and not c.cancelled() and not c.exception()}
        releases = {name: self._start_release(name, state) for name, state in made.items()}
        try:
            if releases:
                await asyncio.wait(releases.values())
        finally:
            for name, released in releases.items():
                if not released.done():
                    released.cancel()
                    leave(released)
                elif not released.cancelled() and (failure := released.exception()) is not None:
                    logger.warning("tool '%s': release failed for %s: %r", name, self._trajectory_id, failure)

    def _start_release(self, name: str, state: Any) -> asyncio.Task[None]:
        runner = self._runners[name]
        return runner.start(runner.tool.release(state))
