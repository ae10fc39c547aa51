"""The retriever on 100,000 passages: building its index, starting again, and searching over HTTP."""

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

from rl.bench.figures import Figure, write_json
from rl.services.embedded import EmbeddedRetriever

_NUM_DOCUMENTS, _CONTENT_WORDS, _STOP_WORDS = 100_000, 60, 40  # a hundred words, as Search-R1's passages
_NUM_QUERIES, _IN_FLIGHT, _ROUNDS = 1500, 8, 3
_TOPK = 3
_LETTERS = ("bcdfglmnprst", "aeiou")


def measure() -> list[Figure]:
    """Index a corpus of made-up words with the frequencies of a language, and ask for words of random documents.

    No query is asked twice, so that none is answered from the cache. The client runs on the same machine.
    """
    rng = random.Random(0)
    documents = _make_documents(rng)
    num_queries = (_ROUNDS * 2 + 1) * _NUM_QUERIES
    queries = [" ".join(rng.sample(rng.choice(documents).split()[:_CONTENT_WORDS], 5)) for _ in range(num_queries)]
    with tempfile.TemporaryDirectory(prefix="turnwise-retriever-") as folder:
        corpus = Path(folder) / "corpus.jsonl"
        rows = ({"id": str(n), "title": f"t{n}", "text": text} for n, text in enumerate(documents))
        corpus.write_text("".join(json.dumps(row) + "\n" for row in rows))
        index_s = _seconds(lambda: EmbeddedRetriever(corpus).close())
        start_s = statistics.median(_seconds(lambda: EmbeddedRetriever(corpus).close()) for _ in range(_ROUNDS))
        with EmbeddedRetriever(corpus) as retriever:
            alone, together = asyncio.run(_ask(retriever.url, queries))
    size = f"{_NUM_DOCUMENTS} documents of {_CONTENT_WORDS + _STOP_WORDS} words"
    return [
        Figure("retriever, index built and first answer", index_s, "s", 15.0, at_least=False, detail=size),
        Figure("retriever, started again", start_s, "s", 1.0, at_least=False),
        Figure("retriever, one query over HTTP, p50", alone, "ms", 3.0, at_least=False, detail=f"top {_TOPK}"),
        Figure(f"retriever, {_IN_FLIGHT} in flight", together, "queries/s", 500.0),
    ]


async def _ask(url: str, queries: list[str]) -> tuple[float, float]:
    """Time of a query alone, ms, and queries per second with `_IN_FLIGHT` at a time; medians of the rounds."""
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
        alone, together = [], []
        for _ in range(_ROUNDS):
            alone.append(statistics.median([await ask() for _ in range(_NUM_QUERIES)]))
            share = _NUM_QUERIES // _IN_FLIGHT
            start = time.perf_counter()
            await asyncio.gather(*(ask_often(share) for _ in range(_IN_FLIGHT)))
            together.append(share * _IN_FLIGHT / (time.perf_counter() - start))
    return 1000 * statistics.median(alone), statistics.median(together)


def _make_documents(rng: random.Random) -> list[str]:
    """Texts of words whose frequencies fall with their rank (Zipf's law), and stop words."""
    consonants, vowels = _LETTERS
    syllables = [a + b for a in consonants for b in vowels]
    words = [f"{a}{b}{c}" for a in syllables for b in syllables for c in syllables]
    rng.shuffle(words)
    weights = list(accumulate(1 / rank for rank in range(25, len(words) + 25)))
    end = " the of" * (_STOP_WORDS // 2)
    return [" ".join(rng.choices(words, cum_weights=weights, k=_CONTENT_WORDS)) + end for _ in range(_NUM_DOCUMENTS)]


def _seconds(action: Callable[[], None]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


if __name__ == "__main__":
    write_json(measure(), Path(sys.argv[2]))
