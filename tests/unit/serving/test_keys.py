"""What the service's key opens, what a rollout's key opens, and what logs say of them."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.unit.serving.service_parts import Served, served

CHAT = {"messages": [{"role": "user", "content": "Hi"}]}


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TURNWISE_API_KEY", "secret")


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


async def open_rollout(s: Served) -> dict[str, str]:
    status, group = await s.post("/v1/groups", {"prompt": "?", "n": 1}, **bearer("secret"))
    assert status == 200
    return dict(group["rollouts"][0])


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/groups", {"prompt": "?"}),
        ("/v1/close_batch", {}),
        ("/v1/fine_tuning/grpo/initialize", {"model": "tiny"}),
        ("/v1/fine_tuning/grpo/cancel", {}),
        ("/v1/chat/kill", {}),
    ],
)
async def test_a_rollouts_key_opens_nothing_of_the_training(tmp_path: Path, path: str, body: dict[str, Any]):
    async with served(tmp_path) as s:
        rollout = await open_rollout(s)
        status, answer = await s.post(path, body, **bearer(rollout["api_key"]))
        assert (status, answer["error"]["code"]) == (401, "invalid_api_key")
        for page in ("/v1/status", "/v1/curve", "/metrics"):
            assert (await s.get(page, **bearer(rollout["api_key"])))[0] == 401


async def test_a_rollouts_key_opens_the_model_while_it_is_open_and_its_own_address_always(tmp_path: Path):
    async with served(tmp_path) as s:
        first, second = await open_rollout(s), await open_rollout(s)
        own = bearer(first["api_key"])
        assert (await s.post("/v1/chat/completions", CHAT, **own))[0] == 200
        assert (await s.post(f"{first['base_url']}/chat/completions", CHAT, **own))[0] == 200
        assert (await s.post("/tokenize", {"prompt": "Hi"}, **own))[0] == 200
        assert (await s.get("/v1/models", **own))[0] == 200
        assert (await s.post(f"/rollouts/{second['id']}/abort", {}, **own))[0] == 401
        for _ in range(2):  # the second is the reward sent again
            assert (await s.post(f"/rollouts/{first['id']}/reward", {"reward": 1}, **own))[0] == 200
        assert (await s.post("/v1/chat/completions", CHAT, **own))[0] == 401
        assert (await s.post("/tokenize", {"prompt": "Hi"}, **own))[0] == 401


async def test_a_key_of_other_bytes_is_refused(tmp_path: Path):
    async with served(tmp_path) as s:
        address = urlsplit(s.address)
        reader, writer = await asyncio.open_connection(address.hostname, address.port)
        writer.write(b"GET /v1/status HTTP/1.1\r\nHost: localhost\r\nX-Api-Key: \xfc\r\nConnection: close\r\n\r\n")
        answer = await reader.read()
        writer.close()
        assert answer.startswith(b"HTTP/1.1 401 ")
        assert b"invalid_api_key" in answer


async def test_an_unexpected_error_is_logged_without_the_key(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    async with served(tmp_path) as s:
        rollout = await open_rollout(s)

        async def breaks(*_: Any) -> Any:
            raise KeyError("broken")

        s.service.groups.end = breaks  # type: ignore[method-assign]
        with caplog.at_level(logging.ERROR):
            assert (await s.post(f"/rollouts/{rollout['id']}/end", {}, **bearer("secret")))[0] == 500
        assert "/rollouts/{key}/end" in caplog.text
        assert rollout["id"] not in caplog.text
