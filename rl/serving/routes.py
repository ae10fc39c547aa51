"""The service's own HTTP routes: groups, rewards, and the state of the training."""

from __future__ import annotations

import hmac
import ipaddress
import math
import os
from dataclasses import replace
from typing import Any

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from rl.errors import ConfigError
from rl.services.http_guard import Bodies, make_application
from rl.serving.dialects import DIALECTS
from rl.serving.errors import ApiError, answering, bad_request, route_of
from rl.serving.group_requests import read_group_request, read_reward_request
from rl.serving.groups import Rollout, ServedGroup
from rl.serving.job import JobState, JobStatus
from rl.serving.open_rollouts import sent_key
from rl.serving.page import answer_page, curve_json, errors_json
from rl.serving.service import Service, client_json
from rl.serving.service_metrics import ServiceMetrics
from rl.serving.values import read_body

KEY_VARIABLE = "TURNWISE_API_KEY"
_MAX_BODY_BYTES = 32 << 20
_MAX_BODIES_BYTES = 1 << 30
_DOCUMENTED = "docs/service.md"
_LONGEST_WAIT_S = 600.0
_RETRY_AFTER_S = 5
_OPEN_TO_ALL = ("/health", "/")
_OF_ROLLOUTS = frozenset(("/v1/models", "/tokenize", "/detokenize", *(dialect.path for dialect in DIALECTS)))
"""Plain routes that serve a rollout by its API key."""


def service_key(host: str) -> str | None:
    """The key that clients must send, from the environment.

    Args:
        host: The address to listen on.

    Raises:
        ConfigError: The address is reached from other machines, and there is no key.
    """
    key = os.environ.get(KEY_VARIABLE) or None
    if key is None and not _is_loopback(host):
        raise ConfigError(
            f"serve_config.host: other machines reach {host}, so clients must send a key. Set the environment variable "
            f"{KEY_VARIABLE}, or listen on 127.0.0.1."
        )
    return key


def make_service_application(service: Service, key: str | None) -> web.Application:
    """The service's HTTP application, without protocols of others.

    Args:
        service: What it stands for.
        key: What clients must send as Bearer token, or in the header `X-Api-Key`; None: nothing.
    """
    serve = service.config.serve_config
    application = make_application([serve.host, *serve.allowed_hosts])
    metrics = ServiceMetrics(service)
    application.middlewares.append(metrics.middleware())
    if key is not None:
        application.middlewares.append(_authorizing(service, key))
    application.middlewares.append(_telling_of_no_route)
    routes = _Routes(service)
    for method, path, handler in (
        ("POST", "/v1/groups", routes.open_group),
        ("POST", "/v1/close_batch", routes.close_batch),
        ("GET", "/v1/status", routes.status),
        ("POST", "/rollouts/{key}/reward", routes.reward),
        ("POST", "/rollouts/{key}/end", routes.end),
        ("POST", "/rollouts/{key}/abort", routes.abort),
        ("GET", "/health", routes.health),
        ("GET", "/v1/curve", routes.curve),
        ("GET", "/v1/errors", routes.errors),
        ("GET", "/metrics", metrics.answer),
        ("GET", "/", answer_page),
    ):
        application.router.add_route(method, path, answering(handler, ApiError.body))
    service.endpoint.add_routes(application)
    return application


class _Routes:
    def __init__(self, service: Service) -> None:
        self._service = service
        self._bodies = Bodies(_MAX_BODY_BYTES, _MAX_BODIES_BYTES)

    async def open_group(self, http: web.Request) -> web.Response:
        async with self._bodies.read(http) as body:
            request = read_group_request(read_body(body))
        config = self._service.config
        most, n = config.serve_config.max_open_rollouts, request.n or config.rl_config.n_samples_per_prompt
        if n > most:  # waiting would not help
            raise bad_request("n", f"must be at most serve_config.max_open_rollouts ({most}), got {n}.")
        try:
            group = await self._service.open_group(request)
        except ApiError as error:
            if error.status != 429:
                raise
            headers = {"Retry-After": str(_RETRY_AFTER_S)}
            return web.json_response(error.body(), status=429, headers=headers)
        return web.json_response(self._group_json(group, http))

    async def reward(self, http: web.Request) -> web.Response:
        async with self._bodies.read(http) as body:
            request = read_reward_request(read_body(body))
        verifiers = self._service.config.rl_config.verifier_function
        if "environment" not in verifiers:
            raise bad_request(
                "reward",
                f"the service's rewards do not read it: rl_config.verifier_function is {verifiers}. Start it with "
                "'environment' among them, or POST to /end instead, and these score the rollout.",
            )
        return _rollout_json(await self._service.groups.reward(http.match_info["key"], request))

    async def end(self, http: web.Request) -> web.Response:
        return _rollout_json(await self._service.groups.end(http.match_info["key"]))

    async def abort(self, http: web.Request) -> web.Response:
        reason = "no reason given"
        if http.can_read_body:
            async with self._bodies.read(http) as body:
                reason = str(read_body(body).get("reason", reason))
        return _rollout_json(await self._service.groups.abort(http.match_info["key"], reason))

    async def close_batch(self, http: web.Request) -> web.Response:
        if self._service.status.state in (JobState.IDLE, JobState.ENDED):
            raise ApiError(409, "No training runs. Open a group first; it begins one.", code="no_training")
        await self._service.close_batch()
        return web.json_response(status_json(self._service.status))

    async def status(self, http: web.Request) -> web.Response:
        status = self._service.status
        if "step" in http.query:
            status = await self._service.wait_for_step(
                int(_number(http, "step", 0)), min(_number(http, "timeout", 60.0), _LONGEST_WAIT_S)
            )
        groups, gate = self._service.groups, self._service.gate
        return web.json_response(
            status_json(status)
            | {
                "model": self._service.model,
                "open_rollouts": groups.num_open,
                "lost_rollouts": dict(groups.num_lost),
                "batch": self._service.batch,
                "groups_done": self._service.history.num_groups,
                "lost_groups": dict(self._service.history.lost_groups),
                "requests_running": gate.num_running,
                "requests_waiting": gate.num_waiting,
            }
        )

    async def curve(self, http: web.Request) -> web.Response:
        return web.json_response(curve_json(self._service.history))

    async def errors(self, http: web.Request) -> web.Response:
        return web.json_response(errors_json(self._service.history))

    async def health(self, http: web.Request) -> web.Response:
        return web.json_response({"status": "ok"})

    def _group_json(self, group: ServedGroup, http: web.Request) -> dict[str, Any]:
        """A group, with addresses under the name by which its client reached the service."""
        host, own = http.headers.get("Host"), self._service.endpoint.address
        proto = http.headers.get("X-Forwarded-Proto", http.scheme).lower()
        address = f"{'https' if proto == 'https' else 'http'}://{host}" if host else own
        rollouts = []
        for rollout in group.rollouts:
            client = self._service.groups.client_of(rollout)
            base_url = address + client.base_url.removeprefix(own)
            rollouts.append(client_json(replace(client, base_url=base_url), rollout.name))
        return {"id": group.id, "rollouts": rollouts}


def status_json(status: JobStatus) -> dict[str, Any]:
    """The state of the training as clients get it."""
    return {
        "state": str(status.state),
        "step": status.step,
        "training": status.name,
        "failure": status.failure,
        "run_directory": status.run_directory,
        "checkpoints": status.checkpoints,
    }


def _rollout_json(rollout: Rollout) -> web.Response:
    score = rollout.settled.result() if rollout.settled.done() else None
    group = rollout.group
    is_complete = group.is_kept
    return web.json_response(
        {"id": rollout.id, "name": rollout.name, "score": score, "group": group.id, "group_is_complete": is_complete}
    )


def _number(http: web.Request, name: str, default: float) -> float:
    text = http.query.get(name)
    try:
        value = default if text is None else float(text)
    except ValueError:
        value = -1.0
    if not (value >= 0 and math.isfinite(value)):
        raise bad_request(name, f"must be a finite number that is not negative, got '{text:.80}'.")
    return value


def _authorizing(service: Service, key: str) -> Middleware:
    """Refuse requests without the key. A rollout's own key opens that rollout."""

    @web.middleware
    async def authorize(request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.path not in _OPEN_TO_ALL:
            sent = sent_key(request)
            if not hmac.compare_digest(_bytes(sent), _bytes(key)) and not _is_of_rollout(service, request, sent):
                error = ApiError(
                    401, f"Send the service's key as Bearer token ({KEY_VARIABLE}).", code="invalid_api_key"
                )
                return web.json_response(error.body(), status=401, headers={"WWW-Authenticate": "Bearer"})
        return await handler(request)

    return authorize


def _is_of_rollout(service: Service, request: web.Request, key: str) -> bool:
    """Whether a rollout's key opens a request's route.

    It opens its own address, also after its end for a reward that is sent again, and while it is open the plain routes
    that serve it.
    """
    named = request.match_info.get("key")
    if named is not None:
        return named == key and service.groups.knows(key)
    return service.endpoint.is_open(key) and route_of(request) in _OF_ROLLOUTS


def _bytes(key: str) -> bytes:
    return key.encode("utf-8", "surrogateescape")  # headers may have any bytes


@web.middleware
async def _telling_of_no_route(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answer requests for what does not exist in the form of OpenAI's errors."""
    missing = request.match_info.http_exception
    if missing is None:
        return await handler(request)
    what = "is no address of this service" if missing.status == 404 else f"does not take {request.method}"
    error = ApiError(missing.status, f"{request.path:.200} {what}. See {_DOCUMENTED}.", code="unknown_url")
    headers = {"Allow": missing.headers["Allow"]} if "Allow" in missing.headers else {}
    return web.json_response(error.body(), status=missing.status, headers=headers)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
