"""The tool layer in the agent loop: the time of a rollout beyond its critical path, and the cost of a call.

The engine samples nothing. It returns a prepared turn at a known speed. Parser, renderer, agent loop and tool layer are
those of a run. The tool waits for a random time.
"""

from __future__ import annotations

import asyncio
import math
import random
import resource
import statistics
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import uvloop

from rl.config.load import load_config
from rl.config.schema import Config
from rl.rollout.agent_loop import AgentLoop
from rl.rollout.dialog import Dialog, load_dialog
from rl.rollout.garbage_collection import collect_seldom
from rl.tools.base import Tool, ToolConfig
from rl.tools.registry import Toolbox
from rl.types import FinishReason, Generation, Prompt, Sampling, ToolCall, Trajectory
from tools.bench.figures import Figure, write_json

_NUM_TRAJECTORIES, _NUM_CALLS = 256, 3
_SHORTEST_S, _LONGEST_S = 0.2, 5.0
_SECONDS_PER_TOKEN = 0.005
_ROUNDS = 3
_PATH_GOAL, _INSIDE_GOAL = 1.05, 10.0

_NUM_IN_FLIGHT, _CALLS_PER_S = 10_000, 500.0
_SECONDS_PER_STEP = 0.02
_SETTLE_S, _WINDOW_S = 5.0, 30.0
_CPU_GOAL, _MEMORY_GOAL_GB = 20.0, 2.0

_SAMPLING = Sampling(temperature=1.0, max_tokens=1024)
_PROMPT = [{"role": "user", "content": "What is the greatest common divisor of 4294967290 and 1234567890?"}]
_RESULT = "[2, 5, 2863311]\n10\n"


@dataclass(slots=True)
class _Draw:
    """Latencies of each trajectory's calls, seconds: `[trajectory][call]`."""

    latencies: list[list[float]]

    def of_call(self, trajectory_id: str, number: int) -> float:
        return self.latencies[int(trajectory_id.partition("/")[0])][number]


class _Waiting(Tool):
    """Waits for the drawn time in each call."""

    def __init__(self, config: ToolConfig, schema: dict[str, Any], draw: _Draw) -> None:
        super().__init__(config, schema)
        self._draw = draw
        self._num_calls: Counter[str] = Counter()
        self.num_answered = 0

    def _latency(self, trajectory_id: str) -> float:
        self._num_calls[trajectory_id] += 1
        return self._draw.of_call(trajectory_id, self._num_calls[trajectory_id] - 1)

    async def execute(self, state: str, arguments: dict[str, Any]) -> str:
        await asyncio.sleep(self._latency(state))
        self.num_answered += 1
        return _RESULT


class _WaitingInThread(_Waiting):
    """The same, as a plain function."""

    def execute(self, state: str, arguments: dict[str, Any]) -> str:  # type: ignore[override]
        time.sleep(self._latency(state))
        return _RESULT


class _KnownSpeed:
    """An engine that makes a call in every turn of a trajectory except the last.

    Like vLLM, it generates in steps of one token for every request, so requests that end in one step end together.
    """

    def __init__(self, dialog: Dialog, num_calls: int, seconds_per_token: float) -> None:
        call = dialog.parser.render(ToolCall("code_interpreter", {"code": "import math\nmath.gcd(4294967290, 10)"}))
        self.call, self.answer = (
            [*dialog.renderer.tokenizer.encode(text, add_special_tokens=False), min(dialog.renderer.end_of_turn_ids)]
            for text in (f"I compute it.\n{call}", "The answer is \\boxed{10}.")
        )
        self._num_calls, self._seconds_per_token = num_calls, seconds_per_token
        self._num_turns: Counter[str] = Counter()

    async def generate(self, token_ids: list[int], sampling: Sampling, *, session_id: str) -> Generation:
        said = self.call if self._num_turns[session_id] < self._num_calls else self.answer
        self._num_turns[session_id] += 1
        now = asyncio.get_running_loop().time()
        last_step = math.ceil(now / self._seconds_per_token) + len(said)
        await asyncio.sleep(last_step * self._seconds_per_token - now)
        return Generation(list(said), [-0.1] * len(said), FinishReason.STOP, 0)

    def path_s(self, latencies: list[float]) -> float:
        """Seconds of a trajectory that waits only for its own turns and calls."""
        return (len(latencies) * len(self.call) + len(self.answer)) * self._seconds_per_token + sum(latencies)


async def measure(config: Config) -> list[Figure]:
    """Time of a rollout relative to its critical path and to the sum of its calls; cost of many trajectories."""
    config.rl_config.multi_turn_enable, config.rl_config.max_tool_calls = True, 1_000
    config.rl_config.max_total_response_length = config.generate_config.max_model_len = 100_000
    config.rl_config.trajectory_timeout = 3600.0
    dialog = load_dialog(config, tool_overrides={"code_interpreter": {"sandbox_fusion_url": "http://127.0.0.1:9"}})
    figures = []
    for name, tool_class in {"async tool": _Waiting, "tool in threads": _WaitingInThread}.items():
        figures += await _critical_path(config, dialog, name, tool_class)
    return figures + await _many(config, dialog)


async def _critical_path(config: Config, dialog: Dialog, name: str, tool_class: type[_Waiting]) -> list[Figure]:
    ratios, inside, details = [], [], []
    for number in range(_ROUNDS):
        draw = _drawn(number, _NUM_TRAJECTORIES, _NUM_CALLS, _SHORTEST_S, _LONGEST_S)
        engine = _KnownSpeed(dialog, _NUM_CALLS, _SECONDS_PER_TOKEN)
        loop, _ = _loop(config, dialog, engine, tool_class, draw, num_workers=_NUM_TRAJECTORIES)
        start = time.perf_counter()
        trajectories = await asyncio.gather(*(_run(loop, i) for i in range(_NUM_TRAJECTORIES)))
        took = time.perf_counter() - start
        assert all(len(t.turns) == _NUM_CALLS + 1 for t in trajectories), "every trajectory has its turns"
        path = max(engine.path_s(latencies) for latencies in draw.latencies)
        ratios.append(took / path)
        inside.append(sum(map(sum, draw.latencies)) / took)
        details.append(f"{took:.2f} s, critical path {path:.2f} s")
    detail = f"{_NUM_TRAJECTORIES} trajectories, {_NUM_CALLS} calls each; {details[_ROUNDS // 2]}"
    return [
        Figure(f"rollout / critical path, {name}", statistics.median(ratios), "", _PATH_GOAL, False, detail),
        Figure(f"calls one by one in the loop / rollout, {name}", statistics.median(inside), "", _INSIDE_GOAL,
               detail="the sum of the calls' latencies over the measured time"),
    ]  # fmt: skip


async def _many(config: Config, dialog: Dialog) -> list[Figure]:
    """CPU and memory of this process with many trajectories, all waiting for calls."""
    mean_s = _NUM_IN_FLIGHT / _CALLS_PER_S
    num_calls = 2 + int((_SETTLE_S + _WINDOW_S + 60.0) / (mean_s / 2))
    draw = _drawn(0, _NUM_IN_FLIGHT, num_calls, mean_s / 2, 1.5 * mean_s)
    for latencies in draw.latencies:
        latencies[0] *= random.Random(latencies[0]).random()  # out of step from the start
    engine = _KnownSpeed(dialog, num_calls, _SECONDS_PER_STEP)
    loop, tool = _loop(config, dialog, engine, _Waiting, draw, num_workers=1)
    collect_seldom()  # as a rollout worker does
    running = [asyncio.ensure_future(_run(loop, i)) for i in range(_NUM_IN_FLIGHT)]
    while len(tool._num_calls) < _NUM_IN_FLIGHT:
        await asyncio.sleep(0.1)
    await asyncio.sleep(_SETTLE_S)
    before, calls, start = _cpu_s(), tool.num_answered, time.perf_counter()
    await asyncio.sleep(_WINDOW_S)
    took, cpu_s, num_done = time.perf_counter() - start, _cpu_s() - before, tool.num_answered - calls
    memory = psutil.Process().memory_info().rss / 1e9
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)
    share = 100 * cpu_s / took * _CALLS_PER_S / (num_done / took)
    detail = f"{num_done / took:.0f} calls/s, {1e6 * cpu_s / num_done:.0f} µs of CPU each"
    return [
        Figure(f"CPU at {_CALLS_PER_S:.0f} calls/s, {_NUM_IN_FLIGHT} trajectories", share, "% of a core", _CPU_GOAL,
               False, detail),
        Figure(f"memory with {_NUM_IN_FLIGHT} trajectories", memory, "GB", _MEMORY_GOAL_GB, False,
               "resident, the libraries of a rollout worker but vLLM included"),
    ]  # fmt: skip


def _drawn(seed: int, num_trajectories: int, num_calls: int, shortest: float, longest: float) -> _Draw:
    draw = random.Random(seed)
    return _Draw([[draw.uniform(shortest, longest) for _ in range(num_calls)] for _ in range(num_trajectories)])


def _loop(
    config: Config, dialog: Dialog, engine: _KnownSpeed, tool_class: type[_Waiting], draw: _Draw, *, num_workers: int
) -> tuple[AgentLoop, _Waiting]:
    assert dialog.toolbox is not None, "the configuration has tools"
    schema = dialog.toolbox.tools["code_interpreter"].schema
    tool = tool_class(ToolConfig(num_workers=num_workers, default_timeout=600.0), schema, draw)
    return AgentLoop(engine, dialog.renderer, Toolbox([tool]), dialog.parser, config), tool


async def _run(loop: AgentLoop, number: int) -> Trajectory:
    return await loop.run(Prompt(str(number), _PROMPT, "10", "bench"), 0, _SAMPLING)


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    name, output, *overrides = sys.argv[1:]
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:  # as in a Ray rollout worker
        write_json(runner.run(measure(load_config(name, overrides))), Path(output))
