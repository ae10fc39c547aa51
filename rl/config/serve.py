"""The section of `rl serve`."""

from __future__ import annotations

from dataclasses import field
from typing import Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from rl.config.kinds import CHECKED, Count, Section, StepsOrZero


@dataclass(config=CHECKED)
class ServeConfig(Section):
    """The service that trains on the rollouts of agents that live elsewhere. Read by `rl serve` alone."""

    host: str = "127.0.0.1"
    """Address to listen on. Another than the loopback interface needs the environment variable TURNWISE_API_KEY, which
    clients send as Bearer token."""
    port: int = Field(default=7453, ge=0, le=65535)
    """Port to listen on; 0 takes any free one."""
    allowed_hosts: list[str] = field(default_factory=list)
    """Further names under which clients reach the service, such as that of a reverse proxy. Addresses, `localhost` and
    this machine's name always work."""
    max_open_rollouts: Count = 10_000
    """Rollouts that may be open at once. Clients that ask for more get status 429 and the time to wait."""
    max_staleness: StepsOrZero = 1
    """Steps by which the weights that sampled a group's oldest token may lag behind those that are trained. Older
    groups are dropped and counted. With 0, requests wait while the weights are updated."""
    batch_trigger: Literal["size", "client"] = "size"
    """What begins an update: `size`, when `global_batch_size` groups are scored; `client`, when a client closes the
    batch."""
