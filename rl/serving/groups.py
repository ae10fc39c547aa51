"""Groups that clients opened: each rollout is a trajectory whose agent is the client, until its reward or its end."""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import secrets
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from rl.chat.parsers import Parser
from rl.interfaces import Score
from rl.rewards.outcome import Outcome
from rl.rollout.agent_loop import AgentLoop
from rl.rollout.episode import Episode
from rl.rollout.group import run_group
from rl.rollout.rollout_function import Policy
from rl.rollout.tool_environment import ToolEnvironment
from rl.rollout.user_code import UserCode
from rl.serving.client import AgentClient
from rl.serving.endpoint import Endpoint
from rl.serving.errors import ApiError, bad_request
from rl.serving.group_requests import GroupRequest, RewardRequest
from rl.types import Group, Prompt, Sampling, Scores, StopReason, Trajectory

logger = logging.getLogger(__name__)

_MOST_ENDED = 100_000
"""Ended rollouts that are remembered, so that a reward that is sent again is recognized."""
_CLIENT = UserCode("rl serve", "the client of a rollout", lambda: None, {})


@dataclass(slots=True, eq=False)
class Rollout:
    """One rollout of a group."""

    id: str
    """Secret: who knows it may use it."""
    name: str
    """`<group>/<number>`."""
    group: ServedGroup
    outcome: asyncio.Future[Outcome | None]
    """What the client gives; an exception where it aborts."""
    opened: asyncio.Future[AgentClient]
    scored: asyncio.Future[float | None]
    policy: Policy | None = None
    ended_by: str | None = None
    """What ended it, as text that is the same for the same request."""


@dataclass(slots=True, eq=False)
class ServedGroup:
    """A group whose rollouts clients lead."""

    id: str
    number: int
    """In the order in which groups were opened, from 0."""
    rollouts: list[Rollout] = field(default_factory=list)
    done: asyncio.Task[None] | None = None
    """Ends when the group is acknowledged."""


class Groups:
    """The open groups (`rl.rollout.agent_loop.Agents`).

    Args:
        endpoint: Answers the requests of open rollouts.
        score: Scores a trajectory.
        on_group: Takes a finished group; what it does is done before the client's last answer.
        max_open: Rollouts that may be open.
        release: Called with a trajectory's id when it has ended.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        score: Score,
        on_group: Callable[[ServedGroup, Group], Awaitable[None]],
        max_open: int,
        release: Callable[[str], None],
    ) -> None:
        self._endpoint, self._score, self._on_group, self._max_open = endpoint, score, on_group, max_open
        self._release = release
        self._open: dict[str, Rollout] = {}
        self._by_name: dict[str, Rollout] = {}
        self._ended: OrderedDict[str, Rollout] = OrderedDict()
        self._numbers = itertools.count()
        self._names: set[str] = set()
        self.num_lost: dict[str, int] = {}
        """Rollouts without a score, by their stop reason."""
        self.on_failure: Callable[[str, Exception], None] = lambda name, error: None
        """Told of a group, by its name, that ended with an error of the service."""

    @property
    def num_open(self) -> int:
        """Rollouts that are open."""
        return len(self._open)

    def knows(self, key: str) -> bool:
        """Whether there is or was a rollout with this id."""
        return key in self._open or key in self._ended

    def go_on(self, number: int, names: set[str]) -> None:
        """Number the next group so, and refuse groups of these names: they were acknowledged before a restart."""
        self._numbers = itertools.count(number)
        self._names |= names

    async def open(self, request: GroupRequest, loop: AgentLoop, num_samples: int, sampling: Sampling) -> ServedGroup:
        """Open a group.

        Args:
            request: From the client.
            loop: Runs its trajectories; its agents are these groups.
            num_samples: Rollouts where the request leaves it open.
            sampling: Of the run.

        Raises:
            ApiError: Too many rollouts are open (429), or the name was used (409).
        """
        n = request.n or num_samples
        if self.num_open + n > self._max_open:
            raise ApiError(
                429,
                f"{self.num_open} rollouts are open, {n} more would exceed serve_config.max_open_rollouts "
                f"({self._max_open}). Wait, or end some.",
                code="too_many_rollouts",
            )
        if request.id is not None and request.id in self._names:
            raise ApiError(409, f"id: there was a group '{request.id}' already. Choose another name.", param="id")
        number = next(self._numbers)
        group = ServedGroup(request.id or f"group-{number:06d}", number)
        self._names.add(group.id)
        prompt = Prompt(group.id, request.all_messages, request.ground_truth, request.data_source, request.columns)
        self._add_rollouts(group, n)
        group.done = asyncio.create_task(self._run(group, loop, prompt, n, sampling))
        await asyncio.gather(*(rollout.opened for rollout in group.rollouts))
        return group

    def client_of(self, rollout: Rollout) -> AgentClient:
        """Address, key and model of an open rollout."""
        return rollout.opened.result()

    async def reward(self, key: str, request: RewardRequest) -> Rollout:
        """End a rollout with its reward, and wait until it is scored; for the last of a group, until it is journaled.

        Raises:
            ApiError: It is unknown (404), it ended in another way (409), or the reward is malformed (400).
        """
        what = json.dumps(["reward", request.reward, request.turn_scores, request.completions], sort_keys=True)
        rollout = self._find(key, what)
        if rollout.ended_by is None:
            policy = rollout.policy
            assert policy is not None, "an open rollout has a policy"
            self._end(rollout, what, request.outcome(policy.num_answered, self._endpoint.turns_of(key)))
        return await self._acknowledged(rollout)

    async def end(self, key: str) -> Rollout:
        """End a rollout without a reward: the reward functions score it. Otherwise as `reward`.

        Raises:
            ApiError: See `reward`.
        """
        rollout = self._find(key, "end")
        if rollout.ended_by is None:
            self._end(rollout, "end", None)
        return await self._acknowledged(rollout)

    async def abort(self, key: str, reason: str) -> Rollout:
        """Give a rollout up: it is not trained on, and counted. Otherwise as `reward`.

        Raises:
            ApiError: See `reward`.
        """
        rollout = self._find(key, "abort")
        if rollout.ended_by is None:
            rollout.ended_by = "abort"
            rollout.outcome.set_exception(_CLIENT.failure(f"aborted: {reason}"[:2000]))
        return await self._acknowledged(rollout)

    async def close(self, reason: str) -> None:
        """Abort what is open, because the training ended."""
        open_now = list(self._open.values())
        for rollout in open_now:
            if not rollout.outcome.done():
                rollout.ended_by = reason
                rollout.outcome.set_exception(_CLIENT.failure(reason))
        groups = {id(rollout.group): rollout.group for rollout in open_now}
        await asyncio.gather(*(g.done for g in groups.values() if g.done is not None), return_exceptions=True)

    async def run(self, episode: Episode, parser: Parser, tools: ToolEnvironment) -> StopReason:
        """Answer the client's requests until it ends the rollout; see `rl.serving.agents.Agents`.

        Raises:
            UserCodeError: The client aborted it.
            RolloutError: The engine died.
        """
        rollout = self._by_name[episode.id]
        policy = rollout.policy = Policy(episode, parser, tools)
        client = self._endpoint.open(policy, episode.sampling, key=rollout.id)
        rollout.opened.set_result(client)
        try:
            outcome = await rollout.outcome
        finally:
            rollout.ended_by = rollout.ended_by or "its deadline, rl_config.trajectory_timeout"
            self._close(rollout)
            await self._endpoint.end(rollout.id)
            self._release(episode.id)
        return policy.end(outcome, _CLIENT)

    def _add_rollouts(self, group: ServedGroup, n: int) -> None:
        new = asyncio.get_running_loop().create_future
        for number in range(n):
            name = f"{group.id}/{number}"
            rollout = Rollout(secrets.token_urlsafe(16), name, group, new(), new(), new())
            group.rollouts.append(rollout)
            self._open[rollout.id] = self._by_name[name] = rollout

    async def _run(self, group: ServedGroup, loop: AgentLoop, prompt: Prompt, n: int, sampling: Sampling) -> None:
        try:
            found = await run_group(loop, prompt, n, sampling, self._scored)
        except Exception as error:  # the service must go on, and clients must hear of it
            logger.exception("group %s failed", group.id)
            self.on_failure(group.id, error)
            for rollout in group.rollouts:
                self._close(rollout)
                if not rollout.opened.done():
                    rollout.opened.set_exception(ApiError(500, f"{type(error).__name__}: {error}"[:2000]))
            raise
        for trajectory in found.trajectories:
            if trajectory.score is None:
                name = str(trajectory.stop_reason)
                self.num_lost[name] = self.num_lost.get(name, 0) + 1
        await self._on_group(group, found)

    async def _scored(self, trajectory: Trajectory) -> Scores:
        scores = await self._score(trajectory)
        rollout = self._by_name.get(trajectory.id)
        if rollout is not None and not rollout.scored.done():
            rollout.scored.set_result(scores.score)
        return scores

    def _find(self, key: str, what: str) -> Rollout:
        rollout = self._open.get(key) or self._ended.get(key)
        if rollout is None:
            raise ApiError(
                404,
                "rollout: unknown here. Its id is wrong, or the service was started again meanwhile; open a new group.",
                code="rollout_not_found",
            )
        if rollout.ended_by not in (None, what):
            raise ApiError(
                409, f"rollout {rollout.name}: it has ended already, by {rollout.ended_by:.200}.", code="rollout_ended"
            )
        return rollout

    def _end(self, rollout: Rollout, what: str, outcome: Outcome | None) -> None:
        if rollout.outcome.done():
            raise bad_request("rollout", "it has ended already.")
        rollout.ended_by = what
        rollout.outcome.set_result(outcome)

    def _close(self, rollout: Rollout) -> None:
        """Count a rollout as ended, and remember it."""
        if self._open.pop(rollout.id, None) is not None:
            self._ended[rollout.id] = rollout
            if len(self._ended) > _MOST_ENDED:
                _, forgotten = self._ended.popitem(last=False)
                self._by_name.pop(forgotten.name, None)
            rollout.policy = None

    async def _acknowledged(self, rollout: Rollout) -> Rollout:
        group = rollout.group
        assert group.done is not None, "an open group runs"
        waits: set[asyncio.Future[Any]] = {group.done}
        if any(other.ended_by is None for other in group.rollouts) and rollout.ended_by != "abort":
            waits.add(rollout.scored)
        elif any(other.ended_by is None for other in group.rollouts):
            return rollout
        done, _ = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        if group.done in done:
            group.done.result()
        return rollout
