"""What a service's server refuses, and the limits of bodies and answers, tested with raw bytes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from rl.services import http_server
from rl.services.http_guard import Bodies, make_application
from rl.services.retriever.index import open_index
from rl.services.retriever.server import RetrieverServer


class Service:
    """Answers with the length of the body."""

    def __init__(self, bodies: Bodies, send_timeout_s: float = 60.0) -> None:
        self.bodies = bodies
        self.application = make_application(["sandbox.local"], send_timeout_s)
        self.application.router.add_post("/", self._post)
        self.application.router.add_get("/", self._get)
        self.release = asyncio.Event()
        self.release.set()

    async def _post(self, http: web.Request) -> web.Response:
        async with self.bodies.read(http) as body:
            await self.release.wait()
            return web.json_response(len(body))

    async def _get(self, _: web.Request) -> web.Response:
        return web.Response(body=bytes(64 << 20))


@contextlib.asynccontextmanager
async def served(service: Service) -> AsyncIterator[int]:
    server = TestServer(service.application)
    await server.start_server()
    try:
        yield server.port or 0
    finally:
        await server.close()


async def exchange(port: int, request: bytes) -> tuple[int, str]:
    """Status and body of the answer to some bytes."""
    async with asyncio.timeout(30):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(request)
        status = int((await reader.readline()).split()[1])
        length = 0
        while (line := await reader.readline()) not in (b"\r\n", b""):
            if line.lower().startswith(b"content-length:"):
                length = int(line.split(b":")[1])
        text = (await reader.readexactly(length)).decode()
        writer.close()
        return status, text


def head(*lines: str, host: str = "127.0.0.1:80", kind: str = "application/json", method: str = "POST") -> bytes:
    return "\r\n".join([f"{method} / HTTP/1.1", f"Host: {host}", f"Content-Type: {kind}", *lines, "", ""]).encode()


@pytest.mark.parametrize(
    ("host", "is_taken"),
    [
        ("127.0.0.1:8080", True),
        ("[::1]:8080", True),
        ("10.1.2.3", True),
        ("localhost", True),
        ("LOCALHOST.:80", True),
        ("sandbox.local:8080", True),
        (socket.gethostname(), True),
        ("evil.example", False),
        ("evil.example:8080", False),
        ("127.0.0.1.evil.example", False),
        ("localhost.evil.example", False),
        ("127.0.0.1@evil.example", False),
        ("[::1", False),
        ("", False),
    ],
)
async def test_a_request_is_for_a_name_of_this_server(host: str, is_taken: bool) -> None:
    async with served(Service(Bodies(100, 1000))) as port:
        status, text = await exchange(port, head("Content-Length: 2", host=host) + b"{}")
        got = await exchange(port, head(host=host, method="GET", kind="text/html")) if not is_taken else (421, "")
    assert (status, text) == (200, "2") if is_taken else (status, "is not a name of this server" in text) == (421, True)
    assert got[0] == 421


@pytest.mark.parametrize(
    ("origin", "is_taken"),
    [
        ("http://127.0.0.1:80", True),
        ("https://127.0.0.1:80", True),
        ("http://127.0.0.1:81", False),
        ("http://evil.example", False),
        ("http://localhost:80", False),
        ("null", False),
        ("", False),
    ],
)
async def test_a_page_of_another_origin_is_refused(origin: str, is_taken: bool) -> None:
    async with served(Service(Bodies(100, 1000))) as port:
        status, text = await exchange(port, head(f"Origin: {origin}", "Content-Length: 2") + b"{}")
    assert status == (200 if is_taken else 403), text


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "", "json"])
async def test_only_json_is_taken(kind: str) -> None:
    async with served(Service(Bodies(100, 1000))) as port:
        status, text = await exchange(port, head("Content-Length: 2", kind=kind) + b"{}")
        taken = await exchange(port, head("Content-Length: 2", kind="application/json; charset=nonsense") + b"{}")
    assert (status, "must be application/json" in text) == (415, True)
    assert taken == (200, "2")


async def test_a_large_body_is_refused_before_it_has_come() -> None:
    async with served(Service(Bodies(1 << 20, 8 << 20))) as port:
        announced = await exchange(port, head(f"Content-Length: {(1 << 20) + 1}"))
        chunk = b"10000\r\n" + bytes(1 << 16) + b"\r\n"
        streamed = await exchange(port, head("Transfer-Encoding: chunked") + chunk * 17)
        taken = await exchange(port, head("Transfer-Encoding: chunked") + chunk * 16 + b"0\r\n\r\n")
    assert announced == streamed == (413, '{"detail": "the body has more than 1 MiB"}')
    assert taken == (200, str(1 << 20))


async def test_a_body_that_does_not_come_in_time_is_refused() -> None:
    async with served(Service(Bodies(100, 1000, timeout_s=0.05))) as port:
        for request in (
            head("Content-Length: 50") + b"{",
            head("Transfer-Encoding: chunked") + b"1\r\n{\r\n",
            head("Content-Length: 50"),
        ):
            assert await exchange(port, request) == (408, '{"detail": "the body did not arrive within 0.05 s"}')


@pytest.mark.parametrize("lines", [["Transfer-Encoding: chunked"], ["Content-Encoding: gzip", "Content-Length: 9"]])
async def test_a_malformed_body_is_refused(lines: list[str]) -> None:
    async with served(Service(Bodies(100, 1000))) as port:
        assert (await exchange(port, head(*lines) + b"nonsense!\r\n"))[0] == 400


async def test_large_bodies_are_bounded_together_and_do_not_keep_small_ones_out() -> None:
    service = Service(Bodies(1 << 20, 1 << 20))
    service.release.clear()
    large = head(f"Content-Length: {1 << 20}") + bytes(1 << 20)
    async with served(service) as port:
        first = asyncio.create_task(exchange(port, large))
        async with asyncio.timeout(30):
            while service.bodies._num_held < 1 << 20:
                await asyncio.sleep(0.005)
        assert (await exchange(port, head(f"Content-Length: {1 << 17}")))[0] == 503
        small = asyncio.create_task(exchange(port, head("Content-Length: 2") + b"{}"))
        await asyncio.sleep(0)
        service.release.set()
        assert await asyncio.gather(first, small) == [(200, str(1 << 20)), (200, "2")]
        assert await exchange(port, large) == (200, str(1 << 20))
    assert service.bodies._num_held == 0


async def test_a_client_that_does_not_read_its_answer_is_cut_off() -> None:
    async with served(Service(Bodies(100, 1000), send_timeout_s=0.1)) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1024)
        writer.write(head(method="GET"))
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        async with asyncio.timeout(30):
            while await num_connections(port):
                await asyncio.sleep(0.01)
        writer.transport.resume_reading()  # type: ignore[attr-defined]
        with contextlib.suppress(ConnectionResetError):
            assert len(await reader.read(-1)) < 64 << 20
        writer.close()


async def num_connections(port: int) -> int:
    """Established connections of the server."""
    lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
    fields = [line.split() for line in lines]
    established = "01"
    return sum(f[1].endswith(f":{port:04X}") and f[3] == established for f in fields)


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener


@contextlib.asynccontextmanager
async def serving(service: Service, listener: socket.socket) -> AsyncIterator[int]:
    task = asyncio.create_task(http_server.serve_until_stopped(service.application, listener))
    try:
        yield listener.getsockname()[1]
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def test_a_client_that_sends_no_whole_head_is_hung_up_on(
    listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_server, "_IDLE_TIMEOUT_S", 0.2)
    async with serving(Service(Bodies(100, 1000)), listener) as port:
        for begun in (b"", b"POST / HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Slow: "):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(begun)
            async with asyncio.timeout(30):
                assert await reader.read(-1) == b""
            writer.close()


async def test_a_connection_too_many_is_told(listener: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server, "_MAX_CONNECTIONS", 2)
    async with serving(Service(Bodies(100, 1000)), listener) as port:
        request = head("Content-Length: 2") + b"{}"
        first = await asyncio.open_connection("127.0.0.1", port)
        first[1].write(request)
        assert (await first[0].readline()).split()[1] == b"200"
        second = await asyncio.open_connection("127.0.0.1", port)
        third = await asyncio.open_connection("127.0.0.1", port)
        async with asyncio.timeout(30):
            assert b"503 Service Unavailable" in await third[0].read(-1)
            second[1].close()
            while (await exchange(port, request))[0] != 200:
                await asyncio.sleep(0.01)
        first[1].close()
        third[1].close()


async def test_the_retriever_has_the_same_guard(tmp_path: Path) -> None:
    corpus = tmp_path / "c.jsonl"
    corpus.write_text('{"contents": "a cat"}\n')
    server = TestServer(RetrieverServer(open_index(corpus), [corpus], "bm25s").application())
    await server.start_server()
    try:
        body = b'{"queries": ["cat"]}'
        for lines, status in (({"host": "evil.example"}, 421), ({"kind": "text/plain"}, 415), ({}, 200)):
            request = head(f"Content-Length: {len(body)}", **lines) + body
            got, text = await exchange(server.port or 0, request.replace(b"POST / ", b"POST /retrieve "))
            assert got == status, text
        foreign = head("Origin: http://evil.example", f"Content-Length: {len(body)}") + body
        assert (await exchange(server.port or 0, foreign.replace(b"POST / ", b"POST /retrieve ")))[0] == 403
    finally:
        await server.close()


async def test_the_sandbox_has_the_same_guard(sandbox: object) -> None:
    port = sandbox.port  # type: ignore[attr-defined]
    body = json.dumps({"code": "print(1)", "language": "python"}).encode()
    for lines, status in (({"host": "evil.example"}, 421), ({"kind": "text/plain"}, 415), ({}, 200)):
        request = head(f"Content-Length: {len(body)}", **lines) + body
        assert (await exchange(port, request.replace(b"POST / ", b"POST /run_code ")))[0] == status
    foreign = head("Origin: null", f"Content-Length: {len(body)}") + body
    assert (await exchange(port, foreign.replace(b"POST / ", b"POST /run_jupyter ")))[0] == 403
    deleted = head("Origin: http://evil.example", method="DELETE").replace(b"DELETE / ", b"DELETE /sessions/a ")
    assert (await exchange(port, deleted))[0] == 403


async def test_a_large_body_does_not_keep_the_sandbox_from_others(sandbox: object) -> None:
    port = sandbox.port  # type: ignore[attr-defined]
    body = b'{"code": "print(1)", "language": "python", "x": [' + b"1," * 8_000_000 + b"1]}"
    request = head(f"Content-Length: {len(body)}") + body
    large = asyncio.create_task(exchange(port, request.replace(b"POST / ", b"POST /run_code ")))
    health = head(method="GET").replace(b"GET / ", b"GET /health ")
    num_asked = 0
    while not large.done():
        assert (await exchange(port, health))[0] == 200
        num_asked += 1
    assert (await large)[0] == 200
    assert num_asked > 3
