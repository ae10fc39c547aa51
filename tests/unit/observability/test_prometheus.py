from __future__ import annotations

import socket
from urllib.request import urlopen

import pytest
from prometheus_client import CollectorRegistry, Gauge
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families

from rl.batches import RolloutStatus
from rl.config.schema import Config
from rl.errors import ConfigError
from rl.observability.prometheus import metric_name, serving
from tests.samples import AtHand

Sample = tuple[str, frozenset[tuple[str, str]]]


def scraped(address: str) -> dict[Sample, float]:
    with urlopen(address, timeout=30) as answer:
        families = text_string_to_metric_families(answer.read().decode())
    return {(s.name, frozenset(s.labels.items())): s.value for family in families for s in family.samples}


class TwoEngines(AtHand):
    """Two replicas with a gauge of vLLM's each."""

    def status(self) -> RolloutStatus:
        return RolloutStatus(groups_done=3, groups_wanted=8, groups_running=2, prompts_waiting=5, workers_alive=2)

    def engine_metrics(self, timeout_s: float) -> dict[int, list[Metric]]:
        return {replica: self.one(float(replica)) for replica in (0, 1)}

    def one(self, value: float) -> list[Metric]:
        registry = CollectorRegistry()
        Gauge("vllm:num_requests_running", "Running", ["engine"], registry=registry).labels("0").set(value)
        return list(registry.collect())


def free() -> Config:
    config = Config()
    config.megatron_training.prometheus_port = 0
    return config


def test_scrape_shows_the_last_steps_queues_and_engines() -> None:
    with serving(free()) as live:
        live.record(1, {"critic/score/mean": 0.25, "actor/grad_norm": 1.5})
        live.record(2, {"critic/score/mean": 0.5, "actor/grad_norm": float("nan")})
        with live.watching(TwoEngines()):  # type: ignore[arg-type]
            found = scraped(live.address)
        after = scraped(live.address)
    label = frozenset({("metric", "critic/score/mean")})
    assert found["turnwise_step", frozenset()] == 2
    assert found["turnwise_critic_score_mean", label] == 0.5
    assert found["turnwise_actor_grad_norm", frozenset({("metric", "actor/grad_norm")})] == 1.5
    queues = {"groups_done": 3, "groups_wanted": 8, "groups_running": 2, "prompts_waiting": 5, "rollout_workers": 2}
    assert {name: found[f"turnwise_{name}", frozenset()] for name in queues} == queues
    running = {labels: value for (name, labels), value in found.items() if name == "vllm:num_requests_running"}
    assert running == {frozenset({("engine", "0"), ("replica", str(r))}): r for r in (0, 1)}
    assert ("turnwise_groups_done", frozenset()) not in after
    assert after["turnwise_step", frozenset()] == 2


def test_two_metrics_with_one_name_differ_in_their_label() -> None:
    assert metric_name("val-core/all/acc/mean@4") == metric_name("val-core/all/acc/mean_4")
    with serving(free()) as live:
        live.record(1, {"mean@4": 0.5, "mean_4": 0.25})
        found = scraped(live.address)
    assert found["turnwise_mean_4", frozenset({("metric", "mean@4")})] == 0.5
    assert found["turnwise_mean_4", frozenset({("metric", "mean_4")})] == 0.25


def test_port_in_use_is_refused_and_the_server_ends_with_its_block() -> None:
    config = free()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        config.megatron_training.prometheus_port = port = taken.getsockname()[1]
        with (
            pytest.raises(ConfigError, match=rf"prometheus_port: cannot listen on 127\.0\.0\.1 port {port} \(.*in use"),
            serving(config),
        ):
            pass
    with serving(config) as live:
        assert live.address == f"http://127.0.0.1:{port}/metrics"
        scraped(live.address)
    with pytest.raises(OSError, match="refused"):
        scraped(live.address)


def test_without_a_port_there_is_no_server() -> None:
    with serving(Config()) as live:
        assert live.address == ""
