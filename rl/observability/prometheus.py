"""`GET /metrics` of the driver for Prometheus: the last step's metrics, queue lengths, and the engines' own metrics."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from rl.config.schema import Config
from rl.errors import ConfigError
from rl.interfaces import Rollouts
from rl.observability.trackers import MetricsWriter, finite_metrics

_NOT_IN_A_NAME = re.compile(r"[^a-zA-Z0-9_]")
_SCRAPE_S = 2.0
"""How long a scrape waits for the engines; one that answers later is left out."""


class DriverMetrics(Collector):
    """What a scrape reads. It takes values that are there, and asks the engines; the training loop does not wait."""

    def __init__(self) -> None:
        self.address = ""
        """Where the metrics are served; empty without a server."""
        self.writer: MetricsWriter | None = None
        """Its trackers' failures are counted."""
        self._step = 0
        self._last: dict[str, float] = {}
        self._rollouts: Rollouts | None = None
        self._lock = threading.Lock()
        """Held during a scrape, so that the workers do not end meanwhile."""

    def record(self, step: int, metrics: Mapping[str, float]) -> None:
        """Keep the metrics of a step or an evaluation; those of an earlier one stay until they are measured again."""
        self._last = self._last | finite_metrics(metrics)  # a new mapping: a scrape may be reading the old one
        self._step = step

    @contextmanager
    def watching(self, rollouts: Rollouts | None) -> Iterator[None]:
        """Read queue lengths and engines' metrics from these rollouts during the block."""
        self._rollouts = rollouts
        try:
            yield
        finally:
            with self._lock:
                self._rollouts = None

    def collect(self) -> list[Metric]:
        """The current values."""
        found: list[Metric] = [GaugeMetricFamily("turnwise_step", "Completed steps", self._step)]
        found += _step_gauges(self._last)
        if self.writer is not None:
            found.append(_tracker_failures(self.writer))
        with self._lock:
            if self._rollouts is not None:
                found += _rollout_gauges(self._rollouts)
                found += merged(self._rollouts.engine_metrics(_SCRAPE_S))
        return found

    def describe(self) -> list[Metric]:
        """Nothing, so that registering does not collect."""
        return []


@contextmanager
def serving(config: Config) -> Iterator[DriverMetrics]:
    """Serve a run's metrics where `prometheus_port` is set; the server ends with the block.

    Raises:
        ConfigError: The port is in use, or the address is not this machine's.
    """
    training, metrics = config.megatron_training, DriverMetrics()
    if training.prometheus_port is None:
        yield metrics
        return
    registry = CollectorRegistry()
    registry.register(metrics)
    try:
        server, thread = start_http_server(training.prometheus_port, training.prometheus_host, registry)
    except (OSError, OverflowError) as error:
        raise ConfigError(
            f"megatron_training.prometheus_port: cannot listen on {training.prometheus_host} port "
            f"{training.prometheus_port} ({error}). Choose another port, or 0 for a free one."
        ) from error
    try:
        metrics.address = f"http://{training.prometheus_host}:{server.server_port}/metrics"
        yield metrics
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def metric_name(name: str) -> str:
    """The name for Prometheus: `turnwise_` and the metric's, each character but letters, digits and _ replaced by _."""
    return f"turnwise_{_NOT_IN_A_NAME.sub('_', name)}"


def merged(by_replica: Mapping[int, list[Metric]]) -> list[Metric]:
    """The engines' metrics, one family for all replicas, with the label `replica`."""
    families: dict[str, Metric] = {}
    for replica, metrics in sorted(by_replica.items()):
        for metric in metrics:
            family = families.setdefault(metric.name, Metric(metric.name, metric.documentation, metric.type))
            for sample in metric.samples:
                family.samples.append(sample._replace(labels={**sample.labels, "replica": str(replica)}))
    return list(families.values())


def _step_gauges(last: Mapping[str, float]) -> list[Metric]:
    """One family per name; the label `metric` has the original, since two may become the same name."""
    families: dict[str, GaugeMetricFamily] = {}
    for name, value in last.items():
        key = metric_name(name)
        if key not in families:
            families[key] = GaugeMetricFamily(key, "See docs/metrics.md", labels=["metric"])
        families[key].add_metric([name], value)
    return list(families.values())


def _tracker_failures(writer: MetricsWriter) -> Metric:
    family = GaugeMetricFamily("turnwise_tracker_failures", "Writes that a tracker missed", labels=["tracker"])
    for tracker in writer.trackers:
        family.add_metric([tracker.name], tracker.num_failures)
    return family


def _rollout_gauges(rollouts: Rollouts) -> Iterator[Metric]:
    status = rollouts.status()
    yield GaugeMetricFamily("turnwise_groups_done", "Groups of this batch that are finished", status.groups_done)
    yield GaugeMetricFamily("turnwise_groups_wanted", "Groups that this batch needs", status.groups_wanted)
    yield GaugeMetricFamily("turnwise_groups_running", "Groups that rollout workers work on", status.groups_running)
    yield GaugeMetricFamily("turnwise_prompts_waiting", "Prompts that wait for a worker", status.prompts_waiting)
    yield GaugeMetricFamily("turnwise_rollout_workers", "Rollout workers that are alive", status.workers_alive)
