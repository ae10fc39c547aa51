"""The retriever: an HTTP server with the wire format of Search-R1.

`POST /retrieve` finds documents for a list of queries. `GET /health` describes the index. `GET /metrics` is Prometheus
text. A run starts a retriever with `EmbeddedRetriever`; `python -m rl retriever` starts one alone.

Source: the format of Search-R1's retrieval server, arXiv:2503.09516.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
import os
import time
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from aiohttp import web
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from rl.errors import ServiceError
from rl.services.http_guard import Bodies, make_application
from rl.services.http_server import listen, metrics_response, serve_until_stopped
from rl.services.json_body import BodyError, RequestError, decode
from rl.services.retriever.folder import Hit, SearchIndex
from rl.services.retriever.request import RetrieveRequest, parse_request
from rl.services.throttled_warning import ThrottledWarning

logger = logging.getLogger(__name__)

BACKENDS = {
    "bm25s": "rl.services.retriever.index",
    "tantivy": "rl.services.retriever.tantivy",
    "dense": "rl.services.retriever.dense",
}
"""Modules with a function `open_index`, by `--backend`. Each imports libraries of its own."""

_MAX_BODY_BYTES, _MAX_TOTAL_BODY_BYTES = 1 << 20, 256 << 20
_CACHED_QUERIES = 16_384
_LONGEST_CACHED, _MOST_CACHED = 512, 32
_MAX_THREADS = 8
_LONGEST_TOLD = 100
_BUCKETS = (0.0005, 0.001, 0.002, 0.003, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 5)


class RetrieverServer:
    """The handlers, around one index."""

    def __init__(
        self, index: SearchIndex, corpus: Path | Sequence[Path], backend: str, *, host_names: Sequence[str] = ()
    ) -> None:
        """Serve an index.

        Args:
            index: An open index.
            corpus: Its files, for `GET /health`.
            backend: Name in `BACKENDS`, for `GET /health`.
            host_names: Names of the server, in addition to this machine's.
        """
        self._index, self._backend, self._host_names = index, backend, host_names
        self._corpus = ", ".join(map(str, [corpus] if isinstance(corpus, Path) else corpus))
        self._found: OrderedDict[tuple[str, int], tuple[Hit, ...]] = OrderedDict()  # the most recent last
        num_threads = 1 if index.batch_size > 1 else min(len(os.sched_getaffinity(0)), _MAX_THREADS)
        self._threads = ThreadPoolExecutor(num_threads, "search")
        self._bodies = Bodies(_MAX_BODY_BYTES, _MAX_TOTAL_BODY_BYTES)
        self._wordless = ThrottledWarning(logger, "retriever: %d queries without a word to search for, the latest: %r")
        self._registry = to = CollectorRegistry()
        self._requests = Counter("retriever_requests", "Answered requests", ["status"], registry=to)
        self._queries = Counter("retriever_queries", "Answered queries", registry=to)
        wordless = "Answered queries without a word to search for"
        self._num_wordless = Counter("retriever_queries_without_words", wordless, registry=to)
        self._seconds = Histogram("retriever_request_seconds", "Requests", buckets=_BUCKETS, registry=to)
        self._cache_hits = Gauge("retriever_cache_hits", "Queries answered from memory", registry=to)
        documents = Gauge("retriever_documents", "Documents of the corpus", registry=to)
        documents.set(index.num_documents)

    def application(self) -> web.Application:
        """The routes."""
        application = make_application(self._host_names)
        application.router.add_post("/retrieve", self._retrieve)
        application.router.add_get("/health", self._health)
        application.router.add_get("/metrics", self._metrics)
        return application

    async def _retrieve(self, http: web.Request) -> web.Response:
        start = time.monotonic()
        try:
            async with self._bodies.read(http) as body:
                request = parse_request(decode(body))
        except web.HTTPException as refusal:
            self._requests.labels(str(refusal.status)).inc()
            raise
        except RequestError as error:
            return self._refuse(422, str(error))
        except BodyError as error:
            return self._refuse(400, str(error))
        lists = [self._encode(hits, request) for hits in await self._search(request)]
        self._requests.labels("200").inc()
        self._queries.inc(len(lists))
        self._seconds.observe(time.monotonic() - start)
        return web.Response(body=b'{"result": [' + b", ".join(lists) + b"]}", content_type="application/json")

    async def _search(self, request: RetrieveRequest) -> list[tuple[Hit, ...]]:
        """Find the documents of every query, if possible in the cache."""
        found = {query: self._recall(query, request.topk) for query in request.queries}
        new = [query for query, hits in found.items() if hits is None]
        self._cache_hits.inc(len(request.queries) - len(new))
        loop = asyncio.get_running_loop()
        for start in range(0, len(new), self._index.batch_size):
            batch = new[start : start + self._index.batch_size]
            lists = await loop.run_in_executor(self._threads, self._index.search_batch, batch, request.topk)
            for query, hits in zip(batch, lists, strict=True):
                found[query] = hits
                if len(query) <= _LONGEST_CACHED and request.topk <= _MOST_CACHED:
                    self._found[query, request.topk] = hits
        while len(self._found) > _CACHED_QUERIES:
            self._found.popitem(last=False)
        if empty := [query for query in request.queries if not found[query]]:
            await loop.run_in_executor(self._threads, self._count_wordless, empty)
        return [found[query] or () for query in request.queries]

    def _count_wordless(self, queries: list[str]) -> None:
        for query in queries:
            if not self._index.has_words(query):
                self._num_wordless.inc()
                self._wordless.count(query[:_LONGEST_TOLD])

    def _recall(self, query: str, topk: int) -> tuple[Hit, ...] | None:
        hits = self._found.get((query, topk))
        if hits is not None:
            self._found.move_to_end((query, topk))
        return hits

    def _encode(self, hits: tuple[Hit, ...], request: RetrieveRequest) -> bytes:
        """The JSON list of one query's documents, which are stored as JSON."""
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


def open_backend(
    backend: str, corpus: Path | Sequence[Path], index: Path | None = None, model: Path | None = None
) -> SearchIndex:
    """Open the index of a corpus. Builds it first if it is missing or outdated.

    Args:
        backend: Name in `BACKENDS`.
        corpus: .jsonl or .parquet; several files form one corpus.
        index: Folder of the index; by default next to the corpus.
        model: Folder of a sentence-transformers model, for `dense` only.

    Raises:
        ServiceError: The backend's libraries are not installed, the corpus is missing or malformed, `model` does not
            fit the backend, or the index cannot be written.
    """
    if (backend == "dense") != (model is not None):
        raise ServiceError(
            f"retriever --model: only --backend dense needs it, got {model} with {backend}. "
            "Give the folder of a sentence-transformers model for dense, or leave it out."
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
    allow_host: Sequence[str] = (),
    inherited_socket: int | None = None,
    parent_pipe: int | None = None,
) -> None:
    """Build or open the index of a corpus, and answer requests until SIGTERM or SIGINT.

    Args:
        corpus: .jsonl or .parquet file, or several files that form one corpus.
        index: Folder of the index; by default next to the corpus.
        host: Address to listen on.
        port: Port to listen on.
        backend: Name in `BACKENDS`.
        model: Folder of a sentence-transformers model, for `dense`.
        allow_host: Names of the server, in addition to this machine's and `localhost`.
        inherited_socket: Descriptor of a listening socket to use instead of host and port.
        parent_pipe: A descriptor that reaches end of file when the parent is gone. The server then ends.

    Raises:
        ServiceError: The port is in use, or the index cannot be opened; see `open_backend`.
    """
    files = [Path(corpus)] if isinstance(corpus, str | Path) else [Path(file) for file in corpus]
    with listen("retriever", host, port, inherited_socket) as listener:  # may fail, so before the index
        folders = (None if folder is None else Path(folder) for folder in (index, model))
        opened = open_backend(backend, files, *folders)
        address = listener.getsockname()
        logger.info("retriever: POST http://%s:%s/retrieve, %d documents", address[0], address[1], opened.num_documents)
        server = RetrieverServer(opened, files, backend, host_names=(host, *allow_host))
        asyncio.run(serve_until_stopped(server.application(), listener, parent_pipe))
