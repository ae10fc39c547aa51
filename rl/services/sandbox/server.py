"""The code sandbox: an HTTP server with the wire format of SandboxFusion.

`POST /run_code` runs a program, in a session if one is named. `DELETE /sessions/{id}` ends a session. `POST
/run_jupyter` runs a notebook. `GET /health` shows the isolation on this machine. `GET /metrics` is Prometheus text.
A run starts a sandbox with `EmbeddedSandbox`; `python -m rl sandbox` starts one alone.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import psutil
from aiohttp import web

from rl.errors import ServiceError
from rl.services.http_guard import Bodies, make_application
from rl.services.http_server import listen, metrics_response, serve_until_stopped
from rl.services.json_body import BodyError, RequestError
from rl.services.sandbox.admission import Admission, RefusedError, Turn
from rl.services.sandbox.answer import encode, sandbox_error, success_or_failure
from rl.services.sandbox.body import BodyReader
from rl.services.sandbox.metrics import SandboxMetrics
from rl.services.sandbox.notebook import cell_results, visible_files
from rl.services.sandbox.outcome import RunOutcome
from rl.services.sandbox.pool import SandboxPool
from rl.services.sandbox.request import RunRequest
from rl.services.sandbox.sessions import SessionTable

logger = logging.getLogger(__name__)

_MAX_BODY_BYTES, _MAX_TOTAL_BODY_BYTES = 128 << 20, 1 << 30
_WORKERS_PER_CORE = 4
_SPARE_MEMORY_BYTES = 1 << 30
_DRAIN_GRACE_S = 30.0
_RETRY_AFTER_S = 1
_CALLER_HEADER = "X-Caller"


class SandboxServer:
    """The handlers, around one pool of programs."""

    def __init__(
        self, pool: SandboxPool, max_queue: int, *, host_names: Sequence[str] = (), drain_grace_s: float = 0.0
    ) -> None:
        """Serve a pool, which the caller closes.

        Args:
            pool: Runs the programs.
            max_queue: Requests that may wait for a worker.
            host_names: Names of the server, in addition to this machine's.
            drain_grace_s: Seconds that programs may continue when the server stops.
        """
        self._pool, self._host_names = pool, host_names
        self._drain_grace_s = drain_grace_s
        self._admission = Admission(pool.num_workers, max_queue, pool.num_places)
        self._bodies, self._reader = Bodies(_MAX_BODY_BYTES, _MAX_TOTAL_BODY_BYTES), BodyReader()
        self._sessions = SessionTable(pool)
        self._metrics = SandboxMetrics(pool, self._admission, self._sessions)
        self._host = socket.gethostname()
        self._warming: asyncio.Task[None] | None = None

    def application(self) -> web.Application:
        """The routes. Stopping the application drains the queue."""
        application = make_application(self._host_names)
        application.router.add_post("/run_code", self._run_code)
        application.router.add_post("/run_jupyter", self._run_jupyter)
        application.router.add_delete("/sessions/{id}", self._delete_session)
        application.router.add_get("/health", self._health)
        application.router.add_get("/metrics", self._show_metrics)
        application.on_startup.append(self._warm)
        application.on_shutdown.append(self._drain)
        return application

    async def _run_code(self, http: web.Request) -> web.Response:
        return await self._handle(http, self._run, is_notebook=False)

    async def _run_jupyter(self, http: web.Request) -> web.Response:
        return await self._handle(http, self._run_notebook, is_notebook=True)

    async def _handle(self, http: web.Request, run: _Run, *, is_notebook: bool) -> web.Response:
        """Answer a request and count it."""
        arrival = _Arrival(http.headers.get(_CALLER_HEADER) or http.remote or "", time.monotonic())
        status = "500"
        try:
            async with self._bodies.read(http) as body:
                request = await self._reader.read(body, is_notebook=is_notebook)
                arrival.language = "jupyter" if is_notebook else request.language
                answer, files = await run(arrival, request)
                status = answer["status"]
                return web.Response(body=await encode(answer, files), content_type="application/json")
        except web.HTTPException as refusal:
            status = str(refusal.status)
            raise
        except (BodyError, RequestError) as error:
            status = "400" if isinstance(error, BodyError) else "422"
            return web.json_response({"detail": str(error)}, status=int(status))
        except RefusedError as refusal:
            status = str(refusal.http_status)
            return self._failure(refusal, arrival, refusal.http_status)
        except ServiceError as error:
            logger.warning("%s", error)
            status = "SandboxError"
            return self._failure(error, arrival, 200)
        except asyncio.CancelledError:
            status = "disconnected"
            raise
        finally:
            self._metrics.observe_request(arrival.language, status, time.monotonic() - arrival.time)

    async def _run(self, arrival: _Arrival, request: RunRequest) -> _Answer:
        """Wait for a slot and run a program, in its session if it has one."""
        if request.session_id is None:
            async with self._admission.admit(arrival.caller, request.queue_timeout) as turn:
                outcome = await self._pool.run(request, _waiting_callback(turn))
            return self._answer(request.language, outcome, turn.waited_s)
        async with self._sessions.take_turn(request) as session:
            patience = request.queue_timeout - (time.monotonic() - arrival.time)
            async with self._admission.admit(arrival.caller, patience) as turn:
                queue_s = time.monotonic() - arrival.time
                done = await self._sessions.run(session, request, _waiting_callback(turn))
        answer, files = self._answer(request.language, done.outcome, queue_s)
        extra = {"message": done.message, "session": {"id": session.id, "num_programs": done.num_programs}}
        return answer | extra, files

    async def _run_notebook(self, arrival: _Arrival, request: RunRequest) -> _Answer:
        async with self._admission.admit(arrival.caller, request.queue_timeout) as turn:
            outcome = await self._pool.run(request, _waiting_callback(turn))
        answer, _ = self._answer("jupyter", outcome, turn.waited_s)
        del answer["compile_result"]
        driver = answer.pop("run_result")
        cells = await asyncio.to_thread(cell_results, outcome)
        return answer | {"driver": driver, "cells": cells}, visible_files(outcome)

    def _answer(self, language: str, outcome: RunOutcome, queue_s: float) -> _Answer:
        self._metrics.observe_run(language, queue_s, outcome.execution_time)
        return success_or_failure(outcome, self._host, queue_s), outcome.files

    def _failure(self, error: Exception, arrival: _Arrival, http_status: int) -> web.Response:
        """The answer for a program that was not run."""
        body = sandbox_error(str(error), self._host, time.monotonic() - arrival.time) | {"files": {}}
        headers = {} if http_status == 200 else {"Retry-After": str(_RETRY_AFTER_S)}
        return web.json_response(body, status=http_status, headers=headers)

    async def _delete_session(self, http: web.Request) -> web.Response:
        name = http.match_info["id"]
        if not await self._sessions.delete(name):
            return web.json_response({"detail": f"no session '{name:.128}'"}, status=404)
        return web.json_response({"status": "deleted"})

    async def _health(self, _: web.Request) -> web.Response:
        body = {
            "status": "draining" if self._admission.is_closed else "ok",
            "workers": self._pool.num_workers,
            "places": self._pool.num_places,
            "in_flight": self._admission.num_running + self._admission.num_waiting,
            "sessions": self._sessions.num_open,
            "isolation": self._pool.layers,
            "workers_replaced": self._pool.num_restarts,
            "preloaded": self._pool.preloaded,
        }
        return web.json_response(body)

    async def _show_metrics(self, _: web.Request) -> web.Response:
        return await asyncio.to_thread(metrics_response, self._metrics.registry)

    async def _warm(self, _: web.Application) -> None:
        """Start the interpreter with the preloaded modules, without a delay of requests."""
        self._warming = asyncio.create_task(self._pool.warm())
        self._warming.add_done_callback(_log_failure)

    async def _drain(self, _: web.Application) -> None:
        """Refuse queued requests, let running programs end, and end the sessions."""
        self._admission.close()
        if self._admission.num_running and self._drain_grace_s > 0:
            text = "sandbox: stopping; %d programs may continue for %g s"
            logger.info(text, self._admission.num_running, self._drain_grace_s)
        await self._admission.wait_idle(self._drain_grace_s)
        await self._sessions.close()


@dataclass(slots=True)
class _Arrival:
    """A request before it is decoded."""

    caller: str
    time: float
    language: str = ""


_Answer = tuple[dict[str, Any], dict[str, bytes]]
"""The answer without its files, and the files."""
_Run = Callable[[_Arrival, RunRequest], Awaitable[_Answer]]


def serve(
    host: str = "127.0.0.1",
    port: int = 8080,
    workers: int | None = None,
    max_queue: int = 4096,
    *,
    allow_host: Sequence[str] = (),
    allow_network: bool = False,
    require_isolation: bool = False,
    preload: tuple[str, ...] | None = None,
    inherited_socket: int | None = None,
    parent_pipe: int | None = None,
) -> None:
    """Run the server until SIGTERM or SIGINT. Running programs then have half a minute, or none if embedded.

    Args:
        host: Address to listen on.
        port: Port to listen on.
        workers: Programs that compute at once; by default four for each core.
        max_queue: Requests that may wait; further ones get HTTP 503.
        allow_host: Names of the server, in addition to this machine's and `localhost`.
        allow_network: Give programs the machine's network.
        require_isolation: Refuse to start if a layer of isolation is missing, instead of a warning.
        preload: Modules to import in advance, for programs that mention one of them; None for the pool's default.
        inherited_socket: Descriptor of a listening socket to use instead of host and port.
        parent_pipe: A descriptor that reaches end of file when the parent is gone. The server then ends.

    Raises:
        ServiceError: The port is in use, a number is out of range, the interpreter does not start, or a required layer
            is missing.
    """
    options: dict[str, Any] = {"allow_network": allow_network, "require_isolation": require_isolation}
    if preload is not None:
        options["preload"] = preload
    grace_s = _DRAIN_GRACE_S if parent_pipe is None else 0.0
    for name, value, least in (("workers", workers, 1), ("max-queue", max_queue, 0)):
        if value is not None and value < least:
            raise ServiceError(f"sandbox: --{name} must be at least {least}, got {value}. Give a larger number.")
    with listen("sandbox", host, port, inherited_socket) as listener:
        num_workers = workers if workers is not None else _WORKERS_PER_CORE * (os.cpu_count() or 1)
        names = (host, *allow_host)
        asyncio.run(_serve(listener, num_workers, max_queue, names, options, grace_s, parent_pipe))


async def _serve(
    listener: socket.socket,
    workers: int,
    max_queue: int,
    host_names: Sequence[str],
    options: dict[str, Any],
    grace_s: float,
    parent_pipe: int | None,
) -> None:
    pool = SandboxPool(workers, **options)
    try:
        server = SandboxServer(pool, max_queue, host_names=host_names, drain_grace_s=grace_s)
        address = listener.getsockname()
        logger.info("sandbox: POST http://%s:%s/run_code, %d programs compute at once", address[0], address[1], workers)
        await serve_until_stopped(server.application(), listener, parent_pipe)
    finally:
        pool.close()


def _waiting_callback(turn: Turn) -> Callable[[bool], None]:
    """A callback that gives away the slot of a waiting program, unless memory is scarce."""

    def set_waiting(is_waiting: bool) -> None:
        turn.set_waiting(is_waiting and psutil.virtual_memory().available > _SPARE_MEMORY_BYTES)

    return set_waiting


def _log_failure(warming: asyncio.Task[None]) -> None:
    if not warming.cancelled() and (error := warming.exception()) is not None:
        logger.warning("sandbox: the modules cannot be preloaded: %s", error)
