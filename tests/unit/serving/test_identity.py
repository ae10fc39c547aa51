"""Which rollout a request belongs to, and what is served to requests of none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from aiohttp import web
from openai import NotFoundError

from rl.rollout.rollout_function import Policy, Reply
from rl.services.http_guard import make_application
from rl.serving.sample_request import SampleRequest
from rl.types import Prompt, Sampling
from tests.fakes import ScriptedEngine
from tests.unit.serving.parts import SAMPLING, USER, ids, make_policy, post, saying, serving

CHAT = {"messages": [USER]}


@dataclass
class Recorded:
    """Serves requests of no rollout, and keeps what was sampled."""

    script: list[Any]
    completions: list[tuple[SampleRequest, list[Reply], list[Policy]]] = field(default_factory=list)
    num_begun: int = 0

    def new_policy(self, request: SampleRequest, number: int) -> tuple[Policy, Sampling]:
        self.num_begun += 1
        prompt = Prompt(f"plain-{self.num_begun}", request.conversation(number), "", "plain")
        return make_policy(ScriptedEngine([self.script.pop(0)]), prompt=prompt), SAMPLING

    def on_completion(self, request: SampleRequest, replies: Sequence[Reply], policies: Sequence[Policy]) -> None:
        self.completions.append((request, list(replies), list(policies)))


@pytest.mark.parametrize(
    ("named", "headers"),
    [
        ({}, {"X-Rollout-Id": "r1"}),
        ({}, {"Authorization": "Bearer r1"}),
        ({}, {"X-Api-Key": "r1"}),
        ({"metadata": {"rollout_id": "r1"}}, {}),
        ({"user": "r1"}, {"Authorization": "Bearer of-the-service"}),
    ],
)
async def test_a_header_a_key_and_the_body_name_a_rollout(named: dict[str, Any], headers: dict[str, str]):
    plain = Recorded([])
    async with serving([], plain=plain) as (endpoint, _, _):
        policy = make_policy(ScriptedEngine([saying("3")]))
        client = endpoint.open(policy, SAMPLING, key="r1")
        assert (client.base_url, client.api_key) == (f"{endpoint.address}/rollouts/r1/v1", "r1")
        status, answer = await post(f"{endpoint.address}/v1/chat/completions", {**CHAT, **named}, **headers)
        assert (status, endpoint.turns_of("r1")) == (200, {answer["id"]: [0]})
    assert (policy.num_answered, plain.completions) == (1, [])


@pytest.mark.parametrize("headers", [{"X-Rollout-Id": "r1"}, {"Authorization": "Bearer r1"}])
async def test_a_late_request_of_an_ended_rollout_is_not_served_as_another(headers: dict[str, str]):
    plain = Recorded([saying("3")])
    async with serving([], plain=plain) as (endpoint, _, _):
        endpoint.open(make_policy(ScriptedEngine([])), SAMPLING, key="r1")
        await endpoint.end("r1")
        status, answer = await post(f"{endpoint.address}/v1/chat/completions", CHAT, **headers)
    assert (status, answer["error"]["code"], plain.num_begun) == (404, "rollout_not_found", 0)


@pytest.mark.parametrize("named", [{"user": "r1"}, {"metadata": {"rollout_id": "r1"}}, {"metadata": {"rollout_id": 7}}])
async def test_a_body_that_names_no_open_rollout_is_not_served_as_another(named: dict[str, Any]):
    plain = Recorded([saying("3")])
    async with serving([], plain=plain) as (endpoint, _, _):
        endpoint.open(make_policy(ScriptedEngine([])), SAMPLING, key="r1")
        await endpoint.end("r1")
        status, answer = await post(f"{endpoint.address}/v1/chat/completions", {**CHAT, **named})
    assert (status, answer["error"]["code"], plain.num_begun) == (404, "rollout_not_found", 0)


@pytest.mark.parametrize("named", [{}, {"user": "me"}, {"metadata": {"rollout_id": None}}, {"metadata": {}}])
async def test_without_a_rollout_a_request_is_refused_or_served_as_plain_inference(named: dict[str, Any]):
    async with serving([saying("3")]) as (endpoint, _, _):
        status, answer = await post(f"{endpoint.address}/v1/chat/completions", {**CHAT, **named})
    assert (status, answer["error"]["code"]) == (404, "rollout_not_found")
    plain = Recorded([saying("3")])
    async with serving([], plain=plain) as (endpoint, _, _):
        status, _ = await post(f"{endpoint.address}/v1/chat/completions", {**CHAT, **named})
    assert (status, len(plain.completions)) == (200, 1)


async def test_each_completion_of_plain_inference_has_an_episode_of_its_own():
    plain = Recorded([saying("3"), saying("4")])
    async with serving([], plain=plain) as (endpoint, _, episode):
        body = {**CHAT, "n": 2, "return_token_ids": True}
        _, answer = await post(f"{endpoint.address}/v1/chat/completions", body)
    ((request, replies, policies),) = plain.completions
    assert request.conversation(1) == [USER]
    assert [reply.text for reply in replies] == ["3", "4"]
    assert [c["token_ids"] for c in answer["choices"]] == [ids("3<|im_end|>"), ids("4<|im_end|>")]
    assert [len(policy.episode.ledger.sequences) for policy in policies] == [1, 1]
    assert episode.turns == []


async def test_a_failed_completion_is_not_handed_over():
    plain = Recorded([saying("3")])
    async with serving([], plain=plain) as (endpoint, _, _):
        policy = make_policy(ScriptedEngine([]))
        plain.new_policy = lambda request, number: (policy, SAMPLING)  # type: ignore[method-assign]
        status, _ = await post(f"{endpoint.address}/v1/chat/completions", CHAT)
    assert (status, plain.completions) == (500, [])


async def test_each_completion_has_an_id_of_its_own_and_tells_its_turns():
    async with serving([saying("3")] * 3) as (endpoint, client, _), client.openai() as openai:
        first = await openai.chat.completions.create(model="tiny", messages=[USER])
        second = await openai.chat.completions.create(model="tiny", messages=[USER], n=2)
        assert first.id.startswith("chatcmpl-")
        assert endpoint.turns_of(client.api_key) == {first.id: [0], second.id: [1, 2]}


async def test_the_routes_serve_in_an_application_of_others():
    async with serving([saying("3")]) as (endpoint, _, _):
        application = make_application([])
        endpoint.add_routes(application)
        runner = web.AppRunner(application, handler_cancellation=True)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        endpoint.address = "http://{}:{}".format(*runner.addresses[0][:2])
        client = endpoint.open(make_policy(ScriptedEngine([saying("4")])), SAMPLING)
        async with client.openai() as openai:
            done = await openai.chat.completions.create(model="tiny", messages=[USER])
        await runner.cleanup()
    assert client.base_url.startswith(endpoint.address)
    assert done.choices[0].message.content == "4"


@pytest.mark.parametrize("name", ["tiny", "openai/tiny", "arbor:tiny", "openai/arbor:tiny", "org/tiny"])
async def test_the_model_has_several_names(name: str):
    async with serving([saying("3")]) as (_, client, _):
        status, _ = await post(f"{client.base_url}/chat/completions", {**CHAT, "model": name})
    assert status == 200


async def test_another_model_is_not_found():
    async with serving([saying("3")]) as (_, client, _), client.openai() as openai:
        with pytest.raises(NotFoundError) as caught:
            await openai.chat.completions.create(model="gpt-4o", messages=[USER])
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")
