import asyncio

import pytest

from rl.errors import RolloutError, WeightSyncError
from rl.inference.fake import FakeEngine
from rl.types import FinishReason, Generation, Sampling, WeightUpdate
from tests.engine_contract import check_engine


def count_up(token_ids: list[int]) -> list[int]:
    return [token_ids[-1] + 1 + i for i in range(1000)]


async def no_files(version: int) -> WeightUpdate:
    return WeightUpdate(version, ())


async def test_fake_engine_fulfills_the_contract():
    await check_engine(FakeEngine(count_up, seconds_per_token=0.002), no_files)


async def test_fake_engine_stops_at_a_stop_token():
    engine = FakeEngine(lambda ids: [7, 8, 2, 9], stop_token_ids=[2])
    result = await engine.generate([1], Sampling(1.0, 10), session_id="s")
    assert result == Generation([7, 8, 2], [0.0, -0.01, -0.02], FinishReason.STOP, 0)


async def test_fake_engine_length_wins_over_a_later_stop_token():
    engine = FakeEngine(lambda ids: [7, 8, 2, 9], stop_token_ids=[2])
    result = await engine.generate([1], Sampling(1.0, 2), session_id="s")
    assert (result.token_ids, result.finish_reason) == ([7, 8], FinishReason.LENGTH)


async def test_fake_engine_that_dies_fails_requests_in_flight():
    engine = FakeEngine(count_up, seconds_per_token=0.01, dies_after=1)
    first = asyncio.ensure_future(engine.generate([1], Sampling(1.0, 500), session_id="s"))
    await asyncio.sleep(0)
    with pytest.raises(RolloutError, match="died"):
        await engine.generate([1], Sampling(1.0, 1), session_id="t")
    with pytest.raises(RolloutError, match="died"):
        await first


async def test_fake_engine_rejects_an_update_that_fails_verification():
    def refuse(update: WeightUpdate) -> None:
        raise WeightSyncError("checksum")

    engine = FakeEngine(count_up, verify=refuse)
    with pytest.raises(WeightSyncError):
        await engine.update_weights(WeightUpdate(1, (), "00"))
    assert engine.policy_version == 0
