import asyncio

import pytest

from rl.tools.base import ServiceUnavailableError
from rl.tools.breaker import CircuitBreaker


async def attempt(breaker: CircuitBreaker, error: type[Exception] | None = None) -> None:
    async with breaker.guard():
        if error is not None:
            raise error("x")


async def fail(breaker: CircuitBreaker, times: int) -> None:
    for _ in range(times):
        with pytest.raises(ServiceUnavailableError):
            await attempt(breaker, ServiceUnavailableError)


async def test_breaker_opens_at_the_fifth_failure_in_a_row(caplog):
    breaker = CircuitBreaker("t")
    await fail(breaker, 4)
    await attempt(breaker)
    await fail(breaker, 4)
    assert not breaker.is_open
    await fail(breaker, 1)
    assert breaker.is_open
    assert "Calls wait until its service answers" in caplog.text


async def test_breaker_counts_what_the_tool_itself_raises_as_an_answer():
    breaker = CircuitBreaker("t")
    await fail(breaker, 4)
    with pytest.raises(KeyError):
        await attempt(breaker, KeyError)
    await fail(breaker, 4)
    assert not breaker.is_open


async def test_breaker_lets_one_probe_through_and_all_after_its_answer():
    breaker = CircuitBreaker("t")
    await fail(breaker, 5)
    entered: list[int] = []
    answered = asyncio.Event()

    async def call(number: int) -> None:
        async with breaker.guard():
            entered.append(number)
            await answered.wait()

    calls = [asyncio.ensure_future(call(i)) for i in range(50)]
    while not entered:
        await asyncio.sleep(0.01)
    assert len(entered) == 1
    answered.set()
    await asyncio.gather(*calls)
    assert len(entered) == 50
    assert not breaker.is_open


async def test_breaker_stays_open_after_a_failed_probe_and_then_closes():
    breaker = CircuitBreaker("t")
    await fail(breaker, 6)  # the sixth waits, and is the probe
    assert breaker.is_open
    await attempt(breaker)
    assert not breaker.is_open


async def test_breaker_passes_the_probe_on_when_it_is_cancelled():
    breaker = CircuitBreaker("t")
    await fail(breaker, 5)
    is_probing = asyncio.Event()

    async def hang() -> None:
        async with breaker.guard():
            is_probing.set()
            await asyncio.Event().wait()

    probe = asyncio.ensure_future(hang())
    await is_probing.wait()
    waiting = asyncio.ensure_future(attempt(breaker))
    probe.cancel()
    await asyncio.wait_for(waiting, 5)
    assert not breaker.is_open
