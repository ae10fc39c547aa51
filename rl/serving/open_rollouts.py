"""The rollouts that are open, and which of them a request belongs to."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from rl.rollout.rollout_function import Policy
from rl.serving.errors import ApiError
from rl.types import Sampling

_MOST_ENDED = 100_000
"""Keys of ended rollouts that are remembered; the oldest are forgotten."""


@dataclass(slots=True)
class OpenRollout:
    """A rollout that takes requests."""

    key: str
    policy: Policy
    """Leads its conversations."""
    sampling: Sampling
    """For what a request leaves open."""
    running: set[asyncio.Task[Any]] = field(default_factory=set)
    """What is being sampled."""
    turns: dict[str, list[int]] = field(default_factory=dict)
    """Places of its turns among the episode's, by the completion's id."""


class OpenRollouts:
    """All rollouts that take requests, by their keys."""

    def __init__(self) -> None:
        self._open: dict[str, OpenRollout] = {}
        self._ended: dict[str, None] = {}

    def __contains__(self, key: str) -> bool:
        return key in self._open

    def add(self, rollout: OpenRollout) -> None:
        """Take requests of a rollout. Its key must be new."""
        assert rollout.key not in self._open, f"{rollout.key}: open already"
        self._open[rollout.key] = rollout

    def of(self, key: str) -> OpenRollout:
        """The rollout of a key.

        Raises:
            ApiError: It is not open.
        """
        if key not in self._open:
            raise not_found()
        return self._open[key]

    async def end(self, key: str) -> None:
        """Refuse further requests of a rollout, and end those that are under way."""
        running = self._open.pop(key).running
        self._ended[key] = None
        if len(self._ended) > _MOST_ENDED:
            del self._ended[next(iter(self._ended))]
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    def named_by(self, http: web.Request) -> str | None:
        """The key that a request's address, its header `X-Rollout-Id` or its API key names; None without any.

        An API key counts if it is that of a rollout; other servers' clients send any.

        Raises:
            ApiError: The rollout is not open.
        """
        key = http.match_info.get("key") or http.headers.get("X-Rollout-Id")
        if key is not None:
            return self.of(key).key
        sent = sent_key(http)
        if sent in self._ended:  # a late request must not be served outside of its rollout
            raise not_found()
        return sent if sent in self._open else None

    def named_in(self, body: Mapping[str, Any]) -> str | None:
        """The key that a body names as `metadata.rollout_id` or `user`; None without any.

        A `user` counts if it is that of a rollout; other servers' clients send any.

        Raises:
            ApiError: The rollout is not open.
        """
        metadata, user = body.get("metadata"), body.get("user")
        key = metadata.get("rollout_id") if isinstance(metadata, Mapping) else None
        if key is not None:
            return self.of(str(key)).key
        if not isinstance(user, str):
            return None
        if user in self._ended:
            raise not_found()
        return user if user in self._open else None


def sent_key(http: web.Request) -> str:
    """The API key of a request, as clients of OpenAI (`Authorization: Bearer`) and Anthropic (`X-Api-Key`) send it."""
    bearer = http.headers.get("Authorization", "").removeprefix("Bearer ").strip()
    return bearer or http.headers.get("X-Api-Key", "")


def not_found() -> ApiError:
    """The error of a rollout that is not open."""
    return ApiError(
        404,
        "rollout: unknown, or it has ended. Use the base_url and the api_key of a client that is still in use.",
        code="rollout_not_found",
    )
