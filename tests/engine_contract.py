"""The contract of every `Engine`, checked for the fake (tests/unit) and the real engine (tests/e2e)."""

import asyncio
from collections.abc import Awaitable, Callable

from rl.interfaces import Engine
from rl.types import FinishReason, Sampling, WeightUpdate

Publish = Callable[[int], Awaitable[WeightUpdate]]
"""Prepares weights of a version for `update_weights`."""

PROMPT = [11, 12, 13, 14]


async def check_engine(engine: Engine, publish: Publish, *, max_tokens: int = 6, long: int = 400) -> None:
    """Run the whole contract; the engine is left at version 3.

    `long` tokens must take the engine so long that a publish started at once meets the request in flight; it must
    not stop at an end token before.
    """
    assert isinstance(engine, Engine)
    await check_length_and_logprobs(engine, max_tokens)
    await check_concurrent_requests(engine, max_tokens)
    await check_publish_stamps_version(engine, await publish(1), max_tokens)
    await check_publish_aborts_in_flight(engine, await publish(2), long)
    await check_request_during_publish(engine, await publish(3), max_tokens)
    await engine.sleep()
    await engine.update_weights(await publish(3))
    await check_length_and_logprobs(engine, max_tokens)


async def check_length_and_logprobs(engine: Engine, max_tokens: int) -> None:
    result = await engine.generate(PROMPT, Sampling(0.0, max_tokens), session_id="a/0")
    assert result.finish_reason is FinishReason.LENGTH
    assert len(result.token_ids) == len(result.logprobs) == max_tokens
    assert all(logprob <= 0 for logprob in result.logprobs)


async def check_concurrent_requests(engine: Engine, max_tokens: int) -> None:
    """Requests of one session at once, and the same request twice, all answered; greedy sampling repeats."""
    sampling = Sampling(0.0, max_tokens)
    results = await asyncio.gather(*(engine.generate(PROMPT, sampling, session_id="a/0") for _ in range(5)))
    assert all(r.token_ids == results[0].token_ids for r in results)


async def check_publish_stamps_version(engine: Engine, update: WeightUpdate, max_tokens: int) -> None:
    before = await engine.generate(PROMPT, Sampling(0.0, max_tokens), session_id="a/1")
    await engine.update_weights(update)
    after = await engine.generate(PROMPT, Sampling(0.0, max_tokens), session_id="a/1")
    assert (before.policy_version, after.policy_version) == (update.version - 1, update.version)


async def check_publish_aborts_in_flight(engine: Engine, update: WeightUpdate, long: int) -> None:
    """Partial output is returned, with the version that sampled it."""
    running = [
        asyncio.ensure_future(engine.generate(PROMPT, Sampling(0.0, long), session_id=f"b/{i}")) for i in range(3)
    ]
    await engine.generate(PROMPT, Sampling(0.0, 3), session_id="b/short")
    await engine.update_weights(update)
    for result in await asyncio.gather(*running):
        assert result.finish_reason is FinishReason.ABORT
        assert result.policy_version == update.version - 1
        assert 0 < len(result.token_ids) < long
        assert len(result.token_ids) == len(result.logprobs)


async def check_request_during_publish(engine: Engine, update: WeightUpdate, max_tokens: int) -> None:
    """A request during a weight update runs under one of the two versions and is not lost."""
    publishing = asyncio.ensure_future(engine.update_weights(update))
    await asyncio.sleep(0)
    result = await engine.generate(PROMPT, Sampling(0.0, max_tokens), session_id="c/0")
    await publishing
    assert result.policy_version == update.version
    assert result.finish_reason is FinishReason.LENGTH
