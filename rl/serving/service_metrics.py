"""`GET /metrics` of the service for Prometheus, and the counts behind it."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from typing import Any

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector

from rl.serving.job import JobState
from rl.serving.service import Service

_BUCKETS_S = (0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_DISCONNECTED = 499
"""Status, as nginx has it, of a request whose client left before it was answered."""


class ServiceMetrics:
    """Counts requests, and tells Prometheus about them and about the service.

    Args:
        service: Whose state is told.
    """

    def __init__(self, service: Service) -> None:
        self._history = service.history
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "turnwise_serve_requests", "Answered requests", ["method", "route", "status"], registry=self._registry
        )
        self._seconds = Histogram(
            "turnwise_serve_request_seconds",
            "From a request to the end of its answer",
            ["route"],
            buckets=_BUCKETS_S,
            registry=self._registry,
        )
        self._registry.register(_State(service))

    def middleware(self) -> Middleware:
        """Count every request of an application, and remember the errors that it answers."""

        @web.middleware
        async def count(request: web.Request, handler: Handler) -> web.StreamResponse:
            start, status = time.perf_counter(), 500
            route = _route(request)
            try:
                response = await handler(request)
                status = response.status
                if status >= 400:
                    self._history.error_answered(f"{request.method} {route}", status, _message(response))
                return response
            except web.HTTPException as error:
                status = error.status
                if status >= 400:
                    self._history.error_answered(f"{request.method} {route}", status, _message(error))
                raise
            except asyncio.CancelledError:
                status = _DISCONNECTED
                raise
            finally:
                self._requests.labels(request.method, route, str(status)).inc()
                self._seconds.labels(route).observe(time.perf_counter() - start)

        return count

    async def answer(self, http: web.Request) -> web.Response:
        """`GET /metrics`."""
        return web.Response(body=generate_latest(self._registry), headers={"Content-Type": CONTENT_TYPE_LATEST})


class _State(Collector):
    """What a scrape reads from the service."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def collect(self) -> Iterator[Metric]:
        """The current values."""
        service = self._service
        status, groups, gate, history = service.status, service.groups, service.gate, service.history
        yield _gauge("open_rollouts", "Rollouts that are open", groups.num_open)
        yield _gauge("requests_running", "Requests that the engines sample for", gate.num_running)
        yield _gauge("requests_waiting", "Requests that wait for weights", gate.num_waiting)
        yield _gauge("step", "Completed steps of the training", status.step)
        yield _gauge("policy_version", "Version of the weights that sampled the last answer", gate.policy_version)
        if history.rewards:
            yield _gauge("mean_reward", "Mean reward of the newest step", history.rewards[-1].mean_reward)
        states = GaugeMetricFamily("turnwise_serve_state", "1 for the state of the training", labels=["state"])
        for state in JobState:
            states.add_metric([str(state)], float(state is status.state))
        yield states
        yield _counter("prompt_tokens", "Tokens that the engines were given", gate.num_prompt_tokens)
        yield _counter("sampled_tokens", "Tokens that the engines sampled", gate.num_sampled_tokens)
        yield _counter("groups_done", "Groups that are scored and journaled", history.num_groups)
        yield _by_reason("groups_lost", "Groups that are not trained on", history.lost_groups)
        yield _by_reason("rollouts_lost", "Rollouts without a score", groups.num_lost)

    def describe(self) -> list[Metric]:
        """Nothing, so that registering does not collect."""
        return []


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(f"turnwise_serve_{name}", text, value)


def _counter(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(f"turnwise_serve_{name}", text, value)


def _by_reason(name: str, text: str, counts: dict[str, int]) -> Metric:
    family = CounterMetricFamily(f"turnwise_serve_{name}", text, labels=["reason"])
    for reason, count in counts.items():
        family.add_metric([reason], count)
    return family


def _route(request: web.Request) -> str:
    """The route's pattern: it has no keys of rollouts, and there are few."""
    resource = request.match_info.route.resource
    return "unknown" if resource is None else resource.canonical


def _message(response: web.StreamResponse) -> str:
    """What an answer with an error status says."""
    text = response.text if isinstance(response, web.Response) else None
    try:
        told: Any = json.loads(text or "")
    except ValueError:
        return text or response.reason or ""
    if isinstance(told, dict):
        error = told.get("error", told.get("detail", told))
        told = error.get("message", error) if isinstance(error, dict) else error
    return told if isinstance(told, str) else json.dumps(told)
