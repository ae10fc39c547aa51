from __future__ import annotations

import asyncio
import json
import logging
import re
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
from aiohttp.test_utils import TestClient, TestServer

from rl.errors import ServiceError
from rl.services.embedded import EmbeddedRetriever
from rl.services.retriever.folder import Hit
from rl.services.retriever.index import open_index
from rl.services.retriever.server import RetrieverServer, open_backend, serve
from rl.services.throttled_warning import ThrottledWarning
from tests.unit.services.conftest import post_json

ROOT = Path(__file__).resolve().parents[4]
CITIES = [
    {"id": "0", "title": "Rome", "text": "The capital of Italy."},
    {"id": "1", "title": "Paris", "text": "The capital of France, déjà vu."},
    {"id": "2", "title": "Milan", "text": "A city in Italy."},
]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "cities.jsonl"
    path.write_text("".join(json.dumps(city) + "\n" for city in CITIES))
    return path


@pytest.fixture
async def client(corpus: Path) -> AsyncIterator[TestClient]:
    server = TestServer(RetrieverServer(open_index(corpus), corpus, "bm25s").application())
    async with TestClient(server) as client:
        yield client


async def retrieve(client: TestClient, **body: Any) -> Any:
    response = await client.post("/retrieve", json=body)
    assert (response.status, response.content_type) == (200, "application/json")
    return await response.json()


async def test_retrieve_answers_in_the_wire_format_with_scores(client: TestClient) -> None:
    answer = await retrieve(client, queries=["capital of France", "zebra"], topk=1, return_scores=True)
    ((paris,), nothing) = answer["result"]
    assert set(answer) == {"result"}
    assert nothing == []
    assert paris["document"] == {"id": "1", "title": "Paris", "contents": "Paris\nThe capital of France, déjà vu."}
    assert paris["score"] == pytest.approx(0.7, abs=0.2)


async def test_retrieve_without_scores_gives_the_documents(client: TestClient) -> None:
    scored = await retrieve(client, queries=["Italy"], topk=2, return_scores=True)
    plain = await retrieve(client, queries=["Italy"], topk=2)
    assert plain["result"][0] == [item["document"] for item in scored["result"][0]]
    assert [document["title"] for document in plain["result"][0]] == ["Rome", "Milan"]


async def test_retrieve_gives_three_documents_by_default_and_never_more_than_there_are(client: TestClient) -> None:
    assert len((await retrieve(client, queries=["Rome Paris Milan"]))["result"][0]) == 3
    assert len((await retrieve(client, queries=["Rome Paris Milan"], topk=None, other=1))["result"][0]) == 3
    assert len((await retrieve(client, queries=["Rome Paris Milan"], topk=50))["result"][0]) == 3
    assert await retrieve(client, queries=[]) == {"result": []}


@pytest.mark.parametrize(
    ("body", "detail"),
    [
        ([], "the body must be a JSON object"),
        ({}, "queries: is missing"),
        ({"queries": "Rome"}, "queries: must be a valid list, got 'Rome'"),
        ({"queries": ["Rome", 1]}, "queries.1: must be a valid string, got 1"),
        ({"queries": [], "topk": 0}, "topk: must be greater than or equal to 1, got 0"),
        ({"queries": [], "topk": True}, "topk: must be"),
        ({"queries": [], "topk": "3"}, "topk: must be"),
        ({"queries": ["a"] * 1025}, "queries: List must have at most 1024 items after validation, not 1025"),
        ({"queries": ["a", "b" * 8193]}, "queries.1: may have at most 8192 characters, got 8193"),
        (
            {"queries": ["a", "b"], "topk": 8193},
            "topk: may be at most 16384 documents for all queries together, got 8193",
        ),
        ({"queries": [], "topk": 16385}, "topk: must be less than or equal to 16384, got 16385"),
        ({"queries": [], "topk": 10**400}, "topk: must be less than or equal to 16384, got 1000"),
        ({"queries": [[["x"] * 99] * 99]}, "queries.0: must be a valid string, got [["),
        ({"queries": [], "return_scores": "yes"}, "return_scores: must be a valid boolean, got 'yes'"),
    ],
)
async def test_retrieve_names_the_wrong_field(client: TestClient, body: Any, detail: str) -> None:
    response = await client.post("/retrieve", json=body)
    assert response.status == 422
    assert (await response.json())["detail"].startswith(detail)


async def test_retrieve_refuses_what_is_not_json(client: TestClient) -> None:
    for body in (b"{", b"\xff", b"[" * 100_000, b'{"queries": ' + b"[" * 5000 + b"]" * 5000 + b"}", b"1" * 5000):
        response = await client.post("/retrieve", data=body, headers={"Content-Type": "application/json"})
        assert response.status == 400
        assert "is not JSON" in (await response.json())["detail"]


async def test_health_and_metrics_tell_what_is_served(client: TestClient, corpus: Path) -> None:
    for _ in range(3):
        await retrieve(client, queries=["Rome", "Milan"])
    await client.post("/retrieve", json={})
    health = await (await client.get("/health")).json()
    assert health == {"status": "ok", "backend": "bm25s", "corpus": str(corpus), "num_documents": 3}
    metrics = await (await client.get("/metrics")).text()
    for line in (
        'retriever_requests_total{status="200"} 3.0',
        'retriever_requests_total{status="422"} 1.0',
        "retriever_queries_total 6.0",
        "retriever_cache_hits 4.0",
        "retriever_documents 3.0",
        "retriever_request_seconds_count 3.0",
    ):
        assert line in metrics.splitlines()


async def test_retriever_page_request_gets_the_answer_that_it_shows(tmp_path: Path) -> None:
    page = (ROOT / "docs/retriever.md").read_text()
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text(re.findall(r"```jsonl\n(.*?)```", page, re.DOTALL)[0])
    body, shown = re.search(r"-d '(.*?)'", page), re.search(r"```json\n(.*?)```", page, re.DOTALL)
    assert body is not None and shown is not None
    server = TestServer(RetrieverServer(open_index(corpus), corpus, "bm25s").application())
    async with TestClient(server) as client:
        answer = await retrieve(client, **json.loads(body[1]))
    answer["result"][0][0]["score"] = round(answer["result"][0][0]["score"], 4)
    assert answer == json.loads(shown[1])


def test_serve_says_when_the_port_is_taken(corpus: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ServiceError, match=f"retriever: cannot listen on 127.0.0.1:{port}, .*another --port"):
            serve(corpus, port=port)
    with pytest.raises(ServiceError, match=r"listen on 127.0.0.1:70000, bind.*: port must be 0-65535\. Choose"):
        serve(corpus, port=70000)
    assert not corpus.with_name("cities.jsonl.bm25s").exists()


def test_embedded_retriever_answers_and_ends(corpus: Path) -> None:
    with EmbeddedRetriever(corpus) as retriever:
        answer = post_json(retriever.url, json.dumps({"queries": ["Milan"], "topk": 1}).encode(), 200)
        pid = retriever.pid
    assert answer["result"][0][0]["title"] == "Milan"
    assert not psutil.pid_exists(pid)


def test_embedded_retriever_ends_with_a_killed_parent(corpus: Path) -> None:
    program = "import sys, time; from rl.services.embedded import EmbeddedRetriever; from pathlib import Path\n"
    program += "print(EmbeddedRetriever(Path(sys.argv[1])).pid, flush=True); time.sleep(60)"
    parent = subprocess.Popen([sys.executable, "-c", program, str(corpus)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    server = psutil.Process(int(parent.stdout.readline()))
    parent.kill()
    parent.wait(10)
    parent.stdout.close()
    assert psutil.wait_procs([server], timeout=10)[1] == []


def test_embedded_retriever_fails_with_the_reason(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "c.jsonl").write_text("{}\n")
    with pytest.raises(ServiceError, match=r"retriever: ended at start with code 1\. See its messages above"):
        EmbeddedRetriever(tmp_path / "c.jsonl")
    told = capfd.readouterr().err
    assert "c.jsonl: line 1 needs 'contents', or 'title' and 'text', as texts; it has nothing." in told
    assert "Traceback" not in told


def test_command_ends_on_sigterm_and_refuses_unknown_backends(corpus: Path) -> None:
    command = [sys.executable, "-m", "rl", "retriever", "--corpus", str(corpus), "--port", "0"]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    told = iter(process.stderr.readline, "")
    url = next(found.group() for line in told if (found := re.search(r"http://\S+/retrieve", line)))
    assert post_json(url, b'{"queries": ["Milan"], "topk": 1}', 200)["result"][0][0]["id"] == "2"
    process.terminate()
    assert process.wait(20) == 0
    process.stderr.close()
    refused = subprocess.run([*command, "--backend", "lucene"], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert refused.returncode == 2
    assert "invalid choice: 'lucene'" in refused.stderr


def test_open_backend_names_the_extra_that_is_missing(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tantivy", None)
    monkeypatch.delitem(sys.modules, "rl.services.retriever.tantivy", raising=False)
    with pytest.raises(
        ServiceError, match=r"'tantivy' is not installed\. Install it: `pip install 'turnwise\[tantivy\]"
    ):
        open_backend("tantivy", corpus)
    with pytest.raises(ServiceError, match="retriever --model: only --backend dense needs it, got None"):
        open_backend("dense", corpus)
    with pytest.raises(ServiceError, match=r"retriever --model: .*got m with bm25s"):
        open_backend("bm25s", corpus, model=Path("m"))


async def test_a_large_body_is_refused(client: TestClient) -> None:
    response = await client.post("/retrieve", json={"queries": ["a" * (1 << 20)]})
    assert (response.status, (await response.json())["detail"]) == (413, "the body has more than 1 MiB")


async def test_queries_without_words_are_counted_and_told_once(
    client: TestClient, caplog: pytest.LogCaptureFixture
) -> None:
    for queries in (["the of", "Rome", "zebra"], ["?!"], ["the of"]):
        await retrieve(client, queries=queries)
    metrics = await (await client.get("/metrics")).text()
    assert "retriever_queries_without_words_total 3.0" in metrics.splitlines()
    told = [record.getMessage() for record in caplog.records if "word to search for" in record.getMessage()]
    assert told == ["retriever: 1 queries without a word to search for, the latest: 'the of'"]


def test_a_throttled_warning_tells_how_often_it_was(caplog: pytest.LogCaptureFixture) -> None:
    warning = ThrottledWarning(logging.getLogger("test"), "%d times, at last %s")
    for case in "abc":
        warning.count(case)
    warning._next = 0.0  # the pause is over
    warning.count("d")
    assert [record.getMessage() for record in caplog.records] == ["1 times, at last a", "3 times, at last d"]


class BlockingIndex:
    """A search that blocks until it is released."""

    batch_size, num_documents = 1, 1

    def __init__(self) -> None:
        self.has_begun, self.release = threading.Event(), threading.Event()

    def search_batch(self, queries: Sequence[str], topk: int) -> list[tuple[Hit, ...]]:
        self.has_begun.set()
        assert self.release.wait(30)
        return [(Hit(0, 1.0),) for _ in queries]

    def has_words(self, query: str) -> bool:
        return True

    def document(self, row: int) -> bytes:
        return b"{}"


async def test_a_long_search_does_not_keep_the_server_from_others() -> None:
    index = BlockingIndex()
    async with TestClient(TestServer(RetrieverServer(index, Path("c"), "bm25s").application())) as client:
        search = asyncio.create_task(retrieve(client, queries=["long"]))
        await asyncio.to_thread(index.has_begun.wait, 30)
        assert (await client.get("/health")).status == 200
        assert not search.done()
        index.release.set()
        assert await search == {"result": [[{}]]}


class SlowIndex:
    """Takes two queries at a time, and records them."""

    batch_size, num_documents = 2, 1

    def __init__(self) -> None:
        self.asked: list[list[str]] = []

    def search_batch(self, queries: Sequence[str], topk: int) -> list[tuple[Hit, ...]]:
        self.asked.append(list(queries))
        return [(Hit(0, float(len(query))),) for query in queries]

    def has_words(self, query: str) -> bool:
        return True

    def document(self, row: int) -> bytes:
        return b"{}"


async def test_retrieve_asks_a_backend_for_batches_of_new_queries() -> None:
    index = SlowIndex()
    async with TestClient(TestServer(RetrieverServer(index, Path("c"), "dense").application())) as client:
        first = await retrieve(client, queries=["aa", "b", "aa", "cccc"], return_scores=True)
        await retrieve(client, queries=["b", "dd"])
        await retrieve(client, queries=["b"], topk=1)
    assert [found[0]["score"] for found in first["result"]] == [2, 1, 2, 4]
    assert index.asked == [["aa", "b"], ["cccc"], ["dd"], ["b"]]
