"""The protocol on the real service, whose driver is the test: what reaches the training, and when clients wait."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from rl.serving.job import JobState
from rl.serving.training import BatchClosed, EndWanted, GroupDone, SaveWanted
from tests.unit.serving.arbor.parts import sample
from tests.unit.serving.parts import ids
from tests.unit.serving.service_parts import Served, served

NESTED = {"model": "openai/arbor:org/tiny", "trainer_config": {"num_generations": 2, "learning_rate": 1e-4}}
GRPO = "/v1/fine_tuning/grpo"


async def answered(s: Served, route: str, body: Any) -> dict[str, Any]:
    status, reply = await s.post(f"{GRPO}/{route}", body)
    assert status == 200, reply
    return dict(reply)


async def say(s: Served, question: str) -> str:
    messages = [{"role": "user", "content": question}]
    status, reply = await s.post("/v1/chat/completions", {"model": "arbor:org/tiny", "messages": messages})
    assert status == 200, reply
    return str(reply["choices"][0]["message"]["content"])


async def begun(s: Served) -> str:
    """Begin a training; returns its id."""
    beginning = asyncio.create_task(answered(s, "initialize", NESTED))
    request = await s.service.next_job(5.0)
    assert request is not None and request.changes["actor_config.lr"] == 1e-4
    await s.begin()
    return str((await beginning)["job_id"])


async def step(s: Served, job: str, num_groups: int) -> None:
    """Sample and send groups, as a client does."""
    await answered(s, "status", {"job_id": job})
    groups = [[sample(f"q{g}", await say(s, f"q{g}"), float(i)) for i in range(2)] for g in range(num_groups)]
    offered = (await answered(s, "status", {"job_id": job}))["pending_batch_ids"]
    for batch_id, group in zip(offered, groups, strict=True):
        await answered(s, "step", {"job_id": job, "batch_id": batch_id, "batch": group})


async def test_groups_reach_the_training_scored_and_as_sampled(tmp_path: Path) -> None:
    async with served(tmp_path, begins=False) as s:
        job = await begun(s)
        await step(s, job, 2)
        first, second, closed = [event for _ in range(1) for event in await s.events()]
        assert isinstance(first, GroupDone) and isinstance(second, GroupDone) and isinstance(closed, BatchClosed)
        assert [t.score for t in first.group.trajectories] == [0.0, 1.0]
        for trajectory in (*first.group.trajectories, *second.group.trajectories):
            (sequence,) = trajectory.sequences
            assert sequence.token_ids[sequence.loss_mask == 1].tolist() == ids("It is 3.<|im_end|>")
        await s.service.begin_update()
        assert (await s.service.read_protocol_metrics())["serve/trained_as_sampled"] == 1.0
        evaluation = asyncio.create_task(say(s, "evaluate"))
        assert (await answered(s, "status", {"job_id": job}))["pending_batch_ids"] == []
        assert not evaluation.done()  # it waits for the new weights
        s.engine.version = 1
        await s.service.begin_sampling(1, [closed.number])
        await evaluation
        assert len((await answered(s, "status", {"job_id": job}))["pending_batch_ids"]) == 1


async def test_checkpoint_and_terminate(tmp_path: Path) -> None:
    async with served(tmp_path, begins=False) as s:
        job = await begun(s)
        saving = asyncio.create_task(answered(s, "checkpoint", {"job_id": job, "checkpoint_name": "best"}))
        assert await s.events() == [SaveWanted("best")]
        await s.service.saved("best", tmp_path / "best")
        assert (await saving)["checkpoints"] == {"best": str(tmp_path / "best")}
        ending = asyncio.create_task(answered(s, "terminate", {"job_id": job}))
        assert await s.events() == [EndWanted()]
        await s.service.end_job(0, None)
        assert (await ending)["status"] == "succeeded"
        assert await say(s, "the model stays served") == "It is 3."


async def test_a_configuration_that_does_not_fit_is_told_to_the_client(tmp_path: Path) -> None:
    async with served(tmp_path, begins=False) as s:
        beginning = asyncio.create_task(s.post(f"{GRPO}/initialize", NESTED))
        await s.service.next_job(5.0)
        await s.service.refuse_job("actor_config.lr: too high.")
        status, reply = await beginning
        assert (status, reply["error"]["message"]) == (400, "actor_config.lr: too high.")
        await begun(s)


async def test_a_training_that_fails_in_the_update_ends_the_poll_of_its_client(tmp_path: Path) -> None:
    async with served(tmp_path, begins=False) as s:
        job = await begun(s)
        await step(s, job, 1)
        await s.service.begin_update()
        await s.service.end_job(0, "the loss is NaN")
        assert s.service.status.state is JobState.FAILED
        status, reply = await s.post(f"{GRPO}/status", {"job_id": job})
        assert (status, reply["error"]["message"]) == (500, "The training failed: the loss is NaN")
