"""The HTTP server of the service."""

from __future__ import annotations

from dataclasses import dataclass

from aiohttp import web

from rl.config.serve import ServeConfig
from rl.errors import ConfigError
from rl.serving.arbor.protocol import Arbor
from rl.serving.routes import make_service_application, service_key
from rl.serving.service import Service


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
    except OSError as error:
        await runner.cleanup()
        raise ConfigError(
            f"serve_config.port: cannot listen on {config.host}:{config.port} ({error.strerror or error}). Choose "
            "another port, or end what uses it."
        ) from error
    port = runner.addresses[0][1]
    host = f"[{config.host}]" if ":" in config.host else config.host
    service.endpoint.address = f"http://{host}:{port}"
    return Server(service.endpoint.address, runner)
