"""Tools that do not let others run, or do not let go: who is named, who pays, and what is left of them."""

from __future__ import annotations

import asyncio
import gc
import logging
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from rl.tools.base import Tool, ToolConfig
from rl.tools.registry import Toolbox
from rl.tools.threads import MAX_ABANDONED
from rl.types import ToolCall, ToolResult, ToolStatus
from tests.fakes import hold_up_loop, in_virtual_time


class Acting(Tool):
    """Async: does what it is given; `create` and `release` too."""

    def __init__(self, name: str, act: Callable[[], Awaitable[Any]], **config: Any) -> None:
        super().__init__(ToolConfig(**config), {"type": "function", "function": {"name": name}})
        self.act = act
        self.at_create = self.at_release = nothing

    async def create(self, trajectory_id: str) -> None:
        await self.at_create()

    async def execute(self, state: None, arguments: dict[str, Any]) -> Any:
        return await self.act()

    async def release(self, state: None) -> None:
        await self.at_release()


class Plain(Acting):
    """The same in a thread."""

    def execute(self, state: None, arguments: dict[str, Any]) -> Any:  # type: ignore[override]
        return self.act()


async def nothing() -> None: ...


def sleeping(seconds: float) -> Callable[[], Awaitable[str]]:
    async def act() -> str:
        await asyncio.sleep(seconds)
        return "slept"

    return act


def blocking(seconds: float, then: float = 0.0) -> Callable[[], Awaitable[str]]:
    async def act() -> str:
        await asyncio.sleep(0.1)
        hold_up_loop(seconds)
        await asyncio.sleep(then)
        return "blocked"

    return act


class Deaf:
    """Does not listen to its cancellation."""

    def __init__(self) -> None:
        self.num_cancelled, self.closed_at = 0, -1.0

    async def __call__(self) -> None:
        try:
            while True:
                try:
                    await asyncio.sleep(3600)
                except asyncio.CancelledError:
                    self.num_cancelled += 1
        except GeneratorExit:
            self.closed_at = asyncio.get_running_loop().time()
            raise


async def run(*tools: Tool, times: int = 1) -> list[ToolResult]:
    """Call each tool at once, in order."""
    session = Toolbox(list(tools)).open_session("p/0")
    results = await asyncio.gather(*(session.execute(ToolCall(tool.name, {})) for tool in tools for _ in range(times)))
    await session.close()
    return results


def now() -> float:
    return asyncio.get_running_loop().time()


@in_virtual_time
async def test_a_coroutine_that_holds_up_the_loop_is_named_and_no_other_call_pays(caplog: pytest.LogCaptureFixture):
    culprit = Acting("culprit", blocking(4), default_timeout=30)
    victim = Acting("victim", sleeping(1), default_timeout=2)
    queued = Acting("queued", sleeping(1), queue_timeout=2, rate_limit=1, enable_global_rate_limit=True)
    first, *others = await run(culprit, victim, queued, times=2)
    assert [r.status for r in (first, *others)] == [ToolStatus.OK] * 6
    assert [r.blocked_s for r in (first, *others)] == pytest.approx([8, 0, 0, 0, 0, 0])  # of both, in the first result
    assert "tool 'culprit': its coroutine blocked the event loop for 4.0 s" in caplog.text
    assert caplog.text.count("its coroutine blocked the event loop") == 1
    assert "the event loop was blocked" not in caplog.text


@in_virtual_time
async def test_a_coroutine_that_holds_up_the_loop_beyond_its_deadline_is_late():
    late, also_late = await run(
        Acting("blocks", blocking(4), default_timeout=2), Acting("waits", blocking(4, then=10), default_timeout=5)
    )
    assert (late.status, late.text) == (ToolStatus.TIMEOUT, "Error: 'blocks' timed out after 2 s.")
    assert also_late.status is ToolStatus.TIMEOUT
    assert now() == pytest.approx(9)  # the other one's 4 s, and 5 s of its own


@in_virtual_time
async def test_deadlines_are_kept_though_the_loop_stood_still_before():
    _, victim = await run(Acting("culprit", blocking(4)), Acting("victim", sleeping(60), default_timeout=2))
    assert victim.status is ToolStatus.TIMEOUT
    assert now() == pytest.approx(6)


@in_virtual_time
async def test_many_short_pauses_are_no_stall(caplog: pytest.LogCaptureFixture):
    async def busy() -> None:
        for _ in range(30):
            hold_up_loop(0.1)
            await asyncio.sleep(0)

    worker, victim = await run(Acting("busy", busy), Acting("victim", sleeping(60), default_timeout=2))
    assert (worker.blocked_s, victim.status) == (0, ToolStatus.TIMEOUT)
    assert caplog.text == ""


async def gathered(work: Awaitable[Any]) -> None:
    await asyncio.gather(work)


async def waited_for(work: Awaitable[Any]) -> None:
    await asyncio.wait_for(work, 3600)


async def grouped(work: Any) -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(waited_for(work))


@pytest.mark.parametrize("wrap", [gathered, waited_for, grouped])
def test_a_task_of_a_tool_that_holds_up_the_loop_counts_as_the_tool(wrap: Any, caplog: pytest.LogCaptureFixture):
    @in_virtual_time
    async def check() -> None:
        tasks = Acting("parent", lambda: wrap(blocking(4)()), default_timeout=2)
        parent, victim = await run(tasks, Acting("victim", sleeping(1), default_timeout=2))
        assert (parent.status, victim.status) == (ToolStatus.TIMEOUT, ToolStatus.OK)
        assert parent.blocked_s == pytest.approx(4)
        assert asyncio.get_running_loop().get_task_factory() is None

    check()
    assert "tool 'parent': its coroutine blocked the event loop for 4.0 s" in caplog.text


@in_virtual_time
async def test_a_stall_outside_of_coroutines_costs_no_call_and_is_told(caplog: pytest.LogCaptureFixture):
    async def later() -> None:
        asyncio.get_running_loop().call_later(0.1, hold_up_loop, 4)
        await asyncio.sleep(1)

    assert {r.status for r in await run(Acting("caller", later, default_timeout=2))} == {ToolStatus.OK}
    assert "the event loop was blocked for 3.8 s while calls of 'caller' were running" in caplog.text


@in_virtual_time
async def test_a_pause_between_calls_is_no_stall(caplog: pytest.LogCaptureFixture):
    tool = Acting("tool", sleeping(1), default_timeout=2)
    await run(tool)
    hold_up_loop(600)
    assert (await run(tool))[0].status is ToolStatus.OK
    toolbox = Toolbox([tool])
    for _ in range(2):
        hold_up_loop(600)
        session = toolbox.open_session("p/0")
        assert (await session.execute(ToolCall("tool", {}))).status is ToolStatus.OK
        await session.close()
    assert caplog.text == ""


@in_virtual_time
async def test_create_and_release_that_hold_up_the_loop_are_counted_with_the_tool(caplog: pytest.LogCaptureFixture):
    async def block() -> None:
        hold_up_loop(3)

    tool = Acting("tool", nothing)
    tool.at_create = tool.at_release = block
    toolbox = Toolbox([tool])
    blocked = []
    for number in range(2):
        session = toolbox.open_session(f"p/{number}")
        blocked.append((await session.execute(ToolCall("tool", {}))).blocked_s)
        await session.close()
    assert blocked == pytest.approx([3, 6])  # its create; the first one's release and its own create
    assert "tool 'tool': its coroutine blocked the event loop" in caplog.text


async def test_a_real_sleep_is_measured():
    async def block() -> str:
        await asyncio.sleep(0)
        time.sleep(1.0)  # as users do
        return "done"

    culprit, victim = await run(Acting("culprit", block), Acting("victim", sleeping(0.1), default_timeout=0.7))
    assert (culprit.status, victim.status) == (ToolStatus.OK, ToolStatus.OK)
    assert culprit.blocked_s == pytest.approx(1.0, abs=0.5)


@in_virtual_time
async def test_a_coroutine_that_swallows_its_cancellation_is_left_counted_and_closed(caplog: pytest.LogCaptureFixture):
    deaf = Deaf()
    tool = Acting("deaf", deaf, default_timeout=2, rate_limit=1, enable_global_rate_limit=True)
    session = Toolbox([tool]).open_session("p/0")
    result = await session.execute(ToolCall("deaf", {}))
    assert (result.status, result.has_abandoned_coroutine, result.has_abandoned_thread) == (
        ToolStatus.TIMEOUT, True, False,
    )  # fmt: skip
    assert (now(), deaf.num_cancelled) == (pytest.approx(3), 1)
    assert "tool 'deaf': a coroutine did not end when it was cancelled" in caplog.text
    tool.act = sleeping(1)
    again = await session.execute(ToolCall("deaf", {}))  # its permit is free
    assert (again.status, again.has_abandoned_coroutine) == (ToolStatus.OK, False)
    await session.close()
    await asyncio.sleep(60)
    assert (deaf.closed_at, deaf.num_cancelled) == (pytest.approx(33), 1)
    assert asyncio.all_tasks() == {asyncio.current_task()}


@in_virtual_time
async def test_a_coroutine_may_clean_up_when_it_is_cancelled():
    cleaned = []

    async def careful() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0.5)
            cleaned.append(now())

    (result,) = await run(Acting("careful", careful, default_timeout=2))
    assert (result.status, result.has_abandoned_coroutine) == (ToolStatus.TIMEOUT, False)
    assert cleaned == [pytest.approx(2.5)]


@in_virtual_time
async def test_a_coroutine_may_have_time_limits_of_its_own():
    async def retry() -> str:
        for _ in range(5):
            try:
                async with asyncio.timeout(1):
                    await asyncio.sleep(60)
            except TimeoutError:
                continue
        return "gave up"

    (result,) = await run(Acting("retry", retry, default_timeout=30))
    assert (result.status, result.text, now()) == (ToolStatus.OK, "gave up", pytest.approx(5))


def test_a_process_ends_though_a_coroutine_does_not_listen():
    deaf = Deaf()

    async def leave_it() -> None:
        await run(Acting("deaf", deaf, default_timeout=0.05))

    ended = threading.Thread(target=lambda: asyncio.run(leave_it()), daemon=True)
    ended.start()
    ended.join(30)
    assert not ended.is_alive()
    assert deaf.closed_at >= 0


@in_virtual_time
async def test_create_and_release_that_do_not_listen_do_not_keep_a_trajectory():
    for part in ("at_create", "at_release"):
        tool, deaf = Acting("tool", nothing, queue_timeout=2), Deaf()
        setattr(tool, part, deaf)
        session = Toolbox([tool]).open_session("p/0")
        await session.execute(ToolCall("tool", {}))
        with pytest.raises(TimeoutError) if part == "at_release" else pytest.MonkeyPatch.context():
            async with asyncio.timeout(10):
                await session.close()
        await asyncio.sleep(60)
        assert deaf.closed_at > 0
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_so_many_threads_are_left_and_no_more():
    event = threading.Event()
    tool = Plain("plain", lambda: event.wait(60), default_timeout=0.1, queue_timeout=0.2, num_workers=MAX_ABANDONED)  # type: ignore[arg-type,return-value]
    session = Toolbox([tool]).open_session("p/0")
    late = await asyncio.gather(*(session.execute(ToolCall("plain", {})) for _ in range(MAX_ABANDONED)))
    assert {(r.status, r.has_abandoned_thread) for r in late} == {(ToolStatus.TIMEOUT, True)}
    refused = await session.execute(ToolCall("plain", {}))
    assert refused.status is ToolStatus.UNAVAILABLE
    assert f"{MAX_ABANDONED} earlier calls of it still run" in refused.text
    event.set()
    tool.config.queue_timeout = 30
    assert (await session.execute(ToolCall("plain", {}))).text == "true"
    await session.close()


@pytest.mark.parametrize("kind", [Acting, Plain])
async def test_calls_that_end_badly_leave_no_message_of_asyncio(kind: type[Acting], caplog: pytest.LogCaptureFixture):
    event, ended = threading.Event(), threading.Event()

    async def waits() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            raise OSError("too late")

    def blocks() -> None:
        event.wait(60)
        ended.set()
        raise OSError("too late")

    tool = kind("tool", waits if kind is Acting else blocks, default_timeout=0.05)  # type: ignore[arg-type]
    told: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
    with caplog.at_level(logging.ERROR):
        assert [r.status for r in await run(tool, times=3)] == [ToolStatus.TIMEOUT] * 3
        running = asyncio.ensure_future(run(tool))
        await asyncio.sleep(0.01)
        running.cancel()
        await asyncio.wait({running})
        event.set()
        while kind is Plain and not ended.is_set():
            await asyncio.sleep(0.01)
        for _ in range(3):
            await asyncio.sleep(0.05)
            gc.collect()
    assert (told, caplog.text) == ([], "")
