"""Groups and rollouts over HTTP: what clients get, and what reaches the training."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from rl.batches import Sample
from rl.errors import ConfigError
from rl.rollout.group_text import header_from_text, prompt_of
from rl.serving.job import JobState
from rl.serving.journal import read_journal
from rl.serving.training import BatchClosed, EndWanted, GroupDone
from rl.types import Generation, Sampling, StopReason
from tests.unit.serving.parts import ids, text_of
from tests.unit.serving.service_parts import served, service_config

ANSWER = "It is 3."


async def test_a_group_of_a_client_reaches_the_training_as_it_was_sampled(tmp_path: Path):
    async with served(tmp_path) as s:
        group = await s.open_group(id="row-7", ground_truth="3", columns={"level": 2})
        for number, rollout in enumerate(group["rollouts"]):
            status, answer = await s.chat(rollout, model=rollout["model"])
            assert (status, answer["choices"][0]["message"]["content"]) == (200, ANSWER)
            status, told = await s.reward(rollout, {"score": number, "recall": 0.5})
            assert (status, told["score"], told["group_is_complete"]) == (200, number, number == 1)
        (event,) = await s.groups()
        prompt = event.group.prompt
        assert (prompt.id, prompt.ground_truth, prompt.extra) == ("row-7", "3", {"level": 2})
        assert prompt.messages == [{"role": "user", "content": "What is 1 + 2?"}]
        assert [t.score for t in event.group.trajectories] == [0, 1]
        for trajectory in event.group.trajectories:
            assert trajectory.rewards["environment/recall"] == 0.5
            assert trajectory.stop_reason is StopReason.FINISHED
            (sequence,) = trajectory.sequences
            sampled = sequence.token_ids[sequence.loss_mask == 1].tolist()
            assert sampled == ids(ANSWER + "<|im_end|>")
            assert text_of(sequence).endswith(f"What is 1 + 2?<|im_end|>\n<|im_start|>assistant\n{ANSWER}<|im_end|>")


async def test_an_acknowledged_group_is_on_disk(tmp_path: Path):
    async with served(tmp_path) as s:
        group = await s.open_group(n=1)
        await s.chat(group["rollouts"][0])
        await s.reward(group["rollouts"][0], 0.25)
        ((number, text),) = read_journal(tmp_path / "journal")
        header = header_from_text(text, prompt_of(text), keep=lambda value: value)
        (event,) = await s.groups()
        assert (number, header.trajectories[0].score) == (0, 0.25)
        (sequence,) = event.group.trajectories[0].sequences
        (row,) = header.rows
        assert isinstance(row, Sample)
        assert row.token_ids.tolist() == sequence.token_ids.tolist()
        assert row.rollout_logprobs.tolist() == sequence.logprobs.tolist()


async def test_a_reward_that_is_sent_again_is_the_same_and_another_is_refused(tmp_path: Path):
    async with served(tmp_path) as s:
        (rollout,) = (await s.open_group(n=1))["rollouts"]
        await s.chat(rollout)
        first = await s.reward(rollout, 1)
        assert await s.reward(rollout, 1) == first
        status, answer = await s.reward(rollout, 2)
        assert status == 409
        assert "ended already" in answer["error"]["message"]
        assert (await s.post(f"/rollouts/{rollout['id']}/end"))[0] == 409
        assert len(await s.groups()) == 1


async def test_an_ended_rollout_answers_no_more(tmp_path: Path):
    async with served(tmp_path) as s:
        (rollout,) = (await s.open_group(n=1))["rollouts"]
        await s.chat(rollout)
        await s.reward(rollout, 1)
        status, answer = await s.chat(rollout)
        assert (status, answer["error"]["code"]) == (404, "rollout_not_found")


async def test_completions_have_rewards_of_their_own(tmp_path: Path):
    async with served(tmp_path) as s:
        (rollout,) = (await s.open_group(n=1))["rollouts"]
        _, first = await s.chat(rollout)
        _, second = await s.chat(rollout, messages=[{"role": "user", "content": "Again?"}])
        assert (await s.reward(rollout, 1, completions={second["id"]: 0.5, first["id"]: -0.5}))[0] == 200
        (event,) = await s.groups()
        assert event.group.trajectories[0].turn_rewards == [-0.5, 0.5]


async def test_an_aborted_rollout_leaves_the_group_to_the_others(tmp_path: Path):
    async with served(tmp_path) as s:
        first, second = (await s.open_group())["rollouts"]
        await s.chat(first)
        status, _ = await s.post(f"/rollouts/{first['id']}/abort", {"reason": "the browser crashed"})
        assert status == 200
        await s.chat(second)
        await s.reward(second, 1)
        (event,) = await s.groups()
        lost, kept = event.group.trajectories
        assert (lost.score, kept.score) == (None, 1)
        assert lost.stop_reason is StopReason.ENVIRONMENT_FAILED
        assert "the browser crashed" in (lost.failure or "")
        assert s.service.groups.num_lost == {"environment_failed": 1}


async def test_a_rollout_past_its_deadline_is_lost_and_named(tmp_path: Path):
    config = service_config()
    config.rl_config.trajectory_timeout = 2.0
    async with served(tmp_path, config) as s:
        first, second = (await s.open_group())["rollouts"]
        assert (await s.reward(first, 1))[0] == 200
        (event,) = await s.service.next_events(10.0)
        assert isinstance(event, GroupDone)
        assert [t.stop_reason for t in event.group.trajectories] == [StopReason.FINISHED, StopReason.DEADLINE]
        status, answer = await s.reward(second, 1)
        assert status == 409
        assert "trajectory_timeout" in answer["error"]["message"]


async def test_too_many_rollouts_must_wait(tmp_path: Path):
    async with served(tmp_path, service_config(max_open_rollouts=3)) as s:
        group = await s.open_group()
        async with s.session.post(s.url("/v1/groups"), json={"prompt": "?", "n": 2}) as answer:
            assert (answer.status, int(answer.headers["Retry-After"]) > 0) == (429, True)
        for rollout in group["rollouts"]:
            await s.chat(rollout)
            await s.reward(rollout, 1)
        await s.open_group()


async def test_more_rollouts_than_may_ever_be_open_are_refused(tmp_path: Path):
    async with served(tmp_path, service_config(max_open_rollouts=3)) as s:
        status, answer = await s.post("/v1/groups", {"prompt": "?", "n": 4})
        assert (status, answer["error"]["param"]) == (400, "n")
    async with served(tmp_path, service_config(max_open_rollouts=1)) as s:  # a group has 2 by default
        assert (await s.post("/v1/groups", {"prompt": "?"}))[0] == 400


async def test_a_reward_that_no_reward_function_reads_is_refused(tmp_path: Path):
    config = service_config()
    config.rl_config.verifier_function = ["format"]
    async with served(tmp_path, config) as s:
        (rollout,) = (await s.open_group(n=1))["rollouts"]
        await s.chat(rollout)
        status, answer = await s.reward(rollout, 0.5)
        assert (status, answer["error"]["param"]) == (400, "reward")
        assert "environment" in answer["error"]["message"]
        assert (await s.post(f"/rollouts/{rollout['id']}/end"))[0] == 200


async def test_plain_requests_with_a_seed_sample_the_same_in_sessions_of_their_own(tmp_path: Path):
    async with served(tmp_path) as s:
        seeds: list[int | None] = []
        generate = s.engine.generate

        async def noting(token_ids: list[int], sampling: Sampling, *, session_id: str) -> Generation:
            seeds.append(sampling.seed)
            return await generate(token_ids, sampling, session_id=session_id)

        s.engine.generate = noting  # type: ignore[method-assign]
        asked = {"messages": [{"role": "user", "content": "Hi"}], "seed": 5, "n": 2}
        for _ in range(2):
            assert (await s.post("/v1/chat/completions", asked))[0] == 200
        assert seeds[:2] == seeds[2:] and seeds[0] != seeds[1]
        assert len(set(s.engine.sessions)) == 4


async def test_the_first_group_begins_the_training_and_requests_wait_for_its_weights(tmp_path: Path):
    async with served(tmp_path, begins=False) as s:
        assert (await s.get("/v1/status"))[1]["state"] == "idle"
        opening = asyncio.create_task(s.open_group(n=1))
        job = await s.service.next_job(1.0)
        assert job is not None
        assert (job.name, dict(job.changes)) == ("groups", {})
        asking = asyncio.create_task(s.post("/v1/chat/completions", {"messages": [{"role": "user", "content": "Hi"}]}))
        while not s.service.gate.num_waiting:
            await asyncio.sleep(0.01)
        assert not opening.done() and not asking.done()
        await s.begin()
        assert (await asking)[0] == 200
        (rollout,) = (await opening)["rollouts"]
        assert (await s.chat(rollout))[0] == 200


@pytest.mark.parametrize("max_staleness", [0, 1])
async def test_requests_wait_for_an_update_unless_staleness_is_allowed(tmp_path: Path, max_staleness: int):
    async with served(tmp_path, service_config(max_staleness=max_staleness)) as s:
        (rollout,) = (await s.open_group(n=1))["rollouts"]
        await s.service.begin_update()
        asking = asyncio.create_task(s.chat(rollout))
        while not (asking.done() or s.service.gate.num_waiting):
            await asyncio.sleep(0.01)
        assert asking.done() == (max_staleness > 0)
        s.engine.version = 1
        await s.service.begin_sampling(1)
        assert (await asking)[0] == 200
        await s.reward(rollout, 1)
        (event,) = await s.groups()
        (sequence,) = event.group.trajectories[0].sequences
        versions = set(sequence.versions[sequence.loss_mask == 1].tolist())
        assert versions == {1 if max_staleness == 0 else 0}


async def test_a_client_closes_a_batch_and_hears_when_it_was_trained_on(tmp_path: Path):
    async with served(tmp_path) as s:
        closing = asyncio.create_task(s.post("/v1/close_batch"))
        assert await s.events() == [BatchClosed(0)]
        await s.service.begin_update()
        await asyncio.sleep(0.05)
        await s.service.begin_sampling(1)  # of another batch
        assert not closing.done()
        await s.service.begin_sampling(2, [0])
        status, answer = await closing
        assert (status, answer["step"]) == (200, 2)


async def test_clients_wait_for_a_step(tmp_path: Path):
    async with served(tmp_path) as s:
        waiting = asyncio.create_task(s.get("/v1/status?step=1&timeout=10"))
        await s.service.begin_update()
        await asyncio.sleep(0.05)
        assert not waiting.done()
        await s.service.begin_sampling(1)
        assert (await waiting)[1]["step"] == 1
        assert (await s.get("/v1/status?step=9&timeout=0.05"))[1]["step"] == 1
        for wrong in ("step=x", "step=inf", "step=nan", "step=-1", "step=1&timeout=inf"):
            status, answer = await s.get(f"/v1/status?{wrong}")
            assert (status, answer["error"]["param"]) == (400, "timeout" if "timeout" in wrong else "step")


async def test_a_training_that_fails_says_why_to_everyone(tmp_path: Path):
    async with served(tmp_path) as s:
        (rollout,) = (await s.open_group(n=1))["rollouts"]
        closing = asyncio.create_task(s.post("/v1/close_batch"))
        await asyncio.sleep(0.05)
        await s.service.end_job(3, "actor 0: out of memory")
        status, answer = await closing
        assert (status, "out of memory" in answer["error"]["message"]) == (500, True)
        status, answer = await s.post("/v1/groups", {"prompt": "?"})
        assert (status, "out of memory" in answer["error"]["message"]) == (500, True)
        status, answer = await s.reward(rollout, 1)
        assert (status, "out of memory" in answer["error"]["message"]) == (409, True)
        assert (await s.get("/v1/status"))[1]["failure"] == "actor 0: out of memory"


async def test_after_the_training_the_model_stays_served(tmp_path: Path):
    async with served(tmp_path) as s:
        ending = asyncio.create_task(s.service.end())
        assert await s.events() == [EndWanted()]
        await s.service.end_job(5, None)
        await ending
        assert s.service.status.state is JobState.ENDED
        assert (await s.post("/v1/groups", {"prompt": "?"}))[1]["error"]["code"] == "training_ended"
        status, answer = await s.post("/v1/chat/completions", {"messages": [{"role": "user", "content": "Hi"}]})
        assert (status, answer["choices"][0]["message"]["content"]) == (200, ANSWER)


async def test_a_protocol_begins_a_training_with_changes_or_hears_what_is_wrong(tmp_path: Path):
    async with served(tmp_path, begins=False) as s:
        beginning = asyncio.create_task(s.service.begin("job-1", {"actor_config.lr": -1.0}))
        job = await s.service.next_job(1.0)
        assert job is not None
        await s.service.refuse_job("actor_config.lr: must be above 0, got -1.0.")
        with pytest.raises(ConfigError, match=r"actor_config\.lr"):
            await beginning
        assert s.service.status.state is JobState.IDLE
        assert (await s.post("/v1/chat/completions", {"messages": [{"role": "user", "content": "Hi"}]}))[0] == 200
        again = asyncio.create_task(s.service.begin("job-2", {"actor_config.lr": 0.1}))
        await asyncio.sleep(0)
        await s.begin()
        await again
        status, answer = await s.post("/v1/groups", {"prompt": "?"})
        assert (status, answer["error"]["code"]) == (409, "other_training")


async def test_a_submitted_group_is_scored_and_journaled(tmp_path: Path):
    async with served(tmp_path) as s:
        (rollout,) = (await s.open_group(n=1))["rollouts"]
        await s.chat(rollout)
        await s.reward(rollout, 1)
        (event,) = await s.groups()
        trajectory = event.group.trajectories[0]
        trajectory.environment, trajectory.score = {"score": 0.75}, None
        await s.service.submit([trajectory])
        (event,) = await s.groups()
        assert event.group.trajectories[0].score == 0.75


async def test_after_a_restart_numbers_go_on_and_acknowledged_names_are_refused(tmp_path: Path):
    async with served(tmp_path, begins=False) as s:
        await s.service.begin_native()
        await s.begin(5, {"row-1"})
        assert (await s.post("/v1/groups", {"prompt": "?", "id": "row-1"}))[0] == 409
        assert (await s.open_group())["id"] == "group-000005"


async def test_a_client_that_leaves_ends_its_request(tmp_path: Path):
    async with served(tmp_path) as s:
        s.engine.blocks = asyncio.Event()
        (rollout,) = (await s.open_group(n=1))["rollouts"]
        asking = asyncio.create_task(s.chat(rollout))
        while not s.engine.num_requests:
            await asyncio.sleep(0.01)
        asking.cancel()
        for _ in range(200):
            if s.engine.cancelled:
                break
            await asyncio.sleep(0.01)
        assert s.engine.cancelled == 1
