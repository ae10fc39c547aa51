"""Executes calls: validation, the wait for a free worker, attempts under one deadline, the result."""

from __future__ import annotations

import asyncio
import inspect
import logging
import math
import random
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

from tenacity import AsyncRetrying, retry_if_exception_type, stop_before_delay, wait_random_exponential

from rl.errors import raise_if_quit, unknown_name
from rl.tools.base import ServiceUnavailableError, Tool, ToolOutput, ToolTimeoutError
from rl.tools.breaker import CircuitBreaker
from rl.tools.coroutines import abandon, end, start, wait_for_end
from rl.tools.deadlines import Deadline, LoopClock
from rl.tools.limits import Limiter
from rl.tools.results import as_output
from rl.tools.schemas import ArgumentCheck
from rl.tools.threads import MAX_ABANDONED, CallerThread, ThreadPool
from rl.types import ToolCall, ToolResult, ToolStatus

logger = logging.getLogger(__name__)

_RETRY_FIRST_S = 0.2
_RETRY_LONGEST_S = 5.0

_NO_LIMIT: Limiter = nullcontext()


class _NotStartedError(Exception):
    """No attempt could start within `queue_timeout`."""


class _CreateError(Exception):
    """`Tool.create` raised."""


@dataclass(slots=True)
class _Call:
    """The state of one call."""

    began_at: float
    """Start time on the event loop's clock."""
    start_by: float
    """Time by which the last attempt must start, on the `LoopClock`."""
    num_failures: int = 0
    """Attempts that failed because of the service."""
    failure: ServiceUnavailableError | None = None
    """The latest failure of the service."""
    failed_at: float | None = None
    """Time of the first failure."""
    met_open_breaker: bool = False
    run_s: float = 0.0
    blocked_s: float = 0.0
    """Seconds in which its coroutine blocked the event loop."""
    is_late: bool = False
    """The attempt reached the tool's time limit, or the call its deadline."""
    is_abandoned: bool = False
    """Its thread or coroutine still runs, but nobody waits for it."""

    def note_failure(self, error: ServiceUnavailableError, now: float) -> None:
        """Record an attempt that failed because of the service."""
        self.num_failures += 1
        self.failure = error
        self.failed_at = now if self.failed_at is None else self.failed_at


class ToolRunner:
    """Runs the calls of one tool within its limits.

    Args:
        tool: The tool.
        clock: Clock of the event loop that runs all calls.
    """

    def __init__(self, tool: Tool, clock: LoopClock) -> None:
        self.tool = tool
        self.check = ArgumentCheck(tool.schema)
        self.takes_row = "row" in inspect.signature(tool.create).parameters
        config = tool.config
        self._clock = clock
        self._threads = None if tool.is_async else ThreadPool(f"tool-{tool.name}")
        self._workers: Limiter = _NO_LIMIT if tool.is_async else asyncio.Semaphore(config.num_workers)
        self._permits: Limiter = asyncio.Semaphore(config.rate_limit) if config.enable_global_rate_limit else _NO_LIMIT
        self._breaker = CircuitBreaker(tool.name)
        self._blocked_s = 0.0
        self._has_warned = False
        self._has_deadlines = True

    def run_in_caller(self) -> None:
        """For breakpoints: run plain functions in the calling thread, and give up on nothing that takes long."""
        self._has_deadlines = False
        if self._threads is not None:
            self._threads = CallerThread(f"tool-{self.tool.name}")

    def share_permits(self, limiter: Limiter) -> None:
        """Use this limiter instead of a limiter of this process. To be called before the first call."""
        self._permits = limiter

    def close(self) -> None:
        """End the idle threads."""
        if self._threads is not None:
            self._threads.close()

    def start(self, coroutine: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Run `create` or `release`, which do not belong to a single call."""
        return start(coroutine, self._note_stall)

    async def run(self, make_state: Callable[[], Awaitable[Any]], arguments: dict[str, Any]) -> ToolResult:
        """Run one call and return its result, within `queue_timeout + default_timeout` seconds.

        An attempt starts within `queue_timeout`, and may then take the tool's `run_limit_s`. A stall of the event loop
        counts only for the call that caused it.

        Args:
            make_state: Returns the trajectory's state from `Tool.create`.
            arguments: They satisfy the schema.
        """
        config, loop = self.tool.config, asyncio.get_running_loop()
        call = _Call(loop.time(), self._clock.time() + config.queue_timeout if self._has_deadlines else math.inf)
        error: Exception | None = None
        try:
            output = await self._attempts(call, make_state, arguments)
        except Exception as raised:  # a tool may raise anything; the model reads it
            raise_if_quit(raised)
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
            has_abandoned_thread=call.is_abandoned and self._threads is not None,
            has_abandoned_coroutine=call.is_abandoned and self._threads is None,
            blocked_s=self._take_blocked_s(),
        )

    def _take_blocked_s(self) -> float:
        """Seconds in which coroutines of the tool blocked the event loop, since the last call of this method."""
        taken, self._blocked_s = self._blocked_s, 0.0
        return taken

    async def _attempts(
        self, call: _Call, make_state: Callable[[], Awaitable[Any]], arguments: dict[str, Any]
    ) -> ToolOutput:
        """Try, and retry after growing random waits while the service fails.

        The first attempt does without tenacity, which would double the time that a call costs.
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
        loop, run_limit_s = asyncio.get_running_loop(), self.tool.run_limit_s if self._has_deadlines else None
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
        """Run the tool in a thread or a task of its own, which is abandoned if it does not end at the limit."""

        def note_stall(seconds: float) -> None:
            self._note_stall(seconds)
            call.blocked_s += seconds
            limit.advance(seconds)

        if self._threads is not None:
            return await self._in_thread(call, self._threads, partial(self._run_plain, state, arguments))
        running = start(self._run_async(state, arguments), note_stall)
        try:
            await wait_for_end(running)
        finally:
            if not running.done():
                call.is_abandoned = not await end(running, self.tool.name)
        if running.cancelled():
            raise RuntimeError("the tool cancelled itself")
        output: ToolOutput = running.result()
        return output

    async def _in_thread(self, call: _Call, threads: ThreadPool, function: Callable[[], ToolOutput]) -> ToolOutput:
        running = threads.start(function)
        try:
            await wait_for_end(running)
        finally:
            if not running.done():
                call.is_abandoned = True
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
        """Record that a coroutine of the tool has blocked the event loop."""
        self._clock.exclude(seconds)
        self._blocked_s += seconds
        if self._has_deadlines and not self._has_warned:
            self._has_warned = True
            logger.warning(
                "tool '%s': its coroutine blocked the event loop for %.1f s, and with it all trajectories of this "
                "process. Await what takes time, or write a plain `def`, which runs in a thread. This warning appears "
                "once; tools/%s/blocked_s counts the seconds.",
                *(self.tool.name, seconds, self.tool.name),
            )

    def _failure(self, error: Exception | None, call: _Call) -> ToolOutput:
        """The text for the model: the exception, or that the call was late."""
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
            if self._threads is not None and self._threads.num_running_abandoned >= MAX_ABANDONED:
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
    """The tools of one trajectory. Creates a tool's state at its first call, and releases all states in `close`."""

    def __init__(self, runners: dict[str, ToolRunner], trajectory_id: str, row: Mapping[str, Any]) -> None:
        self._runners = runners
        self._trajectory_id, self._row = trajectory_id, row
        self._states: dict[str, asyncio.Task[Any]] = {}

    async def execute(self, call: ToolCall) -> ToolResult:
        """Run one call. The result's status reports mistakes of the model, the tool or its service.

        Args:
            call: The parsed call. If it has an `error`, that is the answer.

        Returns:
            The result. Its text is not truncated yet.
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
        """The state from `create`. Calls of one turn share it. After a failure the next call tries again."""
        created = self._states.get(tool.name)
        if created is None or (created.done() and (created.cancelled() or created.exception() is not None)):
            runner = self._runners[tool.name]
            row = {"row": self._row} if runner.takes_row else {}
            created = self._states[tool.name] = runner.start(tool.create(self._trajectory_id, **row))
        try:
            return await asyncio.shield(created)
        except ServiceUnavailableError:
            raise
        except Exception as error:  # `create` may raise anything
            raise _CreateError(f"{type(error).__name__}: {error}") from error

    async def close(self) -> None:
        """Release every tool that was used. A failure is logged and does not affect the other tools."""
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
                    abandon(released)
                elif not released.cancelled() and (failure := released.exception()) is not None:
                    logger.warning("tool '%s': release failed for %s: %r", name, self._trajectory_id, failure)

    def _start_release(self, name: str, state: Any) -> asyncio.Task[None]:
        runner = self._runners[name]
        return runner.start(runner.tool.release(state))
