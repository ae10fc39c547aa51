"""Checks that a service's HTTP server makes before a handler runs, and limits of bodies and answers.

A web page in a browser on this machine can reach a service on the loopback interface. Three rules keep it out. `Host`
must be an address or a known name, so a foreign name that points to this address (DNS rebinding) is refused. `Origin`,
which browsers send and programs do not, must be the service's own. A body must be `application/json`, which a browser
sends to another origin only after a preflight request.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any, NoReturn
from urllib.parse import urlsplit

from aiohttp import web

SEND_TIMEOUT_S = 60.0
"""Seconds a client may take to read an answer."""

BODY_TIMEOUT_S = 60.0
"""Seconds a client may take to send a body."""

_JSON = "application/json"
_SMALL_BODY_BYTES = 64 << 10
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def make_application(host_names: Iterable[str], send_timeout_s: float = SEND_TIMEOUT_S) -> web.Application:
    """Make an application without routes that refuses requests of web pages.

    Args:
        host_names: Names of the service, in addition to `localhost` and this machine's name. Addresses always work.
        send_timeout_s: Seconds a client may take to read an answer. Then its connection is closed.
    """
    names = {name.lower() for name in ("localhost", socket.gethostname(), socket.getfqdn(), *host_names)}

    @web.middleware
    async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
        _check_source(request, names)
        response = await handler(request)
        try:
            async with asyncio.timeout(send_timeout_s):
                await response.prepare(request)
                await response.write_eof()
        except TimeoutError:
            if request.transport is not None:
                request.transport.abort()
        return response

    return web.Application(middlewares=[guard])


class Bodies:
    """Reads the bodies of requests, with limits on time and on memory."""

    def __init__(self, max_bytes: int, max_total_bytes: int, timeout_s: float = BODY_TIMEOUT_S) -> None:
        """Set the limits.

        Args:
            max_bytes: Limit for one body.
            max_total_bytes: Limit for all bodies whose requests are not answered yet. Small bodies are accepted beyond
                it, so that large ones cannot keep them out.
            timeout_s: Seconds within which a body must arrive.
        """
        self._max_bytes, self._max_total_bytes, self._timeout_s = max_bytes, max_total_bytes, timeout_s
        self._num_held = 0

    @asynccontextmanager
    async def read(self, http: web.Request) -> AsyncIterator[bytearray]:
        """Read a JSON body, without decoding it, and count it until the end of the block.

        Raises:
            web.HTTPException: The body has another type (415), is too large (413), too slow (408) or malformed (400),
                or other bodies use all the memory (503).
        """
        if http.content_type != _JSON:
            refuse(web.HTTPUnsupportedMediaType, f"Content-Type: must be {_JSON}, got {http.content_type:.100}")
        body = bytearray()
        try:
            await self._receive(http, body)
            yield body
        finally:
            self._num_held -= len(body)

    async def _receive(self, http: web.Request, body: bytearray) -> None:
        self._check(http.content_length or 0, self._num_held + (http.content_length or 0))
        try:
            async with asyncio.timeout(self._timeout_s):
                async for chunk in http.content.iter_any():
                    body += chunk
                    self._num_held += len(chunk)
                    self._check(len(body), self._num_held)
        except TimeoutError:
            refuse(web.HTTPRequestTimeout, f"the body did not arrive within {self._timeout_s:g} s")
        except web.RequestPayloadError as error:
            refuse(web.HTTPBadRequest, f"the body is malformed: {error}")

    def _check(self, num_bytes: int, num_held: int) -> None:
        if num_bytes > self._max_bytes:
            detail = f"the body has more than {self._max_bytes >> 20} MiB"
            refuse(web.HTTPRequestEntityTooLarge, detail, max_size=self._max_bytes, actual_size=num_bytes)
        if num_bytes > _SMALL_BODY_BYTES and num_held > self._max_total_bytes:
            detail = "the bodies of other requests use all the memory for bodies"
            refuse(web.HTTPServiceUnavailable, detail, headers={"Retry-After": "1"})


def refuse(kind: Callable[..., web.HTTPException], detail: str, **options: Any) -> NoReturn:
    """Answer with an error status and a JSON object with the reason.

    Args:
        kind: The exception of the status.
        detail: The reason.
        **options: More arguments of the exception.

    Raises:
        web.HTTPException: Always.
    """
    raise kind(text=json.dumps({"detail": detail}), content_type=_JSON, **options)


def _check_source(http: web.Request, names: set[str]) -> None:
    """Check that the request is meant for this server, and was not sent by a page of another origin."""
    hosts = http.headers.getall("Host", [])
    for host in hosts:
        name = _host_name(host)
        if name not in names and not _is_address(name):
            detail = f"Host: '{host:.100}' is not a name of this server. Use its address, or start it with --allow-host"
            refuse(web.HTTPMisdirectedRequest, detail)
    for origin in http.headers.getall("Origin", []):
        if origin.lower() not in {f"{scheme}://{host}".lower() for scheme in ("http", "https") for host in hosts}:
            refuse(web.HTTPForbidden, f"Origin: pages of '{origin:.100}' may not use this server.")


def _host_name(host: str) -> str:
    try:
        return (urlsplit(f"//{host}").hostname or "").rstrip(".")
    except ValueError:
        return ""


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
