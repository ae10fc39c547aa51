"""Arbor's state machine over real HTTP, as the clients of each generation go through it."""

from __future__ import annotations

import asyncio
import itertools
from dataclasses import replace
from typing import Any

import pytest

from rl.errors import TrainingError
from rl.serving.job import JobState
from tests.unit.serving.arbor.parts import Served, make_config, sample, serving
from tests.unit.serving.parts import ids

FLAT = {"model": "arbor:org/tiny", "suffix": "dspy", "num_generations": 2, "update_interval": 10, "lora": False}
NESTED = {
    "model": "tiny",
    "trainer_config": {"num_generations": 2, "temperature": 1.0},
    "inference_config": {"model": "tiny", "max_context_length": None},
    "gpu_config": {"type": "multi", "multi": {"num_inference_gpus": 1, "num_training_gpus": 1}},
}
NEWEST = {**NESTED, "inference_config": {"model": "tiny", "max_seq_len": None}}


def counting():
    numbers = itertools.count()
    return lambda prompt: f"answer {next(numbers)}"


async def roll_out(served: Served, num_groups: int, size: int = 2) -> list[list[dict[str, Any]]]:
    """What a client samples in one step: groups of one question each."""
    return [
        [sample(f"question {g}", await served.say(f"question {g}"), float(i)) for i in range(size)]
        for g in range(num_groups)
    ]


async def poll(served: Served, job: dict[str, Any]) -> list[int]:
    reply = await served.grpo("status", {"job_id": job["job_id"]})
    return reply["pending_batch_ids"]


async def send(served: Served, job: dict[str, Any], batch_id: int, group: list[Any]) -> dict[str, Any]:
    return await served.grpo("step", {"job_id": job["job_id"], "model": "tiny", "batch": group, "batch_id": batch_id})


async def test_a_client_without_ids_trains_when_it_goes_on_to_sample():
    async with serving(counting()) as served:
        assert (await served.grpo("initialize", FLAT))["current_model"] == "tiny"
        for group in await roll_out(served, 3):
            await served.grpo("step", {"model": "tiny", "update_inference_model": True, "batch": group})
        assert served.trainer.batches == []
        served.trainer.gate.clear()
        waiting = asyncio.create_task(served.say("evaluate"))
        await asyncio.sleep(0.05)
        assert not waiting.done()  # it is to be answered with the new weights
        served.trainer.gate.set()
        await waiting
        assert [len(batch) for batch in served.trainer.batches] == [3]
        groups = await roll_out(served, 1)
        await served.grpo("step", {"model": "tiny", "batch": groups[0]})
        assert (await served.grpo("update_model"))["step"] == 2
        await served.grpo("step", {"model": "tiny", "batch": (await roll_out(served, 1))[0]})
        reply = await served.grpo("terminate")
    assert [len(batch) for batch in served.trainer.batches] == [3, 1, 1]
    assert served.trainer.status.state is JobState.ENDED
    assert (reply["status"], reply["current_model"]) == ("succeeded", "tiny")
    assert reply["metrics"]["serve/trained_as_sampled"] == 1.0


@pytest.mark.parametrize("initialize", [NESTED, NEWEST])
async def test_a_client_with_ids_is_offered_one_for_each_group(initialize: dict[str, Any]):
    async with serving(counting()) as served:
        job = await served.grpo("initialize", initialize)
        for step in range(2):
            assert len(await poll(served, job)) == 1  # it may sample
            groups = await roll_out(served, 3)
            offered = await poll(served, job)
            assert offered == [3 * step, 3 * step + 1, 3 * step + 2]
            served.trainer.gate.clear()
            for batch_id, group in zip(offered, groups, strict=True):
                await send(served, job, batch_id, group)
            assert await poll(served, job) == []  # the weights are updated
            served.trainer.gate.set()
            await served.say("validate")
        await served.grpo("terminate", {"job_id": job["job_id"]})
    assert [[len(group) for group in batch] for batch in served.trainer.batches] == [[2, 2, 2], [2, 2, 2]]


async def test_what_is_trained_is_what_was_sampled():
    async with serving(lambda prompt: "[[ ## answer ## ]]\n3\n\n[[ ## completed ## ]]") as served:
        job = await served.grpo("initialize", NESTED)
        await poll(served, job)
        await served.say("question"), await served.say("question")
        (batch_id,) = await poll(served, job)
        group = [sample("another prompt", "<answer>\n3\n</answer>", reward) for reward in (0.0, 1.0)]
        reply = await send(served, job, batch_id, group)
        await served.say("validate")
    assert reply["metrics"]["serve/arbor/fields"] == 2
    ((one, other),) = served.trainer.batches[0]
    assert one.sequences[0].token_ids.tolist()[-len(ids("[[ ## completed ## ]]")) - 1 :] == [
        *ids("[[ ## completed ## ]]"), *ids("<|im_end|>"),
    ]  # fmt: skip
    assert one.sequences[0] is not other.sequences[0]
    assert "question" in served.engine.prompts[0]
    assert [one.environment, other.environment] == [
        {"score": 0.0, "matched": "fields"}, {"score": 1.0, "matched": "fields"},
    ]  # fmt: skip
    assert one.prompt is other.prompt


async def test_copies_of_a_group_are_dropped_and_the_ids_follow_the_queue_of_the_client():
    """A request that was repeated makes one id too many; the client fills it, and keeps the rest of the round."""
    async with serving(counting()) as served:
        job = await served.grpo("initialize", NESTED)
        await poll(served, job)
        groups = await roll_out(served, 2)
        await served.say("question 0"), await served.say("question 0")
        offered = await poll(served, job)
        assert len(offered) == 3
        for batch_id, group in zip(offered, [*groups, groups[1]], strict=True):
            reply = await send(served, job, batch_id, group)
        await served.say("validate")
        assert reply["metrics"]["serve/arbor/duplicate_groups"] == 1
        assert len(served.trainer.batches[0]) == 2
        await poll(served, job)
        fresh = await roll_out(served, 2)
        offered = await poll(served, job)
        assert len(offered) == 3  # groups[0] is still in the queue
        for batch_id, group in zip(offered, [groups[0], *fresh], strict=True):
            reply = await send(served, job, batch_id, group)
        await served.say("validate")
    assert [len(batch) for batch in served.trainer.batches] == [2, 2]
    assert reply["metrics"]["serve/arbor/duplicate_groups"] == 2


async def test_a_repeated_sample_within_a_group_is_dropped():
    async with serving(counting()) as served:
        await served.grpo("initialize", FLAT)
        ((one, other),) = await roll_out(served, 1)
        reply = await served.grpo("step", {"batch": [one, other, one]})
        await served.grpo("update_model")
    assert [len(group) for group in served.trainer.batches[0]] == [2]
    assert reply["metrics"]["serve/arbor/duplicate_samples"] == 1
    assert reply["metrics"]["serve/trained_as_sampled"] == 1.0


async def test_samples_that_nobody_sampled_are_left_out_and_named():
    async with serving(counting()) as served:
        await served.grpo("initialize", FLAT)
        ((one, other),) = await roll_out(served, 1)
        reply = await served.grpo("step", {"batch": [one, other, sample("q", "made up"), sample("q", "made up too")]})
        assert reply["metrics"]["serve/arbor/left_out/unknown"] == 2
        assert reply["metrics"]["serve/trained_as_sampled"] == 0.5
        reply = await served.grpo("step", {"batch": [sample("q", "nothing"), sample("q", "at all")]})
        assert reply["metrics"]["serve/arbor/dropped_groups"] == 1
        await served.grpo("terminate")
    assert [[len(group) for group in batch] for batch in served.trainer.batches] == [[2]]


async def test_another_temperature_than_the_trainings_is_told():
    async with serving(counting()) as served:
        await served.grpo("initialize", {**FLAT, "temperature": 0.9})
        group = [sample("q", await served.say("q", temperature=0.7, top_p=0.5)) for _ in range(2)]
        status, message = await served.refused("step", {"batch": group})
    assert status == 400
    assert "temperature 0.7, top_p 0.5" in message and "temperature 0.9 of train_kwargs" in message


async def test_constrained_and_long_completions_are_left_out():
    async with serving(lambda prompt: '{"answer": 3}') as served:
        await served.grpo("initialize", {**FLAT, "max_prompt_length": 60})
        json_mode = {"response_format": {"type": "json_object"}}
        group = [sample("q", await served.say("q", **json_mode)) for _ in range(2)]
        reply = await served.grpo("step", {"batch": group})
        assert reply["metrics"]["serve/arbor/left_out/constrained"] == 2
        long = "word " * 100
        group = [sample(long, await served.say(long)) for _ in range(2)]
        reply = await served.grpo("step", {"batch": group})
        assert reply["metrics"]["serve/arbor/left_out/too_long"] == 2


async def test_a_failed_training_ends_the_poll_of_a_client_with_the_reason():
    async with serving(counting()) as served:
        job = await served.grpo("initialize", NESTED)
        await poll(served, job)
        groups = await roll_out(served, 1)
        served.trainer.error = TrainingError("step 1: the loss is NaN.")
        await send(served, job, (await poll(served, job))[0], groups[0])
        await served.say("the model stays served")
        for route in ("status", "terminate"):
            status, message = await served.refused(route, {"job_id": job["job_id"]})
            assert (status, message) == (500, "The training failed: step 1: the loss is NaN.")


async def test_a_training_that_has_done_its_steps_ends_the_poll_too():
    async with serving(counting()) as served:
        job = await served.grpo("initialize", NESTED)
        served.trainer.status = replace(served.trainer.status, state=JobState.ENDED, step=4)
        status, message = await served.refused("status", {"job_id": job["job_id"]})
        assert status == 409 and "has done its 4 steps" in message
        assert (await served.grpo("terminate", {"job_id": job["job_id"]}))["status"] == "succeeded"


@pytest.mark.parametrize("initialize", [FLAT, NEWEST])
async def test_a_group_that_could_not_be_journaled_may_be_sent_again(initialize: dict[str, Any]):
    async with serving(counting()) as served:
        job = await served.grpo("initialize", initialize)
        await poll(served, job)
        (group,) = await roll_out(served, 1)
        named = {"batch_id": (await poll(served, job))[0]} if initialize is NEWEST else {}
        step = {"job_id": job["job_id"], "model": "tiny", "batch": group, **named}
        submit = served.trainer.submit

        async def fails(group: Any) -> None:
            raise OSError(28, "No space left on device")

        served.trainer.submit = fails  # type: ignore[method-assign]
        assert "No space left" in (await served.refused("step", step))[1]
        served.trainer.submit = submit  # type: ignore[method-assign]
        metrics = (await served.grpo("step", step))["metrics"]
        await served.grpo("terminate", {"job_id": job["job_id"]})
    assert [len(batch[0]) for batch in served.trainer.batches] == [2]
    assert (metrics["serve/arbor/groups"], metrics["serve/arbor/exact"]) == (1, 2)
    assert (metrics["serve/arbor/duplicate_groups"], metrics["serve/arbor/dropped_groups"]) == (0, 0)


async def test_a_group_of_another_temperature_is_told_again():
    async with serving(counting()) as served:
        await served.grpo("initialize", FLAT)
        group = [sample("q", await served.say("q", temperature=0.3)) for _ in range(2)]
        for _ in range(2):
            assert "temperature 0.3" in (await served.refused("step", {"model": "tiny", "batch": group}))[1]


@pytest.mark.parametrize("suffix", ["groups", "../x", "a b", "a" * 101, 7])
async def test_a_suffix_must_be_able_to_name_a_training(suffix: Any):
    async with serving(counting()) as served:
        status, message = await served.refused("initialize", {**FLAT, "suffix": suffix})
        assert (status, message.startswith("suffix: "), served.trainer.changes) == (400, True, {})


async def test_checkpoints_are_paths_or_records_as_the_client_knows_them():
    async with serving(counting()) as served:
        job = await served.grpo("initialize", NESTED)
        reply = await served.grpo("checkpoint", {"job_id": job["job_id"], "checkpoint_name": "best"})
        assert (reply["last_checkpoint"], reply["checkpoints"]) == ("best", {"best": "/runs/best"})
        await served.grpo("terminate", {"job_id": job["job_id"]})
        job = await served.grpo("initialize", NEWEST)
        metadata = {"score": 0.5, "step_index": 1}
        body = {"job_id": job["job_id"], "checkpoint_name": "best", "metadata": metadata}
        record = (await served.grpo("checkpoint", body))["checkpoints"]["best"]
        assert (record["checkpoint_dir"], record["metadata"]) == ("/runs/best", metadata)
        status, message = await served.refused("checkpoint", {**body, "checkpoint_name": "../up"})
        assert status == 400 and "checkpoint_name" in message


async def test_requests_out_of_order_are_refused_with_what_to_do():
    async with serving(counting()) as served:
        assert "initialize first" in (await served.refused("step", {"batch": [sample("q", "a")]}))[1]
        job = await served.grpo("initialize", NESTED)
        body = {"job_id": job["job_id"], "batch": [sample("q", "a")]}
        assert "batch_id: is missing" in (await served.refused("step", body))[1]
        assert "was not offered" in (await served.refused("step", {**body, "batch_id": 0}))[1]
        await poll(served, job)
        await served.grpo("step", {**body, "batch_id": 0})
        assert "is used" in (await served.refused("step", {**body, "batch_id": 0}))[1]
        status, message = await served.refused("status", {"job_id": "grpo-other"})
        assert status == 404 and "unknown here" in message
        status, message = await served.refused("initialize", NESTED)
        assert status == 409 and f'cancel {{"job_id": "{job["job_id"]}"}}' in message
        await served.grpo("cancel", {"job_id": job["job_id"]})
        assert "has ended" in (await served.refused("step", {**body, "batch_id": 1}))[1]
        await served.grpo("initialize", NESTED)


async def test_a_client_that_is_gone_makes_room(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("rl.serving.arbor.protocol._GONE_AFTER_S", 0.0)
    async with serving(counting()) as served:
        first = await served.grpo("initialize", NESTED)
        second = await served.grpo("initialize", NESTED)
        assert first["job_id"] != second["job_id"]
        assert (await served.refused("status", {"job_id": first["job_id"]}))[0] == 404


async def test_a_client_that_asks_again_has_sent_what_it_had():
    async with serving(counting()) as served:
        job = await served.grpo("initialize", NESTED)
        await poll(served, job)
        groups = await roll_out(served, 2)
        offered = await poll(served, job)
        await send(served, job, offered[0], groups[0])
        assert await poll(served, job) == []
        await served.say("validate")
        assert await poll(served, job) == [2]
    assert [len(batch) for batch in served.trainer.batches] == [1]


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ({"batch": []}, "batch: the group is empty"),
        ({"batch": [{**sample("q", "a"), "reward": float("nan")}]}, "NaN is not a JSON number"),
        ({"batch": [{**sample("q", "a"), "reward": float("inf")}]}, "Infinity is not a JSON number"),
        ({"batch": [{**sample("q", "a"), "reward": 1e300}]}, "batch.0.reward"),
        ({"batch": [{**sample("q", "a"), "reward": "1"}]}, "batch.0.reward"),
        ({"batch": [{**sample("q", "a"), "completion": None}]}, "batch.0.completion"),
        ({"batch": [{**sample("q", "a"), "completion": {"role": "assistant"}}]}, "completion.content must be a text"),
        ({"batch": [{**sample("q", "a"), "messages": []}]}, "batch.0.messages"),
        ({"batch": [{**sample("q", "a"), "messages": [{"content": "q"}]}]}, "each must have a role"),
        ({"batch": "q"}, "batch"),
        ({"batch": [sample("q", "a")], "lr": 1}, "unknown name 'lr'"),
        ({"batch": [sample("q", "a")], "job_id": 3}, "job_id"),
        ([], "must be a JSON object"),
    ],
)
async def test_a_malformed_group_is_refused_by_name(body: Any, named: str):
    async with serving(counting()) as served:
        await served.grpo("initialize", FLAT)
        status, message = await served.refused("step", body)
    assert status == 400 and named in message


async def test_other_routes_of_arbor():
    async with serving(counting()) as served:
        assert (await served.post("chat/launch", {"model": "tiny", "launch_kwargs": {"max_model_len": 3}}))[0] == 200
        assert (await served.post("chat/kill"))[0] == 200
        for route in ("files", "fine_tuning/jobs", "fine_tuning/jobs/job-1/cancel"):
            status, reply = await served.post(route)
            assert status == 501 and "rl sft" in reply["error"]["message"]


async def test_a_service_whose_rewards_ignore_clients_refuses_to_begin():
    config = make_config()
    config.rl_config.verifier_function = ["base_acc"]
    async with serving(counting(), config) as served:
        assert "verifier_function" in (await served.refused("initialize", FLAT))[1]
        assert served.trainer.status.state is JobState.IDLE
    async with serving(counting()) as served:
        assert "'org/other' is not served" in (await served.refused("initialize", {**FLAT, "model": "org/other"}))[1]
