"""The retriever: an HTTP server with the wire format of Search-R1.

`POST /retrieve` finds documents for a list of queries, `GET /health` says what is served, `GET /metrics` is Prometheus
text. The trainer starts one for itself with `EmbeddedRetriever`; `python -m rl retriever` starts one alone.

Source: the format of Search-R1's retrieval server, arXiv:2503.09516.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import logging
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aiohttp import web
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from rl.errors import ServiceError
from rl.services.http_server import listen, metrics_response, serve_until_stopped
from rl.services.retriever_folder import Hit, SearchIndex

logger = logging.getLogger(__name__)

BACKENDS = {
    "bm25s": "rl.services.retriever_index",
    "tantivy": "rl.services.retriever_tantivy",
    "dense": "rl.services.retriever_dense",
}
"""Modules whose `open_index` opens the index of a corpus, by `--backend`; each brings in libraries of its own."""

_DEFAULT_TOPK = 3  # Search-R1's
_MAX_BODY_BYTES = 16 << 20
_CACHED_QUERIES = 16_384
_BUCKETS = (0.0005, 0.001, 0.002, 0.003, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 5)


class RequestError(ValueError):
    """A field is missing or wrong; answered with HTTP 422."""


@dataclass(slots=True, frozen=True)
class RetrieveRequest:
    """The body of `POST /retrieve`, checked."""

    queries: list[str]
    topk: int
    """At least 1."""
    return_scores: bool


class RetrieverServer:
    """The handlers, around one index."""

    def __init__(self, index: SearchIndex, corpus: Path | Sequence[Path], backend: str) -> None:
        self._index, self._backend = index, backend
        self._corpus = ", ".join(map(str, [corpus] if isinstance(corpus, Path) else corpus))
        self._found: OrderedDict[tuple[str, int], tuple[Hit, ...]] = OrderedDict()  # the latest at the end
        self._turn = asyncio.Lock()
        self._registry = to = CollectorRegistry()
        self._requests = Counter("retriever_requests", "Answered requests", ["status"], registry=to)
        self._queries = Counter("retriever_queries", "Answered queries", registry=to)
        self._seconds = Histogram("retriever_request_seconds", "Requests", buckets=_BUCKETS, registry=to)
        self._cache_hits = Gauge("retriever_cache_hits", "Queries answered from memory", registry=to)
        documents = Gauge("retriever_documents", "Documents of the corpus", registry=to)
        documents.set(index.num_documents)

    def application(self) -> web.Application:
        """The routes."""
        application = web.Application(client_max_size=_MAX_BODY_BYTES)
        application.router.add_post("/retrieve", self._retrieve)
        application.router.add_get("/health", self._health)
        application.router.add_get("/metrics", self._metrics)
        return application

    async def _retrieve(self, http: web.Request) -> web.Response:
        start = time.monotonic()
        try:
            request = parse_request(json.loads(await http.read()))
        except RequestError as error:
            return self._refuse(422, str(error))
        except ValueError as error:  # JSONDecodeError and UnicodeDecodeError
            return self._refuse(400, f"the body is not JSON: {error}")
        lists = [self._encode(hits, request) for hits in await self._search(request)]
        self._requests.labels("200").inc()
        self._queries.inc(len(lists))
        self._seconds.observe(time.monotonic() - start)
        return web.Response(body=b'{"result": [' + b", ".join(lists) + b"]}", content_type="application/json")

    async def _search(self, request: RetrieveRequest) -> list[tuple[Hit, ...]]:
        """Find the documents of every query, those asked before from memory."""
        found = {query: self._recall(query, request.topk) for query in request.queries}
        new = [query for query, hits in found.items() if hits is None]
        self._cache_hits.inc(len(request.queries) - len(new))
        size = self._index.batch_size
        for start in range(0, len(new), size):
            if start:
                await asyncio.sleep(0)  # a long list lets other requests pass between its batches
            batch = new[start : start + size]
            for query, hits in zip(batch, await self._search_batch(batch, request.topk), strict=True):
                found[query] = self._found[query, request.topk] = hits
        while len(self._found) > _CACHED_QUERIES:
            self._found.popitem(last=False)
        return [found[query] or () for query in request.queries]

    def _recall(self, query: str, topk: int) -> tuple[Hit, ...] | None:
        hits = self._found.get((query, topk))
        if hits is not None:
            self._found.move_to_end((query, topk))
        return hits

    async def _search_batch(self, queries: list[str], topk: int) -> list[tuple[Hit, ...]]:
        if self._index.batch_size == 1:
            return self._index.search_batch(queries, topk)
        async with self._turn:  # one call keeps all cores busy
            return await asyncio.to_thread(self._index.search_batch, queries, topk)

    def _encode(self, hits: tuple[Hit, ...], request: RetrieveRequest) -> bytes:
        """The JSON list of one query's documents; they are stored encoded, so nothing is encoded again."""
        documents = [self._index.document(hit.row) for hit in hits]
        if request.return_scores:
            pairs = zip(documents, hits, strict=True)
            documents = [b'{"document": %b, "score": %b}' % (text, repr(hit.score).encode()) for text, hit in pairs]
        return b"[" + b", ".join(documents) + b"]"

    def _refuse(self, status: int, detail: str) -> web.Response:
        self._requests.labels(str(status)).inc()
        return web.json_response({"detail": detail}, status=status)

    async def _health(self, _: web.Request) -> web.Response:
        body = {"status": "ok", "backend": self._backend, "corpus": self._corpus}
        return web.json_response(body | {"num_documents": self._index.num_documents})

    async def _metrics(self, _: web.Request) -> web.Response:
        return metrics_response(self._registry)


def parse_request(body: Any) -> RetrieveRequest:
    """Check a request's body. Unknown fields are ignored.

    Args:
        body: Decoded JSON: `queries`, and optionally `topk` and `return_scores`.

    Returns:
        The request, with Search-R1's defaults for what is missing.

    Raises:
        RequestError: A field is missing or wrong; the text names it.
    """
    if not isinstance(body, dict):
        raise RequestError("the body must be a JSON object")
    queries, scores = body.get("queries"), body.get("return_scores")
    if not isinstance(queries, list) or not all(isinstance(query, str) for query in queries):
        raise RequestError(f"queries: must be a list of texts, got {queries!r:.50}")
    topk = _DEFAULT_TOPK if body.get("topk") is None else body["topk"]
    if isinstance(topk, bool) or not isinstance(topk, int) or topk < 1:
        raise RequestError(f"topk: must be a whole number of at least 1, got {topk!r:.50}")
    if not isinstance(scores, bool | None):
        raise RequestError(f"return_scores: must be true or false, got {scores!r:.50}")
    return RetrieveRequest(queries, topk, bool(scores))


def open_backend(
    backend: str, corpus: Path | Sequence[Path], index: Path | None = None, model: Path | None = None
) -> SearchIndex:
    """Open the index of a corpus with one of the backends, which builds it first where it is missing or outdated.

    Args:
        backend: Name in `BACKENDS`.
        corpus: .jsonl or .parquet; several files make up one corpus.
        index: Folder of the index; by default beside the corpus.
        model: Folder of a sentence-transformers model; `dense` needs it, the others have none.

    Returns:
        The index.

    Raises:
        ServiceError: The backend's libraries are not installed, the corpus is missing or malformed, `model` does not
            fit the backend, or the index cannot be written.
    """
    if (backend == "dense") != (model is not None):
        raise ServiceError(
            f"retriever --model: is what --backend dense needs, and only that, got {model} with {backend}. "
            "Name the folder of a sentence-transformers model for dense, or leave it out."
        )
    try:
        module = importlib.import_module(BACKENDS[backend])
    except ModuleNotFoundError as error:
        raise ServiceError(
            f"retriever --backend {backend}: the package '{error.name}' is not installed. "
            f"Install it: `pip install 'turnwise[{backend}]'`."
        ) from error
    opened: SearchIndex = module.open_index(corpus, index, *([] if model is None else [model]))
    return opened


def serve(
    corpus: str | Path | Sequence[str | Path],
    index: str | Path | None = None,
    host: str = "127.0.0.1",
    port: int = 8000,
    backend: str = "bm25s",
    model: str | Path | None = None,
    *,
    inherited_socket: int | None = None,
    parent_pipe: int | None = None,
) -> None:
    """Build or open the index of a corpus, and answer until SIGTERM or SIGINT.

    Args:
        corpus: .jsonl or .parquet file, or several that make up one corpus.
        index: Folder of the index; by default beside the corpus.
        host: Address to listen on.
        port: Port to listen on.
        backend: Name in `BACKENDS`.
        model: Folder of a sentence-transformers model, for `dense`.
        inherited_socket: Descriptor of a listening socket to use instead of host and port.
        parent_pipe: Descriptor whose end of file means that the parent is gone; the server ends then.

    Raises:
        ServiceError: The port is in use, or the index cannot be opened; see `open_backend`.
    """
    files = [Path(corpus)] if isinstance(corpus, str | Path) else [Path(file) for file in corpus]
    with listen("retriever", host, port, inherited_socket) as listener:  # before an index is built for nothing
        folders = (None if folder is None else Path(folder) for folder in (index, model))
        opened = open_backend(backend, files, *folders)
        address = listener.getsockname()
        logger.info("retriever: POST http://%s:%s/retrieve, %d documents", address[0], address[1], opened.num_documents)
        application = RetrieverServer(opened, files, backend).application()
        asyncio.run(serve_until_stopped(application, listener, parent_pipe))
