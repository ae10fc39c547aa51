"""Wrong requests to the service's own routes: each gets a status and a reason, and the rollout goes on."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from rl.services.http_guard import Bodies
from rl.serving import routes
from tests.unit.serving.service_parts import Served, served, service_config

GROUP = {"prompt": "What is 1 + 2?"}


async def one_rollout(s: Served) -> dict[str, str]:
    (rollout,) = (await s.open_group(n=1))["rollouts"]
    assert (await s.chat(rollout))[0] == 200
    return dict(rollout)


def is_openai_error(answer: Any, *words: str) -> bool:
    error = answer["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert all(word in error["message"] for word in words), error["message"]
    return True


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({**GROUP, "n": 0}, ["n"]),
        ({**GROUP, "n": -1}, ["n"]),
        ({**GROUP, "n": 10**9}, ["n"]),
        ({**GROUP, "n": 1.5}, ["n"]),
        ({**GROUP, "n": "two"}, ["n"]),
        ({**GROUP, "promt": "?"}, ["promt", "prompt"]),
        ({**GROUP, "messages": [{"role": "user", "content": "?"}]}, ["messages"]),
        ({"messages": []}, ["messages"]),
        ({"messages": "hello"}, ["messages"]),
        ({"messages": [1]}, ["messages"]),
        ({"prompt": ""}, ["prompt"]),
        ({"prompt": 3}, ["prompt"]),
        ({**GROUP, "id": ""}, ["id"]),
        ({**GROUP, "id": "../../etc"}, ["id"]),
        ({**GROUP, "id": "x" * 201}, ["id"]),
        ({**GROUP, "columns": [1]}, ["columns"]),
        ({**GROUP, "ground_truth": {"a": 1}}, ["ground_truth"]),
        ([], ["object"]),
        ("3", ["object"]),
        ("{", ["JSON"]),
        ("", ["JSON"]),
        ("[" * 100_000, ["JSON"]),
        (b"\xff\xfe{}", ["JSON"]),
        ('{"prompt": NaN}', ["NaN"]),
    ],
    ids=str,
)
async def test_a_wrong_group_is_refused_by_its_key(tmp_path: Path, body: Any, words: list[str]):
    async with served(tmp_path) as s:
        status, answer = await s.post("/v1/groups", body)
        assert (status, is_openai_error(answer, *words)) == (400, True)
        assert s.service.groups.num_open == 0


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({}, ["reward"]),
        ({"reward": None}, ["reward"]),
        ({"reward": "good"}, ["reward"]),
        ('{"reward": NaN}', ["NaN"]),
        ('{"reward": -Infinity}', ["Infinity"]),
        ('{"reward": 1e999}', ["reward"]),
        ('{"reward": {"score": 1e999}}', ["reward"]),
        ({"reward": {"recall": 1.0}}, ["score"]),
        ({"reward": {}}, ["reward"]),
        ({"reward": {"score": "1"}}, ["score"]),
        ({"reward": 1, "turn_scores": [1, 2, 3]}, ["turn_scores"]),
        ({"reward": 1, "turn_scores": ["a"]}, ["turn_scores"]),
        ('{"reward": 1, "turn_scores": [1e999]}', ["turn_scores"]),
        ({"reward": 1, "completions": {"chatcmpl-none": 1}}, ["chatcmpl-none"]),
        ({"reward": 1, "completions": {}, "turn_scores": [1]}, ["turn_scores"]),
        ({"reward": 1, "scores": 1}, ["scores"]),
    ],
    ids=str,
)
async def test_a_wrong_reward_is_refused_and_the_rollout_stays_open(tmp_path: Path, body: Any, words: list[str]):
    async with served(tmp_path) as s:
        rollout = await one_rollout(s)
        status, answer = await s.post(f"/rollouts/{rollout['id']}/reward", body)
        assert (status, is_openai_error(answer, *words)) == (400, True)
        assert (await s.chat(rollout))[0] == 200
        status, answer = await s.reward(rollout, 0.5)
        assert (status, answer["score"]) == (200, 0.5)


async def test_a_list_for_a_completion_has_a_number_for_each_choice(tmp_path: Path):
    async with served(tmp_path) as s:
        (rollout,) = (await s.open_group(n=1))["rollouts"]
        _, answer = await s.chat(rollout, n=2)
        status, told = await s.reward(rollout, 1, completions={answer["id"]: [1.0, 2.0, 3.0]})
        assert (status, is_openai_error(told, "2 choices", "3 numbers")) == (400, True)
        assert (await s.reward(rollout, 1, completions={answer["id"]: [1.0, 2.0]}))[0] == 200


@pytest.mark.parametrize("action", ["reward", "end", "abort"])
async def test_an_unknown_rollout_is_not_found(tmp_path: Path, action: str):
    async with served(tmp_path) as s:
        status, answer = await s.post(f"/rollouts/nobody/{action}", {"reward": 1} if action == "reward" else {})
        assert (status, answer["error"]["code"]) == (404, "rollout_not_found")


async def test_how_a_rollout_ended_cannot_be_changed(tmp_path: Path):
    async with served(tmp_path) as s:
        aborted, ended = (await s.open_group(n=2))["rollouts"]
        await s.chat(aborted)
        for _ in range(2):  # sent again, it is the same
            assert (await s.post(f"/rollouts/{aborted['id']}/abort", {"reason": "it hangs"}))[0] == 200
        assert (await s.reward(aborted, 1))[0] == 409
        assert (await s.post(f"/rollouts/{aborted['id']}/end"))[0] == 409
        await s.chat(ended)
        assert (await s.reward(ended, 1, turn_scores=[0.5]))[0] == 200
        assert (await s.reward(ended, 1, turn_scores=[0.25]))[0] == 409
        assert (await s.reward(ended, 1.0, turn_scores=[0.5]))[0] == 200
        assert (await s.post(f"/rollouts/{ended['id']}/abort"))[0] == 409
        assert len(await s.groups()) == 1


async def test_two_rewards_at_once_end_a_rollout_once(tmp_path: Path):
    async with served(tmp_path) as s:
        rollout = await one_rollout(s)
        answers = await asyncio.gather(*(s.reward(rollout, number) for number in (1, 2, 1)))
        assert sorted(status for status, _ in answers) == [200, 200, 409]
        assert len(await s.groups()) == 1


async def test_a_name_of_a_group_is_used_once(tmp_path: Path):
    async with served(tmp_path) as s:
        await s.open_group(n=1, id="row-1")
        status, answer = await s.post("/v1/groups", {**GROUP, "id": "row-1"})
        assert (status, is_openai_error(answer, "row-1")) == (409, True)


async def test_a_group_that_can_never_fit_is_refused(tmp_path: Path):
    async with served(tmp_path, service_config(max_open_rollouts=3)) as s:
        status, answer = await s.post("/v1/groups", {**GROUP, "n": 4})
        assert (status, is_openai_error(answer, "max_open_rollouts")) == (400, True)
        assert s.service.groups.num_open == 0


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data"])
async def test_a_body_of_another_type_is_refused(tmp_path: Path, kind: str):
    async with served(tmp_path) as s:
        headers = {"Content-Type": kind}
        async with s.session.post(s.url("/v1/groups"), data=json.dumps(GROUP), headers=headers) as answer:
            assert answer.status == 415
            assert is_openai_error(await answer.json(), "application/json")


async def test_a_huge_body_is_refused_before_it_is_read(tmp_path: Path):
    async with served(tmp_path) as s:
        head = "POST /v1/groups HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        told = await raw(s, f"{head}Content-Length: {100 << 20}\r\n\r\n" + "{")
        assert told.startswith("HTTP/1.1 413")
        assert "32 MiB" in told


async def test_a_body_that_does_not_arrive_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(routes, "Bodies", lambda most, total: Bodies(most, total, timeout_s=0.2))
    async with served(tmp_path) as s:
        head = "POST /v1/groups HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        told = await raw(s, f"{head}Content-Length: 100\r\n\r\n" + "{")
        assert told.startswith("HTTP/1.1 408")
        assert "did not arrive" in told


async def raw(s: Served, request: str) -> str:
    """What the server sends until it waits or closes."""
    host, port = s.address.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        writer.write(request.encode())
        await writer.drain()
        async with asyncio.timeout(10):
            head = await reader.readuntil(b"\r\n\r\n")
            return (head + await reader.read(2000)).decode()
    finally:
        writer.close()


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/nothing", 404),
        ("POST", "/rollouts", 404),
        ("POST", "/rollouts/x/y/z", 404),
        ("GET", "/v1/groups", 405),
        ("DELETE", "/v1/status", 405),
        ("GET", "/v1/status?step=-1", 400),
        ("GET", "/v1/status?step=nan", 400),
        ("GET", "/v1/status?step=0&timeout=never", 400),
    ],
)
async def test_an_address_that_does_not_exist_is_told_in_openais_form(
    tmp_path: Path, method: str, path: str, status: int
):
    async with served(tmp_path) as s, s.session.request(method, s.url(path)) as answer:
        assert answer.status == status
        assert is_openai_error(await answer.json())


async def test_a_page_of_another_origin_and_a_foreign_name_are_refused(tmp_path: Path):
    async with served(tmp_path) as s:
        assert (await s.post("/v1/groups", GROUP, Origin="http://evil.example"))[0] == 403
        assert (await s.post("/v1/groups", GROUP, Host="evil.example"))[0] == 421


@pytest.mark.parametrize("sent", [None, "", "Bearer wrong", "Bearer secre", "Bearer sécret", "Basic secret"])
async def test_with_a_key_requests_without_it_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sent: str | None
):
    monkeypatch.setenv("TURNWISE_API_KEY", "secret")
    async with served(tmp_path) as s:
        headers = {} if sent is None else {"Authorization": sent}
        for path in ("/v1/groups", "/v1/close_batch", "/v1/chat/completions", "/rollouts/nobody/reward", "/nothing"):
            status, answer = await s.post(path, GROUP, **headers)
            assert (status, answer["error"]["code"]) == (401, "invalid_api_key")
        assert (await s.post("/v1/groups", GROUP, Authorization="Bearer secret"))[0] == 200
        assert (await s.get("/health"))[0] == 200


async def test_the_key_of_a_rollout_does_not_open_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TURNWISE_API_KEY", "secret")
    async with served(tmp_path) as s:
        _, group = await s.post("/v1/groups", {**GROUP, "n": 2}, Authorization="Bearer secret")
        own, other = group["rollouts"]
        key = {"Authorization": f"Bearer {own['api_key']}"}
        for action in ("reward", "end", "abort"):
            assert (await s.post(f"/rollouts/{other['id']}/{action}", {"reward": 1}, **key))[0] == 401
        assert (await s.post(f"/rollouts/{own['id']}/reward", {"reward": 1}, **key))[0] == 200


async def test_close_batch_without_a_training_says_so(tmp_path: Path):
    async with served(tmp_path, begins=False) as s:
        status, answer = await s.post("/v1/close_batch")
        assert (status, is_openai_error(answer, "No training runs")) == (409, True)
