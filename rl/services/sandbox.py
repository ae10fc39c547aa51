"""The code sandbox: an HTTP server with the wire format of SandboxFusion.

`POST /run_code` runs a program, `GET /health` says what isolation this machine allows, `GET /metrics` is Prometheus
text. The trainer starts one for itself with `EmbeddedSandbox`; `python -m rl sandbox` starts one alone.
"""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import os
import signal
import socket
import time
from typing import Any

from aiohttp import web
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from rl.errors import ServiceError
from rl.services.embedded import EmbeddedSandbox
from rl.services.sandbox_pool import RunOutcome, SandboxPool
from rl.services.sandbox_request import RequestError, RunRequest, parse_request

__all__ = ["EmbeddedSandbox", "SandboxServer", "serve"]

logger = logging.getLogger(__name__)

_MAX_BODY_BYTES = 128 << 20
_BUCKETS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60)
_WORKERS_PER_CORE = 4


class SandboxServer:
    """The handlers, around one pool of programs."""

    def __init__(self, pool: SandboxPool, max_queue: int) -> None:
        self._pool = pool
        self._max_queue = max_queue
        self._in_flight = 0
        self._host = socket.gethostname()
        self._registry = CollectorRegistry()
        to = self._registry
        self._requests = Counter("sandbox_requests", "Answered requests", ["language", "status"], registry=to)
        self._seconds = Histogram("sandbox_run_seconds", "Programs", ["language"], buckets=_BUCKETS, registry=to)
        self._wall = Histogram("sandbox_request_seconds", "Requests, with the queue", buckets=_BUCKETS, registry=to)
        in_flight = Gauge("sandbox_in_flight", "Requests in progress or waiting", registry=to)
        in_flight.set_function(lambda: self._in_flight)
        restarts = Gauge("sandbox_interpreter_restarts", "Interpreters that died and were replaced", registry=to)
        restarts.set_function(lambda: self._pool.num_restarts)

    def application(self) -> web.Application:
        """The routes."""
        application = web.Application(client_max_size=_MAX_BODY_BYTES)
        application.router.add_post("/run_code", self._run_code)
        application.router.add_get("/health", self._health)
        application.router.add_get("/metrics", self._metrics)
        return application

    async def _run_code(self, http: web.Request) -> web.Response:
        try:
            request = parse_request(await http.json())
        except RequestError as error:
            self._requests.labels("", "422").inc()
            return web.json_response({"detail": str(error)}, status=422)
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            self._requests.labels("", "400").inc()
            return web.json_response({"detail": f"the body is not JSON: {error}"}, status=400)
        if self._in_flight >= self._pool.num_workers + self._max_queue:
            self._requests.labels(request.language, "503").inc()
            detail = f"{self._max_queue} programs are waiting already. Try again, or start with a longer --max-queue."
            return web.json_response({"detail": detail}, status=503)
        start = time.monotonic()
        self._in_flight += 1
        try:
            answer = await self._answer(request)
        finally:
            self._in_flight -= 1
            self._wall.observe(time.monotonic() - start)
        self._requests.labels(request.language, answer["status"]).inc()
        return web.json_response(answer)

    async def _answer(self, request: RunRequest) -> dict[str, Any]:
        try:
            outcome = await self._pool.run(request)
        except ServiceError as error:
            logger.warning("%s", error)
            return self._body("SandboxError", str(error), None, {})
        self._seconds.labels(request.language).observe(outcome.execution_time)
        status = "Success" if outcome.return_code == 0 else "Failed"
        return self._body(status, "", _run_result(outcome), outcome.files)

    def _body(self, status: str, message: str, run: dict[str, Any] | None, files: dict[str, bytes]) -> dict[str, Any]:
        encoded = {name: base64.b64encode(content).decode() for name, content in files.items()}
        return {
            "status": status,
            "message": message,
            "compile_result": None,
            "run_result": run,
            "executor_pod_name": self._host,
            "files": encoded,
        }

    async def _health(self, _: web.Request) -> web.Response:
        layers = self._pool.layers
        body = {"status": "ok", "workers": self._pool.num_workers, "in_flight": self._in_flight, "isolation": layers}
        return web.json_response(body)

    async def _metrics(self, _: web.Request) -> web.Response:
        return web.Response(body=generate_latest(self._registry), headers={"Content-Type": "text/plain; version=0.0.4"})


def serve(
    host: str = "127.0.0.1",
    port: int = 8080,
    workers: int | None = None,
    max_queue: int = 4096,
    *,
    allow_network: bool = False,
    inherited_socket: int | None = None,
    parent_pipe: int | None = None,
) -> None:
    """Run the server until SIGTERM or SIGINT.

    Args:
        host: Address to listen on.
        port: Port to listen on.
        workers: Programs at once; by default four for each core.
        max_queue: Requests that may wait; further ones get HTTP 503.
        allow_network: Leave programs on the machine's network.
        inherited_socket: Descriptor of a listening socket to use instead of host and port.
        parent_pipe: Descriptor whose end of file means that the parent is gone; the server ends then.

    Raises:
        ServiceError: The port is in use, or no interpreter starts.
    """
    listener = _listen(host, port) if inherited_socket is None else socket.socket(fileno=inherited_socket)
    num_workers = workers or _WORKERS_PER_CORE * (os.cpu_count() or 1)
    with listener:
        asyncio.run(_serve(listener, num_workers, max_queue, allow_network, parent_pipe))


def _listen(host: str, port: int) -> socket.socket:
    try:
        return socket.create_server((host, port), backlog=1024)
    except OSError as error:
        raise ServiceError(
            f"sandbox: cannot listen on {host}:{port}, {error.strerror}. Choose another --port, or stop what uses it."
        ) from error


async def _serve(
    listener: socket.socket, workers: int, max_queue: int, allow_network: bool, parent_pipe: int | None
) -> None:
    pool = SandboxPool(workers, allow_network=allow_network)
    wanted = ("pid", "process_limit") if allow_network else ("network", "pid", "process_limit")
    missing = [name for name in wanted if not pool.layers[name]]
    if missing:
        logger.warning(
            "sandbox: this machine does not allow the isolation of %s; programs run without it", ", ".join(missing)
        )
    application = SandboxServer(pool, max_queue).application()
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=1.0, handler_cancellation=True)
    try:
        await runner.setup()
        await web.SockSite(runner, listener).start()
        address = listener.getsockname()
        logger.info("sandbox: POST http://%s:%s/run_code, %d programs at once", address[0], address[1], workers)
        stopped = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stopped.set)
        if parent_pipe is not None:
            loop.add_reader(parent_pipe, stopped.set)
        await stopped.wait()
        if parent_pipe is not None:
            loop.remove_reader(parent_pipe)
    finally:
        await runner.cleanup()
        pool.close()


def _run_result(outcome: RunOutcome) -> dict[str, Any]:
    return {
        "status": "TimeLimitExceeded" if outcome.timed_out else "Finished",
        "execution_time": outcome.execution_time,
        "return_code": outcome.return_code,
        "stdout": outcome.stdout,
        "stderr": outcome.stderr,
    }
