"""The sandbox's metrics, for `GET /metrics`."""

from __future__ import annotations

from collections.abc import Iterator

import psutil
from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from rl.services.sandbox.admission import Admission
from rl.services.sandbox.pool import SandboxPool
from rl.services.sandbox.sessions import SessionTable

_BUCKETS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60)


class SandboxMetrics:
    """Counters of requests, and gauges of the state of pool, queue and sessions."""

    def __init__(self, pool: SandboxPool, admission: Admission, sessions: SessionTable) -> None:
        self.registry = to = CollectorRegistry()
        self._requests = Counter("sandbox_requests", "Ended requests", ["language", "status"], registry=to)
        self._queue = Histogram("sandbox_queue_seconds", "Wait for a worker", buckets=_BUCKETS, registry=to)
        self._run = Histogram("sandbox_run_seconds", "Programs", ["language"], buckets=_BUCKETS, registry=to)
        self._whole = Histogram("sandbox_request_seconds", "Requests, queue included", buckets=_BUCKETS, registry=to)
        to.register(_State(pool, admission, sessions))

    def observe_request(self, language: str, status: str, seconds: float) -> None:
        """Count a request that ended.

        Args:
            language: The program's language; empty if unknown.
            status: `Success`, `Failed`, `SandboxError`, `disconnected`, or the HTTP status of a refusal.
            seconds: Duration of the request.
        """
        self._requests.labels(language, status).inc()
        self._whole.observe(seconds)

    def observe_run(self, language: str, queue_s: float, run_s: float) -> None:
        """Count a program that ran, its wait for a worker and its own time, seconds."""
        self._queue.observe(queue_s)
        self._run.labels(language).observe(run_s)


class _State(Collector):
    """Gauges that are read at each scrape."""

    def __init__(self, pool: SandboxPool, admission: Admission, sessions: SessionTable) -> None:
        self._pool, self._admission, self._sessions = pool, admission, sessions

    def collect(self) -> Iterator[Metric]:
        """The current values."""
        yield GaugeMetricFamily("sandbox_running", "Running programs", self._admission.num_running)
        yield GaugeMetricFamily("sandbox_queue_depth", "Programs that wait for a worker", self._admission.num_waiting)
        yield GaugeMetricFamily("sandbox_sessions", "Interpreters of sessions", self._sessions.num_open)
        lost = "Interpreters of sessions that ended before their session was deleted"
        yield CounterMetricFamily("sandbox_sessions_lost", lost, self._sessions.num_lost)
        restarted = "Workers that died and were replaced"
        yield CounterMetricFamily("sandbox_workers_restarted", restarted, self._pool.num_restarts)
        memory = "Proportional set size of the server and of all its processes"
        yield GaugeMetricFamily("sandbox_memory_bytes", memory, _memory_bytes())


def _memory_bytes() -> int:
    """In the sum each shared page counts once. Processes that have just ended count 0."""
    server = psutil.Process()
    total = 0
    for process in (server, *server.children(recursive=True)):
        try:
            total += process.memory_full_info().pss
        except psutil.Error:
            continue
    return total
