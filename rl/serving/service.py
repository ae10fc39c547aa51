"""The service: clients' rollouts on one side, the training loop on the other.

It lives on one event loop. The driver takes events in the order in which they happened, and tells it what the training
does. It needs no Ray: `rl.cluster.serving` wraps it.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import re
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from rl.config.schema import Config
from rl.errors import ConfigError, DataError, RolloutError, TurnwiseError
from rl.interfaces import Sampler, Score
from rl.observability.run_directory import RunDirectory
from rl.rollout.agent_loop import AgentLoop
from rl.rollout.dialog import Dialog
from rl.rollout.episode import Episode
from rl.rollout.rollout_function import Policy, Reply
from rl.rollout.tool_environment import ToolEnvironment
from rl.rollout.workers import training_sampling
from rl.serving.client import AgentClient
from rl.serving.dialogs import Dialogs
from rl.serving.endpoint import Endpoint
from rl.serving.errors import ApiError
from rl.serving.gate import Gate
from rl.serving.group_requests import GroupRequest
from rl.serving.groups import Groups, ServedGroup
from rl.serving.history import History
from rl.serving.job import JobRequest, JobState, JobStatus
from rl.serving.sample_request import SampleRequest
from rl.serving.training import Event, Training, resolve
from rl.types import Group, Prompt, Sampling, Trajectory

logger = logging.getLogger(__name__)

_RUNNING = (JobState.STARTING, JobState.SAMPLING, JobState.UPDATING)
_FILE_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}")
NATIVE = "groups"
"""Name of the training that the first group begins."""


class Service:
    """Serves the model, and collects groups for the training (`rl.serving.job.Trainer`).

    Args:
        config: The service's.
        engine: Samples.
        dialog: Tokenizer, template and parser.
        score: Scores a trajectory.
        model: The model's name in answers.
        release: Called with the id of a trajectory that asks the engine no more.
    """

    def __init__(
        self,
        config: Config,
        engine: Sampler,
        dialog: Dialog,
        score: Score,
        *,
        model: str,
        release: Callable[[str], None] = lambda session_id: None,
    ) -> None:
        self.config, self.model = config, model
        self.gate = Gate(engine)
        self._dialog, self._score, self._release = dialog, score, release
        self.endpoint = Endpoint(
            Dialogs(dialog.renderer.tokenizer, config.rl_config),
            model=model,
            max_model_len=config.generate_config.max_model_len,
            plain=self,
        )
        most = config.serve_config.max_open_rollouts
        self.groups = Groups(self.endpoint, score, most, release)
        self.on_plain: Callable[[SampleRequest, Sequence[Reply], Sequence[Policy]], None] | None = None
        """Takes completions outside of rollouts, before they are sent; for protocols that train on them."""
        self.protocol_metrics: Callable[[], dict[str, float]] = dict
        """Figures of a protocol about the batch that was closed last, under the names of their metrics."""
        self.history = History()
        self.batch: dict[str, int] = {}
        """How far the batch is that the training waits for."""
        self.groups.on_failure, self.groups.on_kept = self.history.group_failed, self.history.group_kept
        self._loop = self._new_loop(config)
        self._status = JobStatus()
        self._jobs: asyncio.Queue[JobRequest] = asyncio.Queue()
        self._training: Training | None = None
        self._plain_numbers = itertools.count()
        self._changed = asyncio.Condition()

    # What clients ask for

    @property
    def status(self) -> JobStatus:
        """See `rl.serving.job.Trainer`."""
        return self._status

    async def wait_for_step(self, step: int, timeout_s: float) -> JobStatus:
        """Wait until so many steps are completed and the weights published, or the training is over."""
        try:
            async with asyncio.timeout(timeout_s), self._changed:
                await self._changed.wait_for(
                    lambda: (
                        self._status.state in (JobState.ENDED, JobState.FAILED)
                        or (self._status.step >= step and self._status.state is not JobState.UPDATING)
                    )
                )
        except TimeoutError:
            pass
        return self._status

    async def open_group(self, request: GroupRequest) -> ServedGroup:
        """Open a group; the first begins the training.

        Raises:
            ApiError: The training has ended or failed, or belongs to another protocol; see `Groups.open`.
        """
        status = self._status
        if status.state is JobState.FAILED:
            raise ApiError(500, f"The training failed: {status.failure}", code="training_failed")
        if status.state is JobState.ENDED:
            raise ApiError(
                409, f"The training has ended after step {status.step}. The model stays served.", code="training_ended"
            )
        if self._training is not None and status.state in _RUNNING and not self._training.request.is_native:
            raise ApiError(409, f"The training '{status.name}' runs and takes its own groups.", code="other_training")
        if status.state is JobState.IDLE:
            self._ask_for(JobRequest(NATIVE, {}, is_native=True))
        training = self._training
        assert training is not None, "one was just asked for"
        await asyncio.shield(training.started)  # a rollout's deadline runs from its opening
        num_samples = self.config.rl_config.n_samples_per_prompt
        return await self.groups.open(request, self._loop, num_samples, self.sampling, training)

    async def begin(self, name: str, changes: Mapping[str, Any]) -> None:
        """See `rl.serving.job.Trainer`."""
        if self._status.state in _RUNNING:
            raise ConfigError(f"The training '{self._status.name}' runs. End it first.")
        if self._status.state is JobState.FAILED:
            raise ConfigError(f"The training failed: {self._status.failure}")
        training = self._ask_for(JobRequest(name, changes, is_native=False))
        await asyncio.shield(training.started)

    async def submit(self, group: list[Trajectory]) -> None:
        """See `rl.serving.job.Trainer`."""
        training = self._running()
        for trajectory in group:
            trajectory.take_scores(await self._score(trajectory))
        await training.keep(training.next_number(), Group(group[0].prompt, group))
        self.history.group_kept()

    async def close_batch(self) -> None:
        """See `rl.serving.job.Trainer`."""
        await self._running().close_batch()

    async def save(self, name: str) -> Path:
        """See `rl.serving.job.Trainer`."""
        training = self._running()
        if not _FILE_NAME.fullmatch(name):
            raise DataError(f"checkpoint: '{name:.80}' cannot name a folder. Use letters, digits, '-', '_' and '.'.")
        return await training.save(name)

    async def end(self) -> None:
        """See `rl.serving.job.Trainer`."""
        if self._training is not None and self._status.state in _RUNNING:
            await self._training.end()

    @property
    def sampling(self) -> Sampling:
        """How the training's rollouts are sampled."""
        return training_sampling(self.config)

    def new_policy(self, request: SampleRequest, number: int) -> tuple[Policy, Sampling]:
        """See `rl.serving.endpoint.Plain`. The same request with a seed samples the same tokens."""
        own = f"plain-{next(self._plain_numbers)}"
        prompt = Prompt(own if request.seed is None else "plain", [], "", "service")  # seeds follow from its id
        rl, dialog = self.config.rl_config, self._dialog
        limit = self.config.generate_config.max_model_len
        episode = Episode(
            self.gate,
            dialog.renderer,
            prompt,
            number,
            self.sampling,
            stop=(),
            max_context=limit,
            max_response=limit,
            session_id=own,
        )
        tools = ToolEnvironment(None, dialog.renderer, dialog.parser, rl, None, lambda turn: None)
        policy = Policy(episode, dialog.parser, tools)
        weakref.finalize(policy, self._release, own)
        return policy, self.sampling

    def on_completion(self, request: SampleRequest, replies: Sequence[Reply], policies: Sequence[Policy]) -> None:
        """See `rl.serving.endpoint.Plain`."""
        if self.on_plain is not None:
            self.on_plain(request, replies, policies)

    # What the driver does

    async def begin_native(self) -> None:
        """Begin the training without waiting for a client, because there is a run to go on with."""
        self._ask_for(JobRequest(NATIVE, {}, is_native=True))

    async def next_job(self, timeout_s: float) -> JobRequest | None:
        """The training to begin; None if no client asks for one in time."""
        try:
            async with asyncio.timeout(timeout_s):
                return await self._jobs.get()
        except TimeoutError:
            return None

    async def refuse_job(self, problem: str) -> None:
        """Tell the clients why their training cannot begin."""
        self._finish(ConfigError(problem))
        self._set(state=JobState.IDLE, name="")
        self.gate.open()

    async def use(self, config: Config, run_directory: Path, number: int, names: set[str]) -> None:
        """Take the training's configuration, and journal groups in its run directory.

        Args:
            config: With the changes that a client asked for.
            run_directory: The training's.
            number: Number of the first new group.
            names: Names of groups that were acknowledged before a restart.
        """
        self.config = config
        self._loop = self._new_loop(config)
        self.groups.begin(names)
        self._running().begin(RunDirectory(run_directory).journal, number)
        self._set(run_directory=str(run_directory))

    async def begin_sampling(self, step: int, closed: Sequence[int] = ()) -> None:
        """The engines have the weights after `step` steps, and the training waits for groups.

        Args:
            step: Completed steps.
            closed: Numbers of the closed batches that were trained on.
        """
        self._set(state=JobState.SAMPLING, step=step)
        self.batch = {}
        self.gate.open()
        training = self._running()
        training.batches_closed(list(closed))
        resolve(training.started)

    async def progress(self, batch: Mapping[str, int]) -> None:
        """How far the batch is that the training waits for."""
        self.batch = dict(batch)

    async def begin_update(
        self,
        mean_reward: float | None = None,
        lost_groups: Mapping[str, int] = MappingProxyType({}),
        *,
        stops_requests: bool = False,
    ) -> None:
        """The training has its groups.

        Args:
            mean_reward: Mean over their scored rollouts; None if there are none.
            lost_groups: Groups that are not trained on, by reason.
            stops_requests: The engines leave their devices, so requests wait.
        """
        self.history.batch_taken(self._status.step, mean_reward, lost_groups)
        self._set(state=JobState.UPDATING)
        if stops_requests or self.config.serve_config.max_staleness == 0:
            self.gate.close()

    async def read_protocol_metrics(self) -> dict[str, float]:
        """See `protocol_metrics`."""
        return self.protocol_metrics()

    async def next_events(self, timeout_s: float) -> list[Event]:
        """See `Training.next_events`."""
        return await self._running().next_events(timeout_s)

    async def batches_closed(self, numbers: list[int]) -> None:
        """Closed batches without groups, or those that were trained on."""
        self._running().batches_closed(numbers)

    async def saved(self, name: str, folder: Path) -> None:
        """What a client wanted saved is on disk."""
        self._set(checkpoints={**self._status.checkpoints, name: str(folder)}, last_checkpoint=name)
        self._running().saved(name, folder)

    def break_off(self, reason: str) -> None:
        """Tell the driver, if it waits for groups, that none will come."""
        if self._training is not None:
            self._training.break_off(reason)

    async def end_job(self, step: int, failure: str | None) -> None:
        """The training is over; the last weights stay served."""
        state = JobState.ENDED if failure is None else JobState.FAILED
        self._set(state=state, step=step, failure=failure)
        self.gate.open()
        self._finish(RolloutError(failure) if failure is not None else None)
        await self.groups.close("the training ended" if failure is None else f"the training failed: {failure}")

    # Inside

    def _ask_for(self, request: JobRequest) -> Training:
        assert self._status.state not in _RUNNING, "one training at a time"
        self._training = training = Training(request)
        self._set(state=JobState.STARTING, name=request.name, step=0, failure=None)
        self.gate.close()
        self._jobs.put_nowait(request)
        return training

    def _running(self) -> Training:
        if self._training is None or self._status.state not in _RUNNING:
            raise RolloutError(self._status.failure or "No training runs. Begin one first.")
        return self._training

    def _finish(self, failure: TurnwiseError | None) -> None:
        if self._training is not None:
            self._training.finish(failure)

    def _new_loop(self, config: Config) -> AgentLoop:
        return AgentLoop(self.gate, self._dialog.renderer, None, self._dialog.parser, config, agents=self.groups)

    def _set(self, **changes: Any) -> None:
        self._status = replace(self._status, **changes)
        task = asyncio.ensure_future(self._notify())
        task.add_done_callback(lambda done: done.exception())

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()


def client_json(client: AgentClient, name: str) -> dict[str, str]:
    """A rollout as clients get it."""
    return {
        "id": client.api_key,
        "name": name,
        "base_url": client.base_url,
        "api_key": client.api_key,
        "model": client.model,
    }
