"""Two processes that call one tool, under a limit they share through Ray."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import ray

from rl.cluster.rate_limits import RateLimits, RemotePermits, start_rate_limits
from rl.config.schema import Config
from rl.tools.base import Tool, ToolConfig
from rl.tools.registry import Toolbox
from rl.types import ToolCall

CONFIGS = Path(__file__).resolve().parents[2] / "configs/tools"


@pytest.fixture
def cluster() -> Iterator[None]:
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False)
    yield
    ray.shutdown()


class Sleeper(Tool):
    """Notes when its calls begin and end."""

    def __init__(self) -> None:
        super().__init__(
            ToolConfig(enable_global_rate_limit=True, rate_limit=2), {"function": {"name": "sleeper", "parameters": {}}}
        )
        self.times: list[tuple[float, int]] = []

    async def execute(self, state: Any, arguments: dict[str, Any]) -> str:
        self.times.append((time.monotonic(), 1))
        await asyncio.sleep(0.05)
        self.times.append((time.monotonic(), -1))
        return ""


@ray.remote(num_cpus=0)
class Caller:
    async def call(self, limits: Any, times: int) -> list[tuple[float, int]]:
        tool = Sleeper()
        toolbox = Toolbox([tool])
        toolbox.share_rate_limits(partial(RemotePermits, limits))
        session = toolbox.open_session("p/0")
        await asyncio.gather(*(session.execute(ToolCall("sleeper", {})) for _ in range(times)))
        return tool.times


def test_rollout_workers_share_a_limit(cluster: None) -> None:
    limits = RateLimits.remote()
    callers = [Caller.remote() for _ in range(2)]
    first, second = ray.get([caller.call.remote(limits, 8) for caller in callers], timeout=120)
    running = most = 0
    for _, change in sorted(first + second):
        running += change
        most = max(most, running)
    assert (len(first), len(second), running, most) == (16, 16, 0, 2)


@pytest.mark.parametrize(("num_workers", "tools"), [(1, "retool_config.yaml"), (2, "calculator.yaml")])
def test_rate_limits_are_not_started_without_need(num_workers: int, tools: str) -> None:
    config = Config()
    config.rl_config.multi_turn_enable = True
    config.rl_config.tool_config_path = str(CONFIGS / tools)
    assert start_rate_limits(config, num_workers) is None
