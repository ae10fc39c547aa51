"""Under which names the service is reached, and which addresses it hands out."""

from __future__ import annotations

from pathlib import Path

import pytest

from rl import __main__ as command
from rl.config.schema import Config
from tests.unit.serving.service_parts import served, service_config

GROUP = {"prompt": "?", "n": 1}


async def test_a_rollouts_address_has_the_host_that_the_client_asked(tmp_path: Path):
    async with served(tmp_path, service_config(allowed_hosts=["train.example"])) as s:
        for host, scheme in (("train.example", "https"), ("train.example:8443", "http"), ("10.0.0.7:7453", "http")):
            headers = {"Host": host, **({"X-Forwarded-Proto": "https"} if scheme == "https" else {})}
            status, group = await s.post("/v1/groups", GROUP, **headers)
            (rollout,) = group["rollouts"]
            assert (status, rollout["base_url"]) == (200, f"{scheme}://{host}/rollouts/{rollout['id']}/v1")
        (rollout,) = (await s.open_group(n=1))["rollouts"]
        assert rollout["base_url"].startswith(f"{s.address}/rollouts/")
        assert (await s.chat(rollout))[0] == 200


async def test_a_service_that_listens_everywhere_hands_out_addresses_that_can_be_reached(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("TURNWISE_API_KEY", "secret")
    async with served(tmp_path, service_config(host="0.0.0.0")) as s:
        local = s.address.replace("0.0.0.0", "127.0.0.1")
        _, group = await s.post(f"{local}/v1/groups", GROUP, Authorization="Bearer secret")
        assert group["rollouts"][0]["base_url"].startswith(f"{local}/rollouts/")


async def test_other_names_are_refused(tmp_path: Path):
    async with served(tmp_path) as s:
        status, answer = await s.post("/v1/groups", GROUP, Host="train.example")
        assert (status, "--allow-host" in answer["detail"]) == (421, True)


def test_allow_host_sets_the_names(monkeypatch: pytest.MonkeyPatch):
    found: list[Config] = []
    monkeypatch.setattr("rl.serve.main", lambda config, name: found.append(config))
    monkeypatch.setenv("TURNWISE_API_KEY", "secret")
    arguments = ["--config-name", "serve_smollm2_135m", "--host", "0.0.0.0", "--allow-host", "a.example,b.example"]
    assert command.main(["serve", *arguments]) == 0
    assert found[0].serve_config.allowed_hosts == ["a.example", "b.example"]
