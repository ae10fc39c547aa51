"""`rl view RUN --serve`: the page of a run that may still be running, on the loopback interface."""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from aiohttp import web

from rl.errors import DataError
from rl.observability.page import content_policy, pack_chunk, pack_json, read_asset, render_page
from rl.observability.page.blocks import Block, make_blocks
from rl.observability.page.details import Detail, step_details
from rl.observability.page.overview import overview, trajectory_files
from rl.observability.run_directory import RunDirectory
from rl.services.http_guard import make_application
from rl.services.http_server import listen, serve_until_stopped

logger = logging.getLogger(__name__)

T = TypeVar("T")

HOST = "127.0.0.1"
_CHUNKS = "/chunks/"
_SCAN_EVERY_S = 1.0
_SETTLED_AFTER_S = 2.0
"""A file that has not changed for so long is complete: a step's trajectories are written at once."""


class LiveRun:
    """The chunks of a run, read from its directory as the page asks for them."""

    def __init__(self, run: RunDirectory) -> None:
        self._run = run
        self._blocks: list[Block] = []
        self._seen: set[Path] = set()
        self._details: dict[str, Detail] = {}

    def complete_files(self, now: float) -> list[Path]:
        """Trajectory files that are complete and not read yet.

        Args:
            now: Seconds since 1970.
        """
        return [path for path in self._pending() if now - path.stat().st_mtime >= _SETTLED_AFTER_S]

    def read(self, path: Path) -> None:
        """Index a trajectory file."""
        self._blocks += make_blocks([path], 1)
        self._seen.add(path)

    def chunk(self, name: str) -> bytes:
        """The content of a chunk, packed.

        Raises:
            KeyError: There is no such chunk.
            DataError: A file of the run is malformed.
        """
        kind, *numbers = name.split("/")
        if kind == "state":
            return pack_json(self._state())
        if kind == "run":
            return pack_json(overview(self._run) | {"contents": self._contents()})
        if kind in ("rows", "words") and len(numbers) == 1:
            block = _entry(self._blocks, numbers[0])
            return block.rows if kind == "rows" else block.words
        if kind == "records" and len(numbers) == 2:
            return _entry(_entry(self._blocks, numbers[0]).records, numbers[1]).pack()
        return pack_chunk(self._details[name].make())

    def _state(self) -> list[int]:
        """Changes when the page has to read the run's overview again; small, because the page asks all the time."""
        run = self._run
        files = (run.metrics_file, run.warnings_file, run.summary_file)
        sizes = [path.stat().st_size if path.is_file() else 0 for path in files]
        num_tokens_files = sum(1 for _ in run.tokens.glob("step_*.parquet"))  # those of ranks come after the step's
        return [*sizes, num_tokens_files, len(run.timeline_steps()), len(self._blocks), len(self._pending())]

    def _contents(self) -> dict[str, Any]:
        self._details = {detail.name: detail for detail in step_details(self._run)}
        return {
            "blocks": [block.entry() for block in self._blocks],
            "left_out": [],
            "num_left_out": 0,
            "details": {name: detail.covers for name, detail in self._details.items()},
            "num_pending": len(self._pending()),
        }

    def _pending(self) -> list[Path]:
        return [path for path in trajectory_files(self._run) if path not in self._seen]


def _entry(entries: Sequence[T], number: str) -> T:
    """The entry with a number that came as text."""
    if not number.isdecimal() or int(number) >= len(entries):
        raise KeyError(number)
    return entries[int(number)]


def serve(run: RunDirectory, port: int) -> None:
    """Serve a run's page until Ctrl-C.

    Args:
        run: The run.
        port: Port on the loopback interface; 0 for any free one.

    Raises:
        ServiceError: The port is in use.
    """
    listener = listen("rl view --serve", HOST, port)
    logger.info("%s: http://%s:%d (Ctrl-C ends it)", run.path, HOST, listener.getsockname()[1])
    asyncio.run(_serve(run, listener))


async def _serve(run: RunDirectory, listener: socket.socket) -> None:
    await serve_until_stopped(make_page_application(run), listener)


def make_page_application(run: RunDirectory) -> web.Application:
    """The routes of the page: `/`, and its chunks under `/chunks/`. Files are read while the application runs."""
    live = LiveRun(run)
    script, style = read_asset("viewer.js"), read_asset("viewer.css")
    name = run.path.resolve().name
    page = b"".join(render_page(name, script=script, style=style, chunk_address=_CHUNKS))
    headers = {
        "Content-Security-Policy": content_policy(script, style, connect=True) + "; frame-ancestors 'none'",
        "Cache-Control": "no-store",
        "X-Content-Type-Options": "nosniff",
    }

    async def get_page(_: web.Request) -> web.Response:
        return web.Response(body=page, content_type="text/html", charset="utf-8", headers=headers)

    async def get_chunk(request: web.Request) -> web.Response:
        try:
            body = await asyncio.to_thread(live.chunk, request.match_info["name"])
        except KeyError as error:
            raise web.HTTPNotFound(text="no such chunk") from error
        except (DataError, OSError) as error:
            raise web.HTTPServiceUnavailable(text=str(error)) from error
        return web.Response(body=body, content_type="application/octet-stream", headers=headers)

    async def reading(_: web.Application) -> AsyncIterator[None]:
        task = asyncio.create_task(_read_files(live))
        yield
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task

    application = make_application([])
    application.add_routes([web.get("/", get_page), web.get(_CHUNKS + "{name:.+}", get_chunk)])
    application.cleanup_ctx.append(reading)
    return application


async def _read_files(live: LiveRun) -> None:
    while True:
        for path in live.complete_files(time.time()):
            await asyncio.to_thread(live.read, path)
        await asyncio.sleep(_SCAN_EVERY_S)
