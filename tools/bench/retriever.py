"""The retriever with 100,000 passages, or `documents=N`: time to build the index and to start, speed over HTTP."""

from __future__ import annotations

import asyncio
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path

import aiohttp

from rl.errors import TurnwiseError
from rl.services.embedded import EmbeddedRetriever
from tools.bench.figures import Figure, write_json

_USUAL_SIZE, _CONTENT_WORDS, _STOP_WORDS = 100_000, 60, 40  # 100 words, like Search-R1's passages
_NUM_QUERIES, _IN_FLIGHT, _ROUNDS = 1500, (8, 32), 3
_TOPK = 3
_LETTERS = ("bcdfglmnprst", "aeiou")


def measure(num_documents: int) -> list[Figure]:
    """Index a corpus of random words with natural frequencies, and query words of random documents.

    All queries differ, so none is in the cache. The client runs on the same machine. Building and starting have
    goals for the usual size only.
    """
    rng = random.Random(0)
    documents = _make_documents(rng, num_documents)
    num_queries = (_ROUNDS * (1 + len(_IN_FLIGHT)) + 1) * _NUM_QUERIES
    queries = [" ".join(rng.sample(rng.choice(documents).split()[:_CONTENT_WORDS], 5)) for _ in range(num_queries)]
    with tempfile.TemporaryDirectory(prefix="turnwise-retriever-") as folder:
        corpus = Path(folder) / "corpus.jsonl"
        rows = ({"id": str(n), "title": f"t{n}", "text": text} for n, text in enumerate(documents))
        corpus.write_text("".join(json.dumps(row) + "\n" for row in rows))
        index_s = _seconds(lambda: EmbeddedRetriever(corpus).close())
        start_s = statistics.median(_seconds(lambda: EmbeddedRetriever(corpus).close()) for _ in range(_ROUNDS))
        with EmbeddedRetriever(corpus) as retriever:
            alone, together = asyncio.run(_ask(retriever.url, queries))
    size = f"{num_documents} documents of {_CONTENT_WORDS + _STOP_WORDS} words"
    index_goal, start_goal = (15.0, 1.0) if num_documents == _USUAL_SIZE else (None, None)
    return [
        Figure("retriever, index built and first answer", index_s, "s", index_goal, at_least=False, detail=size),
        Figure("retriever, started again", start_s, "s", start_goal, at_least=False),
        Figure("retriever, one query over HTTP, p50", alone, "ms", 3.0, at_least=False, detail=f"top {_TOPK}"),
        *(Figure(f"retriever, {n} in flight", rate, "queries/s", 500.0) for n, rate in together.items()),
    ]


async def _ask(url: str, queries: list[str]) -> tuple[float, dict[int, float]]:
    """Milliseconds of a single query, and queries per second by number in flight; medians of the rounds."""
    remaining = iter(queries)
    async with aiohttp.ClientSession() as session:

        async def ask() -> float:
            body = {"queries": [next(remaining)], "topk": _TOPK, "return_scores": True}
            start = time.perf_counter()
            async with session.post(url, json=body) as response:
                answer = await response.json()
            assert len(answer["result"][0]) == _TOPK, answer
            return time.perf_counter() - start

        async def ask_often(times: int) -> None:
            for _ in range(times):
                await ask()

        await ask_often(_NUM_QUERIES)  # warms up
        alone: list[float] = []
        together: dict[int, list[float]] = {in_flight: [] for in_flight in _IN_FLIGHT}
        for _ in range(_ROUNDS):
            alone.append(statistics.median([await ask() for _ in range(_NUM_QUERIES)]))
            for in_flight, rates in together.items():
                share = _NUM_QUERIES // in_flight
                start = time.perf_counter()
                await asyncio.gather(*(ask_often(share) for _ in range(in_flight)))
                rates.append(share * in_flight / (time.perf_counter() - start))
    medians = {in_flight: statistics.median(rates) for in_flight, rates in together.items()}
    return 1000 * statistics.median(alone), medians


def _make_documents(rng: random.Random, number: int) -> list[str]:
    """Texts of words with Zipf's frequencies, followed by stop words."""
    consonants, vowels = _LETTERS
    syllables = [a + b for a in consonants for b in vowels]
    words = [f"{a}{b}{c}" for a in syllables for b in syllables for c in syllables]
    rng.shuffle(words)
    weights = list(accumulate(1 / rank for rank in range(25, len(words) + 25)))
    end = " the of" * (_STOP_WORDS // 2)
    return [" ".join(rng.choices(words, cum_weights=weights, k=_CONTENT_WORDS)) + end for _ in range(number)]


def _num_documents(arguments: list[str]) -> int:
    """The requested size. Arguments for other benchmarks are ignored."""
    given = dict(argument.split("=", 1) for argument in arguments)
    text = given.get("documents", str(_USUAL_SIZE))
    if not text.isdecimal() or int(text) < 1000:
        raise TurnwiseError(f"bench retriever: documents must be a number of at least 1000, got '{text}'. Change it.")
    return int(text)


def _seconds(action: Callable[[], None]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


if __name__ == "__main__":
    write_json(measure(_num_documents(sys.argv[3:])), Path(sys.argv[2]))
