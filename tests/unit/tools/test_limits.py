import asyncio

from rl.tools.base import Tool, ToolConfig
from rl.tools.limits import PermitPool, SharedLimiter
from rl.tools.registry import Toolbox
from rl.types import ToolCall, ToolStatus


async def settle() -> None:
    """Run everything that is ready, without waiting."""
    for _ in range(50):
        await asyncio.sleep(0)


class Counter:
    """Calls that remain in progress until they are released."""

    def __init__(self) -> None:
        self.running = self.most = 0
        self.go = asyncio.Event()

    async def call(self, limiter: SharedLimiter) -> None:
        async with limiter:
            self.running += 1
            self.most = max(self.most, self.running)
            await self.go.wait()
            self.running -= 1


async def test_permit_pool_gives_what_is_free():
    pool = PermitPool(3)
    assert len(await pool.take(2, 60)) == 2
    assert len(await pool.take(5, 60)) == 1


async def test_permit_pool_serves_in_order():
    pool = PermitPool(1)
    held = await pool.take(1, 60)
    order: list[str] = []

    async def take(name: str) -> None:
        permits = await pool.take(1, 60)
        order.append(name)
        pool.give_back(permits)

    tasks = [asyncio.ensure_future(take(name)) for name in "abc"]
    await settle()
    assert order == []
    pool.give_back(held)
    await asyncio.gather(*tasks)
    assert order == ["a", "b", "c"]


async def test_permit_pool_takes_back_what_a_dead_process_held():
    pool = PermitPool(1)
    lost = await pool.take(1, 0.05)
    (permit,) = await asyncio.wait_for(pool.take(1, 60), 5)
    pool.give_back(lost)  # too late: another process has it
    waiting = asyncio.ensure_future(pool.take(1, 60))
    await settle()
    assert not waiting.done()
    pool.give_back([permit])
    assert len(await asyncio.wait_for(waiting, 5)) == 1


async def test_shared_limiters_bound_calls_together_and_lose_no_permit():
    pool, counter = PermitPool(3), Counter()
    limiters = [SharedLimiter(pool, 60), SharedLimiter(pool, 60)]
    calls = [asyncio.ensure_future(counter.call(limiters[i % 2])) for i in range(20)]
    await settle()
    assert counter.running == 3
    counter.go.set()
    await asyncio.wait_for(asyncio.gather(*calls), 5)
    assert counter.most == 3
    assert len(await pool.take(9, 60)) == 3


async def test_shared_limiters_take_turns():
    pool, order = PermitPool(1), []
    greedy, modest = SharedLimiter(pool, 60), SharedLimiter(pool, 60)

    async def call(name: str, limiter: SharedLimiter) -> None:
        async with limiter:
            order.append(name)

    calls = [asyncio.ensure_future(call("greedy", greedy)) for _ in range(10)]
    calls.append(asyncio.ensure_future(call("modest", modest)))
    await asyncio.gather(*calls)
    assert order.index("modest") <= 2


async def test_shared_limiter_hands_on_what_a_cancelled_call_was_granted():
    pool, counter = PermitPool(1), Counter()
    limiter = SharedLimiter(pool, 60)
    first, second, third = (asyncio.ensure_future(counter.call(limiter)) for _ in range(3))
    await settle()
    second.cancel()
    first.cancel()
    await settle()
    assert counter.running == 2  # the first was cancelled; the third has its permit
    counter.go.set()
    await asyncio.wait_for(third, 5)
    assert len(await pool.take(1, 60)) == 1


async def test_toolboxes_share_the_limit_of_a_tool_that_has_one():
    class Waiter(Tool):
        running = 0
        go = asyncio.Event()

        async def execute(self, state: object, arguments: dict[str, object]) -> str:
            Waiter.running += 1
            await self.go.wait()
            return "done"

    schema = {"type": "function", "function": {"name": "wait"}}
    asked: list[tuple[str, int]] = []
    pool = PermitPool(2)

    def permits_of(name: str, limit: int) -> PermitPool:
        asked.append((name, limit))
        return pool

    sessions = []
    for _ in range(2):
        toolbox = Toolbox([Waiter(ToolConfig(enable_global_rate_limit=True, rate_limit=2), schema)])
        toolbox.share_rate_limits(permits_of)
        sessions.append(toolbox.open_session("p/0"))
    assert asked == [("wait", 2), ("wait", 2)]
    calls = [asyncio.ensure_future(s.execute(ToolCall("wait", {}))) for s in sessions for _ in range(3)]
    await settle()
    assert Waiter.running == 2
    Waiter.go.set()
    results = await asyncio.wait_for(asyncio.gather(*calls), 5)
    assert {r.status for r in results} == {ToolStatus.OK}
    unlimited = Toolbox([Waiter(ToolConfig(), schema)])
    unlimited.share_rate_limits(permits_of)
    assert len(asked) == 2


async def test_shared_limiter_tells_every_waiting_call_that_there_is_no_answer():
    class Gone:
        async def take(self, at_most: int, lease_s: float) -> list[int]:
            raise ConnectionError("the actor is gone")

        def give_back(self, permits: list[int]) -> None:
            raise AssertionError("nothing was granted")

    limiter, counter = SharedLimiter(Gone(), 60), Counter()
    ends = await asyncio.gather(*(counter.call(limiter) for _ in range(3)), return_exceptions=True)
    assert [repr(end) for end in ends] == [
        "ServiceUnavailableError('the shared rate limit: ConnectionError: the actor is gone')"
    ] * 3
