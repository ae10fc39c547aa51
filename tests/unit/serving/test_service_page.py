"""The page and the metrics of a live service, and what they say after rewards, losses and errors."""

from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from rl.serving.history import History
from tests.unit.serving.service_parts import Served, served


async def metrics_of(s: Served) -> dict[tuple[str, ...], float]:
    """Samples by name and the values of their labels."""
    async with s.session.get(s.url("/metrics")) as answer:
        assert (answer.status, answer.content_type) == (200, "text/plain")
        families = text_string_to_metric_families(await answer.text())
        return {
            (one.name.removeprefix("turnwise_serve_"), *one.labels.values()): one.value
            for family in families
            for one in family.samples
        }


async def test_the_page_holds_all_it_needs_and_a_browser_may_load_nothing_else(tmp_path: Path):
    async with served(tmp_path) as s, s.session.get(s.url("/")) as answer:
        text, policy = await answer.text(), answer.headers["Content-Security-Policy"]
        assert answer.content_type == "text/html"
        assert policy.startswith("default-src 'none'")
        for tag in ("style", "script"):
            (content,) = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
            assert base64.b64encode(hashlib.sha256(content.encode()).digest()).decode() in policy
        assert not re.findall(r'(?:src|href)="(?!data:)', text)
        assert "style=" not in text  # the policy would refuse it


async def test_the_curve_has_the_mean_reward_of_each_step(tmp_path: Path):
    async with served(tmp_path) as s:
        await s.service.begin_update(0.25, {"stale": 2})
        await s.service.begin_sampling(1)
        await s.service.begin_update(None)
        await s.service.begin_sampling(2)
        await s.service.begin_update(0.5)
        steps = (await s.get("/v1/curve"))[1]["steps"]
        assert [(one["step"], one["mean_reward"]) for one in steps] == [(1, 0.25), (3, 0.5)]
        assert (await s.get("/v1/status"))[1]["lost_groups"] == {"stale": 2}


def test_another_training_begins_another_curve():
    history = History()
    history.batch_taken(0, 0.25, {})
    history.batch_taken(1, 0.5, {})
    history.batch_taken(0, 0.125, {})
    assert [(one.step, one.mean_reward) for one in history.rewards] == [(1, 0.125)]


async def test_errors_are_listed_without_the_keys_of_rollouts(tmp_path: Path):
    async with served(tmp_path) as s:
        (rollout,) = (await s.open_group(n=1))["rollouts"]
        await s.chat(rollout, temperature=-1)
        for _ in range(3):
            assert (await s.get("/no/such/page"))[0] == 404
        _, told = await s.get("/v1/errors")
        newest, older = told["errors"]
        assert (newest["status"], newest["count"], "/no/such/page" in newest["message"]) == (404, 3, True)
        assert older["where"] == "POST /rollouts/{key}/v1/chat/completions"
        assert "temperature" in older["message"]
        assert rollout["id"] not in str(told)


async def test_metrics_count_requests_tokens_groups_and_losses(tmp_path: Path):
    async with served(tmp_path) as s:
        s.engine.version = 4
        first, second = (await s.open_group(n=2))["rollouts"]
        _, answer = await s.chat(first)
        await s.reward(first, 1)
        before = await metrics_of(s)
        assert before["open_rollouts",] == 1
        await s.post(f"/rollouts/{second['id']}/abort")
        await s.groups()
        await s.service.begin_update(0.75)
        await s.service.begin_sampling(1)
        found = await metrics_of(s)
        assert found["requests_total", "POST", "/rollouts/{key}/v1/chat/completions", "200"] == 1
        assert found["request_seconds_count", "/rollouts/{key}/v1/chat/completions"] == 1
        assert found["prompt_tokens_total",] == answer["usage"]["prompt_tokens"]
        assert found["sampled_tokens_total",] == answer["usage"]["completion_tokens"]
        assert (found["groups_done_total",], found["rollouts_lost_total", "environment_failed"]) == (1, 1)
        assert (found["step",], found["mean_reward",], found["policy_version",]) == (1, 0.75, 4)
        assert (found["state", "sampling"], found["state", "idle"]) == (1, 0)
        assert found["open_rollouts",] == 0


async def test_with_a_key_the_page_opens_but_what_it_shows_needs_the_key(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("TURNWISE_API_KEY", "secret")
    async with served(tmp_path) as s:
        async with s.session.get(s.url("/")) as answer:
            assert answer.status == 200
        for path in ("/metrics", "/v1/curve", "/v1/errors", "/v1/status"):
            assert (await s.get(path))[0] == 401
        assert (await s.get("/v1/curve", Authorization="Bearer secret"))[0] == 200
