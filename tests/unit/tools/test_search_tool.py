from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from rl.errors import ToolError
from rl.services.retriever.index import open_index
from rl.services.retriever.server import RetrieverServer
from rl.tools.registry import Toolbox, load_toolbox
from rl.tools.search_tool import first_paragraphs, format_documents
from rl.types import ToolCall, ToolResult, ToolStatus

SHIPPED = Path(__file__).resolve().parents[3] / "configs/tools/search_tool_config.yaml"
CITIES = ['"Rome"\nThe capital of Italy.', '"Paris"\nThe capital of France.', "Milan\nA city in Italy."]

MINDSPEED = """
tools:
  - class_name: rl.tools.search_tool.SearchTool
    config: {retrieval_service_url: URL, num_workers: 120, enable_global_rate_limit: true, rate_limit: 120, timeout: 30,
             topk: 3, type: native}
    tool_schema:
      type: function
      function:
        name: search
        description: Searches.
        parameters:
          type: object
          properties:
            query_list: {type: array, item: {type: string}, description: Queries.}
          required: [query_list]
"""


def toolbox(url: str, **settings: Any) -> Toolbox:
    return load_toolbox(SHIPPED, overrides={"search": {"retrieval_service_url": url, **settings}})


async def search(tools: Toolbox, **arguments: Any) -> ToolResult:
    session = tools.open_session("train-1/0")
    try:
        return await session.execute(ToolCall("search", arguments))
    finally:
        await session.close()
        await tools.close()


@pytest.fixture
async def url(tmp_path: Path) -> AsyncIterator[str]:
    corpus = tmp_path / "cities.jsonl"
    corpus.write_text("".join(json.dumps({"id": str(i), "contents": text}) + "\n" for i, text in enumerate(CITIES)))
    async with TestServer(RetrieverServer(open_index(corpus), corpus, "bm25s").application()) as server:
        yield str(server.make_url("/retrieve"))


async def serve(handle: Any) -> TestServer:
    application = web.Application()
    application.router.add_post("/retrieve", handle)
    server = TestServer(application)
    await server.start_server()
    return server


async def test_search_shows_titles_and_texts(url: str) -> None:
    result = await search(toolbox(url, topk=2), query_list=["Italy"])
    assert (result.status, result.metrics) == (ToolStatus.OK, {"num_documents": 2.0})
    assert result.text == "Doc 1 (Title: Rome)\nThe capital of Italy.\n\nDoc 2 (Title: Milan)\nA city in Italy."


async def test_search_answers_every_query_of_the_list(url: str) -> None:
    result = await search(toolbox(url, topk=1), query_list=["Paris", "zebra", "Milan"])
    paris, nothing, milan = result.text.split("\n---\n")
    assert paris == "Doc 1 (Title: Paris)\nThe capital of France."
    assert nothing == "No documents were found."
    assert milan == "Doc 1 (Title: Milan)\nA city in Italy."


async def test_search_checks_its_arguments(url: str) -> None:
    for arguments in ({}, {"query_list": "Rome"}, {"query_list": [1]}):
        assert (await search(toolbox(url), **arguments)).status is ToolStatus.INVALID_ARGUMENTS


async def test_search_tries_again_while_the_retriever_fails() -> None:
    answers = [
        web.Response(status=503),
        web.Response(status=429),
        web.json_response({"results": []}),
        web.json_response([]),
        web.Response(),
    ]

    async def handle(request: web.Request) -> web.Response:
        body = await request.json()
        assert body == {"queries": ["x"], "topk": 3, "return_scores": True}
        document = {"document": {"contents": "T\nfound"}, "score": 1.0}
        return answers.pop(0) if answers else web.json_response({"result": [[document]]})

    server = await serve(handle)
    result = await search(toolbox(str(server.make_url("/retrieve"))), query_list=["x"])
    assert (result.status, result.text) == (ToolStatus.OK, "Doc 1 (Title: T)\nfound")
    await server.close()


async def test_search_without_a_retriever_is_unavailable() -> None:
    for address in ("http://127.0.0.1:9/retrieve", "embedded"):
        result = await search(toolbox(address, timeout=0.2, queue_timeout=0.2), query_list=["x"])
        assert result.status is ToolStatus.UNAVAILABLE
        assert "retriev" in result.text


async def test_search_does_not_repeat_a_refused_request() -> None:
    async def handle(_: web.Request) -> web.Response:
        return web.json_response({"detail": "topk: too large"}, status=422)

    server = await serve(handle)
    result = await search(toolbox(str(server.make_url("/retrieve"))), query_list=["x"])
    assert (result.status, result.text) == (ToolStatus.ERROR, 'Error: {"detail": "topk: too large"}')
    await server.close()


async def test_check_finds_the_retriever_or_says_what_to_do(url: str, tmp_path: Path) -> None:
    await toolbox(url).check()
    await toolbox("embedded", corpus_path=str(tmp_path / "cities.jsonl")).check()
    with pytest.raises(ToolError, match=r"search.retrieval_service_url: .*python -m rl retriever"):
        await toolbox("http://127.0.0.1:9/retrieve", timeout=0.2).check()
    with pytest.raises(ToolError, match=r"search\.corpus_path: an embedded retriever needs a corpus, got 'none.jsonl'"):
        await toolbox("embedded", corpus_path="none.jsonl").check()
    with pytest.raises(ToolError, match=r"config\.topk: must be greater than or equal to 1, got 0"):
        toolbox(url, topk=0)
    with pytest.raises(ToolError, match=r"search\.corpus_path: only an embedded retriever reads it, got 'c\.jsonl'"):
        await toolbox(url, corpus_path="c.jsonl").check()


async def test_search_takes_the_settings_of_mindspeed_rl(url: str, tmp_path: Path) -> None:
    settings = tmp_path / "search_tool_config.yaml"
    settings.write_text(MINDSPEED.replace("URL", url))
    tools = load_toolbox(settings)
    assert tools.tools["search"].config.default_timeout == 30.0
    assert (await search(tools, query_list=[1])).status is ToolStatus.INVALID_ARGUMENTS  # `item` was read as `items`
    assert (await search(tools, query_list=["Paris"])).status is ToolStatus.OK


def test_format_documents_shows_a_document_without_text_by_its_title() -> None:
    assert format_documents(["Rome", "Paris\n\nA city.\n"]) == "Doc 1 (Title: Rome)\n\nDoc 2 (Title: Paris)\nA city."
    assert format_documents([]) == "No documents were found."


def test_first_paragraphs_leaves_out_the_title_and_the_rest() -> None:
    documents = ["Rome\nThe capital of Italy.\nIt has hills.", "Paris", "Milan\n\nA city.\n"]
    assert first_paragraphs(documents) == "The capital of Italy.\n\nParis\n\nA city."
    assert first_paragraphs([]) == "No documents were found."
