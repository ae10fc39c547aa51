"""What goes wrong in the service: disks, rewards, engines, clients that leave, requests that meet."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from rl.errors import ConfigError, RewardError, RolloutError
from rl.serving.journal import Journal, read_journal
from rl.serving.training import BatchClosed, Broken, SaveWanted
from rl.types import Generation, Sampling, Scores, StopReason, Trajectory
from tests.unit.serving.service_parts import SayingEngine, served, service_config


async def test_a_reward_that_met_a_full_disk_can_be_sent_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    async with served(tmp_path) as s:
        (rollout,) = (await s.open_group(n=1))["rollouts"]
        with monkeypatch.context() as patched:
            patched.setattr(Journal, "write", _full_disk)
            status, answer = await s.reward(rollout, 1)
            assert (status, "No space left" in answer["error"]["message"]) == (503, True)
        status, answer = await s.reward(rollout, 1)
        assert (status, answer["group_is_complete"]) == (200, True)
        assert (await s.reward(rollout, 1))[0] == 200
        assert len(await s.groups()) == 1
        assert len(list(read_journal(tmp_path / "journal"))) == 1


def _full_disk(*args: Any) -> None:
    raise OSError(28, "No space left on device")


async def test_a_dead_reward_worker_ends_the_training_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    async with served(tmp_path) as s:
        monkeypatch.setattr(s.service.groups, "_score", _dead_worker)
        first, second = (await s.open_group())["rollouts"]
        status, answer = await s.reward(first, 1)
        assert (status, answer["error"]["message"]) == (500, "RewardError: reward worker 0: its process died.")
        status, answer = await s.reward(second, 1)
        assert (status, answer["error"]["code"]) == (409, "rollout_ended")
        assert "an error of the service" in answer["error"]["message"]
        (event,) = await s.events()
        assert event == Broken("RewardError: reward worker 0: its process died.")


async def _dead_worker(trajectory: Trajectory) -> Scores:
    raise RewardError("reward worker 0: its process died.")


class DeadEngine(SayingEngine):
    async def generate(self, token_ids: list[int], sampling: Sampling, *, session_id: str) -> Generation:
        raise RolloutError("engine 0: died. See its log.")


async def test_a_reward_behind_a_dead_engine_is_answered_at_once(tmp_path: Path):
    async with served(tmp_path) as s:
        first, second = (await s.open_group())["rollouts"]
        s.service.gate._engine = DeadEngine()
        assert (await s.chat(first))[0] == 500
        status, answer = await asyncio.wait_for(s.reward(first, 1), 5)
        assert (status, answer["score"], answer["group_is_complete"]) == (200, None, False)
        assert (await s.reward(second, 1))[0] == 200
        (event,) = await s.groups()
        assert [t.stop_reason for t in event.group.trajectories] == [StopReason.ENGINE_FAILED, StopReason.FINISHED]


async def test_a_group_of_an_ended_training_does_not_reach_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    async with served(tmp_path / "first") as s:
        scoring = asyncio.Event()
        own_score = s.service.groups._score

        async def slow(trajectory: Trajectory) -> Scores:
            await scoring.wait()
            return await own_score(trajectory)

        monkeypatch.setattr(s.service.groups, "_score", slow)
        (rollout,) = (await s.open_group(n=1))["rollouts"]
        rewarding = asyncio.create_task(s.reward(rollout, 1))
        while s.service.groups.num_open:
            await asyncio.sleep(0.01)
        ending = asyncio.create_task(s.service.end_job(3, None))
        await asyncio.sleep(0.05)
        scoring.set()
        await ending
        status, answer = await rewarding
        assert (status, answer["error"]["code"]) == (409, "training_ended")
        beginning = asyncio.create_task(s.service.begin("second", {}))
        await asyncio.sleep(0)
        s.folder = tmp_path / "second"
        await s.begin()
        await beginning
        assert await s.service.next_events(0.05) == []
        assert list(read_journal(tmp_path / "second" / "journal")) == []


async def test_a_refused_training_leaves_nobody_waiting(tmp_path: Path):
    async with served(tmp_path, begins=False) as s:
        beginning = asyncio.create_task(s.service.begin("job", {"actor_config.lr": -1}))
        await asyncio.sleep(0)
        closing, ending = asyncio.create_task(s.service.close_batch()), asyncio.create_task(s.service.end())
        await asyncio.sleep(0)
        await s.service.refuse_job("actor_config.lr: must be above 0.")
        for task in (beginning, closing):
            with pytest.raises(ConfigError, match=r"actor_config\.lr"):
                await asyncio.wait_for(task, 1)
        await asyncio.wait_for(ending, 1)


async def test_two_saves_of_one_name_are_one(tmp_path: Path):
    async with served(tmp_path) as s:
        saves = [asyncio.create_task(s.service.save("best")) for _ in range(2)]
        assert await s.events() == [SaveWanted("best")]
        await s.service.saved("best", tmp_path / "saved")
        assert await asyncio.gather(*saves) == [tmp_path / "saved"] * 2
        assert s.service.status.checkpoints == {"best": str(tmp_path / "saved")}


async def test_a_batch_that_is_closed_during_an_update_waits_for_its_own(tmp_path: Path):
    async with served(tmp_path) as s:
        await s.service.begin_update()
        closing = asyncio.create_task(s.service.close_batch())
        await asyncio.sleep(0)
        await s.service.begin_sampling(1)
        await asyncio.sleep(0.05)
        assert not closing.done()
        assert await s.events() == [BatchClosed(0)]
        await s.service.batches_closed([0])
        await closing


@pytest.mark.parametrize("name", ["group-000001", "group-7"])
async def test_a_name_that_the_service_gives_is_refused(tmp_path: Path, name: str):
    async with served(tmp_path) as s:
        status, answer = await s.post("/v1/groups", {"prompt": "?", "n": 1, "id": name})
        assert (status, answer["error"]["param"]) == (400, "id")


async def test_more_rollouts_than_may_ever_be_open_are_refused_for_good(tmp_path: Path):
    async with served(tmp_path, service_config(max_open_rollouts=3)) as s:
        assert (await s.post("/v1/groups", {"prompt": "?", "n": 4}))[0] == 400


async def test_a_client_that_leaves_while_its_group_opens_leaves_no_rollout(tmp_path: Path):
    async with served(tmp_path, begins=False) as s:
        await s.service.begin_native()
        opening = asyncio.create_task(s.open_group(n=3))
        await asyncio.sleep(0.05)
        opening.cancel()
        await asyncio.sleep(0.05)
        await s.begin()
        await asyncio.sleep(0.1)
        assert s.service.groups.num_open == 0
        assert not s.service.endpoint._rollouts._open


async def test_a_request_under_way_does_not_spoil_the_rewards_of_the_others(tmp_path: Path):
    async with served(tmp_path) as s:
        (rollout,) = (await s.open_group(n=1))["rollouts"]
        assert (await s.chat(rollout))[0] == 200
        s.engine.blocks = asyncio.Event()
        asking = asyncio.create_task(s.chat(rollout, messages=[{"role": "user", "content": "More?"}]))
        while s.engine.num_requests < 2:
            await asyncio.sleep(0.01)
        status, _ = await s.reward(rollout, 1, turn_scores=[0.5])
        assert status == 200
        assert (await asking)[0] == 404
        (event,) = await s.groups()
        assert event.group.trajectories[0].turn_rewards[0] == 0.5
