"""Groups that clients opened: each rollout is a trajectory whose agent is the client, until its reward or its end."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import re
import secrets
from collections import OrderedDict
from collections.abc import Callable
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
from rl.rollout.user_code import UserCode, UserCodeError
from rl.serving.client import AgentClient
from rl.serving.endpoint import Endpoint
from rl.serving.errors import ApiError, bad_request
from rl.serving.group_requests import GroupRequest, RewardRequest
from rl.serving.training import Training, resolve
from rl.types import INFRASTRUCTURE_FAILURES, Group, Prompt, Sampling, Scores, StopReason, Trajectory

logger = logging.getLogger(__name__)

_MOST_ENDED = 100_000
"""Ended rollouts that are remembered, so that a reward that is sent again is recognized."""
_END_TIMEOUT_S = 30.0
_DEADLINE = "its deadline, rl_config.trajectory_timeout"
_OWN_NAME = re.compile(r"group-\d+")
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
    settled: asyncio.Future[float | None]
    """Its score; None without one."""
    policy: Policy | None = None
    """While it is open."""
    ended_by: str | None = None
    """What ended it, in words."""
    request: str | None = None
    """Tells the request that ended it from others."""


@dataclass(slots=True, eq=False)
class ServedGroup:
    """A group whose rollouts clients lead."""

    id: str
    number: int
    """In the order in which groups of the training were opened, from 0."""
    training: Training
    rollouts: list[Rollout] = field(default_factory=list)
    done: asyncio.Task[None] | None = None
    """Ends when all are scored."""
    found: Group | None = None
    """The scored group, until it is kept."""
    is_kept: bool = False
    """It is journaled and handed to the training."""
    keeping: asyncio.Lock = field(default_factory=asyncio.Lock)


class Groups:
    """The open groups (`rl.rollout.agent_loop.Agents`).

    Args:
        endpoint: Answers the requests of open rollouts.
        score: Scores a trajectory.
        max_open: Rollouts that may be open.
        release: Called with a trajectory's id when it has ended.
    """

    def __init__(self, endpoint: Endpoint, score: Score, max_open: int, release: Callable[[str], None]) -> None:
        self._endpoint, self._score, self._max_open, self._release = endpoint, score, max_open, release
        self._open: dict[str, Rollout] = {}
        self._by_name: dict[str, Rollout] = {}
        self._ended: OrderedDict[str, Rollout] = OrderedDict()
        self._running: set[asyncio.Task[None]] = set()
        self._names: set[str] = set()
        self.num_lost: dict[str, int] = {}
        """Rollouts without a score, by their stop reason."""
        self.on_failure: Callable[[str, Exception], None] = lambda name, error: None
        """Told of a group, by its name, that ended with an error of the service."""
        self.on_kept: Callable[[], None] = lambda: None
        """Told when a group has been handed to the training."""

    @property
    def num_open(self) -> int:
        """Rollouts that are open."""
        return len(self._open)

    def knows(self, key: str) -> bool:
        """Whether there is or was a rollout with this id."""
        return key in self._open or key in self._ended

    def begin(self, names: set[str]) -> None:
        """Begin a training.

        Args:
            names: Names of groups that were acknowledged before a restart; they are not taken again.
        """
        self._names = set(names)

    async def open(
        self, request: GroupRequest, loop: AgentLoop, num_samples: int, sampling: Sampling, training: Training
    ) -> ServedGroup:
        """Open a group.

        Args:
            request: From the client.
            loop: Runs its trajectories; its agents are these groups.
            num_samples: Rollouts where the request leaves it open.
            sampling: The run's.
            training: Takes the group.

        Raises:
            ApiError: Too many rollouts are open (429), the name was used (409), or it is wrong (400).
        """
        n = request.n or num_samples
        self._check_room(n)
        if request.id is not None and _OWN_NAME.fullmatch(request.id):
            raise bad_request("id", f"'{request.id}' is a name that the service gives. Choose another.")
        if request.id in self._names:
            raise ApiError(409, f"id: there was a group '{request.id}' already. Choose another name.", param="id")
        number = training.next_number()
        group = ServedGroup(request.id or f"group-{number:06d}", number, training)
        if request.id is not None:
            self._names.add(request.id)
        prompt = Prompt(group.id, request.all_messages, request.ground_truth, request.data_source, request.columns)
        self._add_rollouts(group, n)
        group.done = task = asyncio.create_task(self._run(group, loop, prompt, n, sampling))
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        try:
            await asyncio.gather(*(asyncio.shield(rollout.opened) for rollout in group.rollouts))
        except asyncio.CancelledError:  # the client left before it knew of them
            for rollout in group.rollouts:
                self._give_up(rollout, "aborted: its client left")
            raise
        return group

    def client_of(self, rollout: Rollout) -> AgentClient:
        """Address, key and model of an open rollout."""
        return rollout.opened.result()

    async def reward(self, key: str, request: RewardRequest) -> Rollout:
        """End a rollout with its reward, and wait until it is scored; for the last of a group, until it is journaled.

        Raises:
            ApiError: It is unknown (404), it ended in another way (409), the reward is malformed (400), or the journal
                cannot be written (503).
        """
        what = json.dumps([request.reward, request.turn_scores, request.completions], sort_keys=True)
        rollout = self._find(key)
        asked = f"reward {hashlib.blake2b(what.encode(), digest_size=16).hexdigest()}"
        if self._is_first(rollout, asked):
            assert rollout.policy is not None, "an open rollout has a policy"
            outcome = request.outcome(rollout.policy.num_answered, self._endpoint.turns_of(key))
            rollout.ended_by, rollout.request = "its reward", asked
            rollout.outcome.set_result(outcome)
        return await self._acknowledged(rollout)

    async def end(self, key: str) -> Rollout:
        """End a rollout without a reward: the reward functions score it. Otherwise as `reward`.

        Raises:
            ApiError: See `reward`.
        """
        rollout = self._find(key)
        if self._is_first(rollout, "end"):
            rollout.ended_by, rollout.request = "its end", "end"
            rollout.outcome.set_result(None)
        return await self._acknowledged(rollout)

    async def abort(self, key: str, reason: str) -> Rollout:
        """Give a rollout up: it is not trained on, and counted. Otherwise as `reward`.

        Raises:
            ApiError: See `reward`.
        """
        rollout = self._find(key)
        if self._is_first(rollout, "abort"):
            rollout.request = "abort"
            self._give_up(rollout, f"aborted: {reason}"[:2000])
        return await self._acknowledged(rollout)

    async def close(self, reason: str) -> None:
        """Give up what is open, because the training ended, and wait for what is being scored."""
        for rollout in list(self._open.values()):
            self._give_up(rollout, reason)
        if self._running:
            await asyncio.wait(self._running, timeout=_END_TIMEOUT_S)

    async def run(self, episode: Episode, parser: Parser, tools: ToolEnvironment) -> StopReason:
        """Answer the client's requests until it ends the rollout; see `rl.serving.agents.Agents`.

        Raises:
            UserCodeError: The client aborted it.
            RolloutError: The engine died.
        """
        rollout = self._by_name[episode.id]
        policy = rollout.policy = Policy(episode, parser, tools)
        try:
            resolve(rollout.opened, self._endpoint.open(policy, episode.sampling, key=rollout.id))
            outcome = await rollout.outcome
        finally:
            rollout.ended_by = rollout.ended_by or _DEADLINE
            self._close(rollout)
            await self._end_requests(rollout)
            self._release(episode.id)
        if outcome is not None and outcome.turn_scores:  # an answer may have come beside the reward
            outcome.turn_scores += [0.0] * (policy.num_answered - len(outcome.turn_scores))
        return policy.end(outcome, _CLIENT)

    async def _end_requests(self, rollout: Rollout) -> None:
        try:
            await self._endpoint.end(rollout.id)
        except asyncio.CancelledError:  # the deadline; a reward that was accepted counts
            if rollout.outcome.cancelled() or not rollout.outcome.done():
                raise

    def _check_room(self, n: int) -> None:
        if n > self._max_open:
            raise bad_request("n", f"must be at most serve_config.max_open_rollouts, {self._max_open}, got {n}.")
        if self.num_open + n > self._max_open:
            raise ApiError(
                429,
                f"{self.num_open} rollouts are open, {n} more would exceed serve_config.max_open_rollouts "
                f"({self._max_open}). Wait, or end some.",
                code="too_many_rollouts",
            )

    def _add_rollouts(self, group: ServedGroup, n: int) -> None:
        new = asyncio.get_running_loop().create_future
        for number in range(n):
            name = f"{group.id}/{number}"
            rollout = Rollout(secrets.token_urlsafe(16), name, group, new(), new(), new())
            group.rollouts.append(rollout)
            self._open[rollout.id] = self._by_name[name] = rollout

    async def _run(self, group: ServedGroup, loop: AgentLoop, prompt: Prompt, n: int, sampling: Sampling) -> None:
        try:
            group.found = await run_group(_Members(loop, self._settle), prompt, n, sampling, self._scored)
        except Exception as error:  # scoring failed: so would that of every other group
            problem = _cause_of(error)
            logger.error("group %s failed", group.id, exc_info=problem)
            self.on_failure(group.id, problem)
            for rollout in group.rollouts:
                if rollout.ended_by in (None, _DEADLINE):  # it was cancelled with the others
                    rollout.ended_by = "an error of the service"
                self._close(rollout)
                self._settle(rollout.name, None)
            text = f"{type(problem).__name__}: {problem}"[:2000]
            group.training.break_off(text)
            raise ApiError(500, text, code="training_failed") from None
        for trajectory in group.found.trajectories:
            if trajectory.score is None:
                name = str(trajectory.stop_reason)
                self.num_lost[name] = self.num_lost.get(name, 0) + 1
        try:
            await self._keep(group)
        except ApiError as error:  # a reward that is sent again tries again
            self.on_failure(group.id, error)

    async def _keep(self, group: ServedGroup) -> None:
        async with group.keeping:
            if group.is_kept:
                return
            assert group.found is not None, "it is scored"
            await group.training.keep(group.number, group.found)
            group.is_kept, group.found = True, None
            self.on_kept()

    async def _scored(self, trajectory: Trajectory) -> Scores:
        scores = await self._score(trajectory)
        self._settle(trajectory.id, scores.score)
        return scores

    def _settle(self, name: str, score: float | None) -> None:
        if (rollout := self._by_name.get(name)) is not None:
            resolve(rollout.settled, score)

    def _find(self, key: str) -> Rollout:
        rollout = self._open.get(key) or self._ended.get(key)
        if rollout is None:
            raise ApiError(
                404,
                "rollout: unknown here. Its id is wrong, or the service was started again meanwhile; open a new group.",
                code="rollout_not_found",
            )
        return rollout

    def _is_first(self, rollout: Rollout, asked: str) -> bool:
        """Whether a request is to end the rollout; False: the same one did.

        Raises:
            ApiError: It ended in another way (409).
        """
        if rollout.request == asked:
            return False
        if rollout.ended_by is None and not rollout.outcome.done():
            return True
        ended_by = rollout.ended_by or _DEADLINE
        raise ApiError(409, f"rollout {rollout.name}: it has ended already, by {ended_by}.", code="rollout_ended")

    def _give_up(self, rollout: Rollout, reason: str) -> None:
        if not rollout.outcome.done():
            rollout.ended_by = reason
            rollout.outcome.set_exception(UserCodeError(f"the client of a rollout: {reason}"))
            rollout.outcome.exception()  # its trajectory may have ended meanwhile

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
        ends: set[asyncio.Future[Any]] = {rollout.settled, group.done}
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        if all(other.ended_by is not None for other in group.rollouts):
            await asyncio.shield(group.done)
            await self._keep(group)
        return rollout


@dataclass(slots=True, frozen=True)
class _Members:
    """Runs the trajectories of a group, and settles those that will not be scored."""

    loop: AgentLoop
    settle: Callable[[str, float | None], None]

    async def run(self, prompt: Prompt, sample_index: int, sampling: Sampling) -> Trajectory:
        trajectory = await self.loop.run(prompt, sample_index, sampling)
        if trajectory.stop_reason in INFRASTRUCTURE_FAILURES:
            self.settle(trajectory.id, None)
        return trajectory


def _cause_of(error: Exception) -> Exception:
    """The first error in a group of them."""
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    return error
