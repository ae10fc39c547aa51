"""The HTTP server of the service."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from dataclasses import dataclass

from aiohttp import web

from rl.config.problems import Problem, error
from rl.config.serve import ServeConfig
from rl.errors import ConfigError
from rl.serving.arbor.protocol import Arbor
from rl.serving.routes import make_service_application
from rl.serving.routes import service_key as service_key
from rl.serving.service import Service


def port_problems(config: ServeConfig) -> Iterator[Problem]:
    """Check that the service can listen, before its engines start."""
    with socket.socket(socket.AF_INET6 if ":" in config.host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((config.host, config.port))
        except OSError as failure:
            yield error(_cannot_listen(config, failure))


def _cannot_listen(config: ServeConfig, failure: OSError) -> str:
    return (
        f"serve_config.port: cannot listen on {config.host}:{config.port} ({failure.strerror or failure}). Choose "
        "another port, or end what uses it."
    )


@dataclass(slots=True, frozen=True)
class Server:
    """A server that listens."""

    address: str
    """`http://HOST:PORT`."""
    runner: web.AppRunner

    async def close(self) -> None:
        """Stop listening, and end what is under way."""
        await self.runner.cleanup()


async def start_server(service: Service, config: ServeConfig) -> Server:
    """Serve the service's routes.

    Raises:
        ConfigError: The port is in use, the address is not this machine's, or a key is missing.
    """
    application = make_service_application(service, service_key(config.host))
    arbor = Arbor(service, service.config)
    arbor.add_to(application)
    service.on_plain, service.protocol_metrics = arbor.on_completion, arbor.metrics
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=1.0, handler_cancellation=True)
    await runner.setup()
    try:
        await web.TCPSite(runner, config.host, config.port).start()
    except OSError as failure:
        await runner.cleanup()
        raise ConfigError(_cannot_listen(config, failure)) from failure
    port = runner.addresses[0][1]
    host = f"[{config.host}]" if ":" in config.host else config.host
    service.endpoint.address = f"http://{host}:{port}"
    return Server(service.endpoint.address, runner)
