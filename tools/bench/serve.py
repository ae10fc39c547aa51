"""The service against vLLM's own server on the same requests, and the memory of many open rollouts."""

from __future__ import annotations

import asyncio
import itertools
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import psutil

from rl.cluster.nodes import machines
from rl.cluster.placement import place
from rl.cluster.serve_launch import ServiceHandle, launch_service
from rl.config.load import load_config
from rl.config.schema import Config
from tools.bench.figures import Figure, median_ratio, write_json
from tools.bench.vllm_server import MODEL, vllm_server

_NUM_CLIENTS, _ROUNDS, _NUM_REQUESTS, _MAX_TOKENS = 64, 5, 3, 64
_SPEED_GOAL, _MEMORY_GOAL_GB = 0.9, 2.0
_NUM_ROLLOUTS, _GROUP_SIZE, _SHORT = 10_000, 8, 2
_TIMEOUT_S = 600.0
_SETTINGS = (
    "serve_config.port=0",
    "serve_config.max_open_rollouts=20000",
    "rl_config.trajectory_timeout=3000",
    "rl_config.prompt_type=empty",  # as short as the model's own template, which vLLM's server uses
)


@dataclass(slots=True, frozen=True)
class _Target:
    """A model behind an address."""

    base_url: str
    model: str


def measure(config: Config, num_rollouts: int) -> list[Figure]:
    """Serve the model twice, with engines that take turns, and ask both the same.

    The service keeps its ledger: each of its clients is a rollout, and gets a new one for each round. This
    process is the driver of the training, so no actor is loaded.

    Args:
        config: A service's.
        num_rollouts: To open, with a short answer each, for the memory.
    """
    with (
        tempfile.TemporaryDirectory(prefix="turnwise-bench-") as name,
        launch_service(config, log_directory=Path(name) / "logs", begins=True) as service,
    ):
        folder = Path(name)
        layout = place(config, cores=machines()[0].cores, on_cuda=False, with_reference=False)
        front = service.front
        front.use(config, folder, 0, set())
        front.begin_sampling(0, [])
        cores, niceness = layout.rollouts[0].cores, _service_process().nice()  # Ray's workers are niced
        server = vllm_server(config, port=_free_port(), cores=cores, folder=folder, niceness=niceness)
        with server as (address, process):
            speed = _compare(service, address, process)
        return [*speed, *_memory(service, num_rollouts)]


def _compare(service: ServiceHandle, other: str, server: psutil.Process) -> list[Figure]:
    targets = [_Target(f"{other}/v1", MODEL)] * _NUM_CLIENTS
    speeds: dict[str, list[float]] = {"service": [], "vLLM": []}
    cpu: dict[str, list[float]] = {"service": [], "vLLM": []}

    def of_service(number: int) -> float:
        return of("service", lambda: _speed_of_service(service.address, number))

    def of_vllm(number: int) -> float:
        return of("vLLM", lambda: _speed(targets, number))

    def of(name: str, ask: Callable[[], Coroutine[Any, Any, tuple[int, float]]]) -> float:
        before = _cpu_seconds(server)
        tokens, seconds = asyncio.run(ask())
        after = _cpu_seconds(server)
        cpu[name].append((after[name] - before[name]) / tokens * 1e3)
        speeds[name].append(tokens / seconds)
        return speeds[name][-1]

    of_service(-1), of_vllm(-1)  # warms up: the first round of a batch's size is slower
    ratio, ours, theirs = median_ratio(of_service, of_vllm, _ROUNDS)
    rounds = ", ".join(f"{a:.0f}/{b:.0f}" for a, b in zip(*speeds.values(), strict=True))
    detail = (
        f"{ours:.0f} against {theirs:.0f} tokens/s (rounds, with the first that warms up: {rounds}); {_NUM_CLIENTS} "
        f"clients, {_NUM_CLIENTS * _NUM_REQUESTS} requests of at most {_MAX_TOKENS} tokens a round"
    )
    costs = {name: statistics.median(values[1:]) for name, values in cpu.items()}
    return [
        Figure("service / vLLM's server", ratio, "", _SPEED_GOAL, detail=detail),
        Figure(
            "CPU time a token, vLLM's server / service",
            costs["vLLM"] / costs["service"],
            "",
            _SPEED_GOAL,
            detail=f"{costs['vLLM']:.2f} ms against {costs['service']:.2f} ms, engines included",
        ),
        Figure("service", ours, "tokens/s"),
    ]


def _cpu_seconds(server: psutil.Process) -> dict[str, float]:
    """CPU time of the processes of vLLM's server, and of all others that this one has started."""
    of_server = {server.pid, *(one.pid for one in server.children(recursive=True))}
    times = {"service": 0.0, "vLLM": 0.0}
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            spent = process.cpu_times()
            times["vLLM" if process.pid in of_server else "service"] += spent.user + spent.system
    return times


async def _speed_of_service(address: str, number: int) -> tuple[int, float]:
    async with _session() as session:
        rollouts = await _open(session, address, _NUM_CLIENTS)
        measured = await _speed([_Target(one["base_url"], one["model"]) for one in rollouts], number)
        for one in rollouts:
            await _post(session, f"{address}/rollouts/{one['id']}/abort", {})
    return measured


async def _speed(targets: list[_Target], number: int) -> tuple[int, float]:
    """Sampled tokens and seconds of clients that ask at once, each one request after the other."""
    async with _session() as session:

        async def lead(client: int, target: _Target) -> int:
            found = 0
            for request in range(_NUM_REQUESTS):
                found += await _ask(session, target, f"{number}.{client}.{request}", _MAX_TOKENS)
            return found

        start = time.perf_counter()
        tokens = await asyncio.gather(*(lead(i, target) for i, target in enumerate(targets)))
        seconds = time.perf_counter() - start
    return sum(tokens), seconds


def _memory(service: ServiceHandle, num_rollouts: int) -> list[Figure]:
    """Memory of the service's process with rollouts that have an answer and no reward."""
    process = _service_process()
    before = process.memory_info().rss
    seconds = asyncio.run(_open_and_ask(service.address, num_rollouts))
    rss = process.memory_info().rss
    detail = (
        f"{before / 1e9:.2f} GB before; {(rss - before) / num_rollouts / 1e3:.0f} kB a rollout; opened and asked in "
        f"{seconds:.0f} s"
    )
    return [Figure(f"{num_rollouts} open rollouts", rss / 1e9, "GB", _MEMORY_GOAL_GB, at_least=False, detail=detail)]


async def _open_and_ask(address: str, num_rollouts: int) -> float:
    start = time.perf_counter()
    async with _session() as session:
        rollouts = await _open(session, address, num_rollouts)
        targets = [_Target(one["base_url"], one["model"]) for one in rollouts]
        numbers = itertools.count()
        await _at_once(_ask(session, target, f"{next(numbers)}", _SHORT) for target in targets)
        async with session.get(f"{address}/v1/status") as answer:
            status = await answer.json()
    assert status["open_rollouts"] == num_rollouts, status
    return time.perf_counter() - start


async def _open(session: aiohttp.ClientSession, address: str, num_rollouts: int) -> list[dict[str, str]]:
    """Open rollouts in groups."""
    found: list[dict[str, str]] = []
    while len(found) < num_rollouts:
        n = min(_GROUP_SIZE, num_rollouts - len(found))
        group = await _post(session, f"{address}/v1/groups", {"prompt": "Tell me a story.", "n": n})
        found += group["rollouts"]
    return found


async def _ask(session: aiohttp.ClientSession, target: _Target, topic: str, max_tokens: int) -> int:
    """Tokens that were sampled."""
    text = f"Write a very long story of at least a thousand words about the number {topic} and its long journey."
    body = {
        "model": target.model,
        "messages": [{"role": "user", "content": text}],
        "max_tokens": max_tokens,
        "temperature": 1.0,
    }
    answer = await _post(session, f"{target.base_url}/chat/completions", body)
    return int(answer["usage"]["completion_tokens"])


async def _post(session: aiohttp.ClientSession, url: str, body: dict[str, Any]) -> dict[str, Any]:
    async with session.post(url, json=body) as answer:
        found: dict[str, Any] = await answer.json()
        assert answer.status == 200, found
        return found


async def _at_once(calls: Iterable[Coroutine[Any, Any, Any]]) -> None:
    remaining = iter(calls)

    async def work() -> None:
        for call in remaining:
            await call

    await asyncio.gather(*(work() for _ in range(_NUM_CLIENTS)))


def _session() -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=_TIMEOUT_S)
    )


def _service_process() -> psutil.Process:
    """The actor's process: Ray names it after its class."""
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # a zombie too
            if "ServingWorker" in "".join(process.cmdline()):
                return process
    raise AssertionError("the service runs in a process of its own")


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


if __name__ == "__main__":
    name, output, *given = sys.argv[1:]
    numbers = [one.partition("=")[2] for one in given if one.startswith("num_rollouts=")]
    overrides = [one for one in given if not one.startswith("num_rollouts=")]
    settings = load_config(name, [*_SETTINGS, *overrides])
    write_json(measure(settings, int(numbers[-1]) if numbers else _NUM_ROLLOUTS), Path(output))
