"""Runs an aiohttp application until it is asked to stop, on a port of its own or on a socket that a parent opened."""

from __future__ import annotations

import asyncio
import signal
import socket

from aiohttp import web
from prometheus_client import CollectorRegistry, generate_latest

from rl.errors import ServiceError

_BACKLOG = 1024


def listen(service: str, host: str, port: int, inherited_socket: int | None = None) -> socket.socket:
    """Open the socket to serve on.

    Args:
        service: Its name, for the message.
        host: Address to listen on.
        port: Port to listen on.
        inherited_socket: Descriptor of a listening socket to use instead.

    Returns:
        The listening socket; the caller closes it.

    Raises:
        ServiceError: The port is in use, or the address is not this machine's.
    """
    if inherited_socket is not None:
        return socket.socket(fileno=inherited_socket)
    try:
        return socket.create_server((host, port), backlog=_BACKLOG)
    except (OSError, OverflowError) as error:  # the latter for a number that is no port
        reason = error.strerror if isinstance(error, OSError) else str(error).rstrip(".")
        raise ServiceError(
            f"{service}: cannot listen on {host}:{port}, {reason}. Choose another --port or --host."
        ) from error


async def serve_until_stopped(
    application: web.Application, listener: socket.socket, parent_pipe: int | None = None
) -> None:
    """Answer requests until SIGTERM or SIGINT, or until the parent is gone; what is in progress gets a second to end.

    A handler whose client hangs up is cancelled.

    Args:
        application: The routes.
        listener: A listening socket.
        parent_pipe: Descriptor whose end of file means that the parent is gone.
    """
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=1.0, handler_cancellation=True)
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    try:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stopped.set)
        await runner.setup()
        await web.SockSite(runner, listener).start()
        if parent_pipe is not None:
            loop.add_reader(parent_pipe, stopped.set)
        await stopped.wait()
        if parent_pipe is not None:
            loop.remove_reader(parent_pipe)
    finally:
        await runner.cleanup()


def metrics_response(registry: CollectorRegistry) -> web.Response:
    """The answer to `GET /metrics`: Prometheus text.

    Args:
        registry: What to show.

    Returns:
        The response.
    """
    return web.Response(body=generate_latest(registry), headers={"Content-Type": "text/plain; version=0.0.4"})
