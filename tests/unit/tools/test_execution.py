import asyncio
import bdb
import sys
import threading

import pytest

from rl.tools.base import ServiceUnavailableError, Tool, ToolConfig, ToolOutput
from rl.tools.registry import Toolbox
from rl.types import ToolCall, ToolStatus
from tests.fakes import in_virtual_time

PARAMETERS = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}


def schema(name: str) -> dict[str, object]:
    return {"type": "function", "function": {"name": name, "parameters": PARAMETERS}}


class Recording(Tool):
    """Records its calls."""

    def __init__(self, config: ToolConfig, name: str = "tool") -> None:
        super().__init__(config, schema(name))
        self.log: list[str] = []
        self.running = self.most_running = 0

    async def create(self, trajectory_id: str) -> str:
        self.log.append(f"create {trajectory_id}")
        return trajectory_id

    async def release(self, state: str) -> None:
        self.log.append(f"release {state}")


class Sleeper(Recording):
    """Async: sleeps n milliseconds."""

    async def execute(self, state: str, arguments: dict[str, int]) -> str:
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            await asyncio.sleep(arguments["n"] / 1000)
        finally:
            self.running -= 1
        return f"slept {arguments['n']}"


class Blocker(Recording):
    """Plain: waits for an event that n releases."""

    def __init__(self, config: ToolConfig) -> None:
        super().__init__(config)
        self.event, self.is_waiting = threading.Event(), threading.Event()

    def execute(self, state: str, arguments: dict[str, int]) -> str:
        if arguments["n"] == 0:
            self.is_waiting.set()
            self.event.wait(30)
        return f"{arguments['n']} in {threading.current_thread().name}"


class Flaky(Recording):
    """Its service fails n times."""

    attempts = 0

    async def execute(self, state: str, arguments: dict[str, int]) -> ToolOutput:
        self.attempts += 1
        if self.attempts <= arguments["n"]:
            raise ServiceUnavailableError("HTTP 503")
        return ToolOutput("done", reward=0.5, stop=True, metrics={"x": 1.0})


class Down(Recording):
    """Its service fails until it is up."""

    attempts, is_up = 0, False

    async def execute(self, state: str, arguments: dict[str, int]) -> str:
        self.attempts += 1
        if not self.is_up:
            raise ServiceUnavailableError("no connection")
        return "done"


class Raising(Recording):
    """A plain function that raises."""

    def execute(self, state: str, arguments: dict[str, int]) -> str:
        return str(1 // arguments["n"])


class Quitting(Recording):
    """A plain function whose debugger is left."""

    def execute(self, state: str, arguments: dict[str, int]) -> str:
        raise bdb.BdbQuit


class Exiting(Recording):
    """Tries to end the process."""

    async def execute(self, state: str, arguments: dict[str, int]) -> str:
        sys.exit(arguments["n"])


class Starting(Sleeper):
    """Its service is unavailable when the first two trajectories' states are created."""

    num_created = 0
    error: type[Exception] = ServiceUnavailableError

    async def create(self, trajectory_id: str) -> str:
        self.num_created += 1
        if self.num_created <= 2:
            raise self.error("not yet")
        return await super().create(trajectory_id)


def call(n: object = 1, name: str = "tool", **more: object) -> ToolCall:
    return ToolCall(name, {"n": n, **more})


async def run_one(tool: Tool, *calls: ToolCall):
    session = Toolbox([tool]).open_session("p/0")
    try:
        return await asyncio.gather(*(session.execute(c) for c in calls))
    finally:
        await session.close()


async def test_session_creates_once_and_releases():
    tool = Sleeper(ToolConfig())
    results = await run_one(tool, call(1), call(2))
    assert [r.text for r in results] == ["slept 1", "slept 2"]
    assert {r.status for r in results} == {ToolStatus.OK}
    assert tool.log == ["create p/0", "release p/0"]


async def test_session_answers_what_the_model_did_wrong():
    tool = Sleeper(ToolConfig())
    wrong, thought, unknown, missing, typed = await run_one(
        tool,
        ToolCall("", {}, error="not closed."),
        ToolCall("tool", {}, error="in a thought.", is_in_thought=True),
        call(name="tol"),
        ToolCall("tool", {}),
        call("1"),
    )
    assert (thought.status, thought.text) == (ToolStatus.IN_THOUGHT, "Error: in a thought.")
    assert (wrong.status, wrong.text) == (ToolStatus.PARSE_ERROR, "Error: not closed.")
    assert unknown.status == ToolStatus.UNKNOWN_TOOL
    assert "Did you mean 'tool'? Known: tool." in unknown.text
    assert missing.status == typed.status == ToolStatus.INVALID_ARGUMENTS
    assert "'n' is a required property. Fields: n (integer, required)." in missing.text
    assert "at arguments.n: '1' is not of type 'integer'" in typed.text
    assert tool.log == []


@in_virtual_time
async def test_rate_limit_bounds_calls_in_progress():
    tool = Sleeper(ToolConfig(enable_global_rate_limit=True, rate_limit=2))
    results = await run_one(tool, *(call(20) for _ in range(6)))
    assert tool.most_running == 2
    assert [r.queue_s for r in results] == pytest.approx([0.0, 0.0, 0.02, 0.02, 0.04, 0.04])
    assert [r.run_s for r in results] == pytest.approx([0.02] * 6)
    unlimited = Sleeper(ToolConfig(rate_limit=2))
    await run_one(unlimited, *(call(20) for _ in range(6)))
    assert unlimited.most_running == 6


@in_virtual_time
async def test_full_queue_ends_as_unavailable():
    tool = Sleeper(ToolConfig(enable_global_rate_limit=True, rate_limit=1, queue_timeout=0.05))
    first, second = await run_one(tool, call(300), call(1))
    assert first.status == ToolStatus.OK
    assert second.status == ToolStatus.UNAVAILABLE
    assert second.text == "Error: no worker of 'tool' was free within 0.05 s."


@in_virtual_time
async def test_deadline_cancels_an_async_tool_and_frees_it():
    tool = Sleeper(ToolConfig(default_timeout=0.05, enable_global_rate_limit=True, rate_limit=1))
    late, next_one = await run_one(tool, call(5000), call(1))
    assert (late.status, late.text) == (ToolStatus.TIMEOUT, "Error: 'tool' timed out after 0.05 s.")
    assert next_one.status == ToolStatus.OK
    assert tool.running == 0


async def test_deadline_abandons_a_plain_tool_and_replaces_its_thread():
    tool = Blocker(ToolConfig(default_timeout=0.1, num_workers=1))
    late, next_one = await run_one(tool, call(0), call(7))
    assert (late.status, late.has_abandoned_thread) == (ToolStatus.TIMEOUT, True)
    assert not next_one.has_abandoned_thread
    assert next_one.text == "7 in tool-tool"
    tool.event.set()


async def test_plain_tools_do_not_block_the_loop():
    tool = Blocker(ToolConfig(num_workers=4))
    session = Toolbox([tool]).open_session("p/0")
    waiting = asyncio.ensure_future(session.execute(call(0)))
    assert (await session.execute(call(3))).text == "3 in tool-tool"
    tool.event.set()
    assert (await waiting).status == ToolStatus.OK


@in_virtual_time
async def test_service_failures_are_retried_then_reported():
    tool = Flaky(ToolConfig(default_timeout=5))
    (result,) = await run_one(tool, call(2))
    assert (result.status, result.text, tool.attempts) == (ToolStatus.OK, "done", 3)
    assert (result.reward, result.stop, result.metrics) == (0.5, True, {"x": 1.0})
    assert result.num_failed_attempts == 2
    assert 0 < result.outage_s <= result.queue_s + result.run_s
    assert not result.met_open_breaker
    (result,) = await run_one(Flaky(ToolConfig(queue_timeout=0.3)), call(1000))
    assert (result.status, result.text) == (
        ToolStatus.UNAVAILABLE,
        "Error: the service of 'tool' is not available: HTTP 503.",
    )
    assert result.num_failed_attempts >= 1


@in_virtual_time
async def test_a_service_that_is_down_is_left_alone_and_no_call_is_lost_when_it_comes_back():
    tool = Down(ToolConfig())
    waiting = asyncio.ensure_future(run_one(tool, *[call()] * 50))
    await asyncio.sleep(1.0)
    assert tool.attempts == 52  # each call's first, and probes after 0.25 and 0.75 s
    tool.is_up = True
    results = await waiting
    assert [r.status for r in results] == [ToolStatus.OK] * 50
    assert tool.attempts == 52 + 50  # the probe after 1.75 s, then all others
    assert sum(r.num_failed_attempts for r in results) == 52
    assert all(r.met_open_breaker for r in results)
    assert [r.outage_s for r in results] == pytest.approx([1.75] * 50)


@in_virtual_time
async def test_waiting_for_a_worker_leaves_the_run_its_whole_time():
    tool = Sleeper(ToolConfig(default_timeout=0.4, queue_timeout=0.4, enable_global_rate_limit=True, rate_limit=1))
    first, second = await run_one(tool, call(300), call(300))
    assert first.status == second.status == ToolStatus.OK
    assert (second.queue_s, second.run_s) == pytest.approx((0.3, 0.3))


@in_virtual_time
async def test_create_is_retried_while_its_service_fails():
    tool = Starting(ToolConfig())
    (result,) = await run_one(tool, call(1))
    assert (result.status, result.num_failed_attempts) == (ToolStatus.OK, 2)
    assert tool.log == ["create p/0", "release p/0"]


async def test_create_that_raises_is_no_fault_of_the_model():
    tool = Starting(ToolConfig())
    tool.error = KeyError
    (result,) = await run_one(tool, call(1))
    assert result.status == ToolStatus.UNAVAILABLE
    assert "KeyError: 'not yet'" in result.text
    assert tool.log == []


async def test_what_a_tool_raises_is_an_error_result():
    good, bad = await run_one(Raising(ToolConfig()), call(1), call(0))
    assert (good.status, good.text) == (ToolStatus.OK, "1")
    assert bad.status == ToolStatus.ERROR
    assert bad.text.startswith("Error: ZeroDivisionError: integer division")


async def test_a_tool_that_exits_does_not_end_the_worker():
    (result,) = await run_one(Exiting(ToolConfig()), call(3))
    assert (result.status, result.text) == (ToolStatus.ERROR, "Error: RuntimeError: the tool exited with 3")


async def test_cancelled_calls_of_plain_tools_free_their_workers_at_once():
    tool = Blocker(ToolConfig(num_workers=1))
    session = Toolbox([tool]).open_session("p/0")
    running = asyncio.ensure_future(session.execute(call(0)))
    while not tool.is_waiting.is_set():
        await asyncio.sleep(0)
    running.cancel()
    assert (await session.execute(call(7))).text == "7 in tool-tool"
    tool.event.set()


async def test_cancelled_calls_free_their_slots():
    tool = Sleeper(ToolConfig(enable_global_rate_limit=True, rate_limit=1))
    session = Toolbox([tool]).open_session("p/0")
    running, queued = (asyncio.ensure_future(session.execute(call(60_000))) for _ in range(2))
    while not tool.running:
        await asyncio.sleep(0)
    for task in (queued, running):
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert (await asyncio.wait_for(session.execute(call(1)), 2)).status == ToolStatus.OK


async def test_close_releases_all_even_if_one_fails(caplog):
    class Bad(Sleeper):
        async def release(self, state: str) -> None:
            raise OSError("gone")

    tools = [Bad(ToolConfig(), "bad"), Sleeper(ToolConfig(), "good")]
    session = Toolbox(tools).open_session("p/0")
    for tool in tools:
        await session.execute(call(1, tool.name))
    await session.close()
    assert tools[1].log == ["create p/0", "release p/0"]
    assert "release failed for p/0" in caplog.text


async def test_tools_in_the_caller_run_in_its_thread_and_have_no_deadline():
    plain, slow = (
        Blocker(ToolConfig(num_workers=1)),
        Sleeper(ToolConfig(default_timeout=0.01, queue_timeout=0.01), "slow"),
    )
    toolbox = Toolbox([plain, slow])
    toolbox.run_in_caller()
    session = toolbox.open_session("p/0")
    results = await asyncio.gather(
        session.execute(call(1)), session.execute(call(100, "slow")), session.execute(call(2))
    )
    assert [r.text for r in results] == ["1 in MainThread", "slept 100", "2 in MainThread"]
    assert {r.status for r in results} == {ToolStatus.OK}
    await session.close()


def test_leaving_a_debugger_in_a_tool_ends_the_run():
    toolbox = Toolbox([Quitting(ToolConfig())])
    toolbox.run_in_caller()
    with pytest.raises(KeyboardInterrupt), asyncio.Runner() as runner:
        runner.run(toolbox.open_session("p/0").execute(call(1)))
