"""Rate limits of tools that several rollout workers share, in one small Ray actor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ray

from rl.config.schema import Config
from rl.tools.entries import read_entries
from rl.tools.limits import PermitPool


@ray.remote(num_cpus=0, max_concurrency=100_000, max_restarts=-1, max_task_retries=-1)
class RateLimits:
    """A `PermitPool` for each tool, made at its first request. After a restart all permits are free."""

    def __init__(self) -> None:
        self.pools: dict[str, PermitPool] = {}

    async def take(self, tool: str, limit: int, at_most: int, lease_s: float) -> list[int]:
        """See `rl.tools.limits.PermitPool.take`."""
        if tool not in self.pools:
            self.pools[tool] = PermitPool(limit)
        return await self.pools[tool].take(at_most, lease_s)

    async def give_back(self, tool: str, permits: list[int]) -> None:
        """See `rl.tools.limits.PermitPool.give_back`."""
        if tool in self.pools:
            self.pools[tool].give_back(permits)


class RemotePermits:
    """One tool's permits from a `RateLimits` actor, as `rl.tools.limits.PermitSource`.

    Args:
        actor: Handle of the `RateLimits` actor.
        tool: Name of the tool.
        limit: The tool's `rate_limit`.
    """

    def __init__(self, actor: Any, tool: str, limit: int) -> None:
        self._actor, self._tool, self._limit = actor, tool, limit

    async def take(self, at_most: int, lease_s: float) -> list[int]:
        """See `rl.tools.limits.PermitPool.take`."""
        permits: list[int] = await self._actor.take.remote(self._tool, self._limit, at_most, lease_s)
        return permits

    def give_back(self, permits: list[int]) -> None:
        """See `rl.tools.limits.PermitPool.give_back`."""
        self._actor.give_back.remote(self._tool, permits)


def start_rate_limits(config: Config, num_rollout_workers: int) -> Any | None:
    """Start the actor if there are several rollout workers and a tool has `enable_global_rate_limit`.

    Returns:
        Its handle, or None; each worker then applies the limits separately.
    """
    path = config.rl_config.tool_config_path
    if num_rollout_workers < 2 or not config.rl_config.multi_turn_enable or not path:
        return None
    is_limited = any(entry.settings.get("enable_global_rate_limit") for entry in read_entries(Path(path)))
    return RateLimits.remote() if is_limited else None  # type: ignore[attr-defined]
