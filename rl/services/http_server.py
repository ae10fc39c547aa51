"""Runs an aiohttp application until it is asked to stop, on a new port or on a socket that a parent opened."""

from __future__ import annotations

import asyncio
import resource
import signal
import socket
from functools import partial

from aiohttp import web
from prometheus_client import CollectorRegistry, generate_latest

from rl.errors import ServiceError

_BACKLOG = 1024
_IDLE_TIMEOUT_S = 30.0
"""Time for the head of a request. aiohttp's clients close an idle connection after 15 s."""
_MAX_CONNECTIONS = 8192
_BUSY = b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


def listen(service: str, host: str, port: int, inherited_socket: int | None = None) -> socket.socket:
    """Open a listening socket. The caller closes it.

    Args:
        service: Name of the service, for the error message.
        host: Address to listen on.
        port: Port to listen on.
        inherited_socket: Descriptor of a listening socket to use instead.

    Raises:
        ServiceError: The port is in use, or the address is not this machine's.
    """
    if inherited_socket is not None:
        return socket.socket(fileno=inherited_socket)
    try:
        return socket.create_server((host, port), backlog=_BACKLOG)
    except (OSError, OverflowError) as error:  # OverflowError: not a port number
        reason = error.strerror if isinstance(error, OSError) else str(error).rstrip(".")
        raise ServiceError(
            f"{service}: cannot listen on {host}:{port}, {reason}. Choose another --port or --host."
        ) from error


async def serve_until_stopped(
    application: web.Application, listener: socket.socket, parent_pipe: int | None = None
) -> None:
    """Answer requests until SIGTERM or SIGINT, or until the parent is gone. Running handlers get a second to end.

    A handler is cancelled when its client disconnects. A connection is closed if the head of a request does not arrive
    in time. Beyond the maximum number of connections a new one is answered with HTTP 503.

    Args:
        application: The routes.
        listener: A listening socket.
        parent_pipe: A descriptor that reaches end of file when the parent is gone.
    """
    runner = web.AppRunner(
        application,
        access_log=None,
        shutdown_timeout=1.0,
        handler_cancellation=True,
        keepalive_timeout=_IDLE_TIMEOUT_S,
    )
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    acceptor = None
    try:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stopped.set)
        await runner.setup()
        assert runner.server is not None, "it was set up"
        accept = partial(_accept, runner.server, min(_MAX_CONNECTIONS, _raise_descriptor_limit() // 2))
        acceptor = await loop.create_server(accept, sock=listener, backlog=_BACKLOG)
        if parent_pipe is not None:
            loop.add_reader(parent_pipe, stopped.set)
        await stopped.wait()
        if parent_pipe is not None:
            loop.remove_reader(parent_pipe)
    finally:
        if acceptor is not None:
            acceptor.close()
        await runner.cleanup()


def metrics_response(registry: CollectorRegistry) -> web.Response:
    """The answer to `GET /metrics`: Prometheus text."""
    return web.Response(body=generate_latest(registry), headers={"Content-Type": "text/plain; version=0.0.4"})


class _Refusal(asyncio.Protocol):
    """The protocol of a connection beyond the maximum."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.WriteTransport), "a socket's transport can write"
        transport.write(_BUSY)
        transport.close()


def _accept(server: web.Server, max_connections: int) -> asyncio.Protocol:
    return server() if len(server.connections) < max_connections else _Refusal()


def _raise_descriptor_limit() -> int:
    """Raise the soft limit to the hard one, since every connection needs a descriptor; returns the limit."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard if hard != resource.RLIM_INFINITY else 2 * _MAX_CONNECTIONS
