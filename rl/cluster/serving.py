"""The service in a process of its own: a Ray actor around `rl.serving.service.Service`, and the driver's way to it."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray.exceptions import RayActorError, RayTaskError, TaskCancelledError

from rl.batches import GroupHeader
from rl.cluster.health import get_all, told_to_user
from rl.cluster.rewards import RewardWorkers
from rl.cluster.workers import log_to
from rl.config.schema import Config
from rl.errors import RolloutError, TurnwiseError, WorkerDiedError
from rl.inference.router import Router
from rl.rollout.headers import headers_of, rows_of
from rl.serving.job import JobRequest
from rl.serving.training import BatchClosed as BatchClosed
from rl.serving.training import Broken as Broken
from rl.serving.training import EndWanted as EndWanted
from rl.serving.training import Event, GroupDone
from rl.serving.training import SaveWanted as SaveWanted
from rl.types import Generation, Sampling

logger = logging.getLogger(__name__)

_CALL_TIMEOUT_S = 120.0
_POLL_S = 5.0
"""Seconds after which the driver looks whether it is interrupted."""


@dataclass(slots=True, frozen=True)
class GroupEvent:
    """A group of clients is scored and journaled."""

    number: int
    header: GroupHeader


class RemoteEngines:
    """All engines behind one (`rl.interfaces.Sampler`): the requests of a trajectory go to the same one.

    Args:
        workers: Handles of the rollout workers, in order of replica.
        on_death: Called with the reason when the last of them has died.
    """

    def __init__(self, workers: Sequence[Any], on_death: Callable[[str], None]) -> None:
        self._workers, self._on_death = dict(enumerate(workers)), on_death
        self._router = Router(list(self._workers))

    async def generate(self, token_ids: list[int], sampling: Sampling, *, session_id: str) -> Generation:
        """See `rl.interfaces.Sampler`. If a worker dies, the request goes to another."""
        ids = np.array(token_ids, np.int32)
        while True:
            replica = self._router.route(session_id)
            reference = self._workers[replica].generate.remote(ids, sampling, session_id)
            try:
                generation: Generation = await reference
            except asyncio.CancelledError:
                ray.cancel(reference)
                raise
            except RayActorError:
                self._lose(replica, f"rollout worker {replica}: its process died. See logs/rollout-{replica}.log.")
            except TaskCancelledError as error:
                raise RolloutError(f"rollout worker {replica}: it ended a request.") from error
            except RayTaskError as error:
                told = told_to_user(error.cause)
                if not isinstance(told, WorkerDiedError):
                    raise told or error from None
                self._lose(replica, str(told))
            else:
                return generation

    def _lose(self, replica: int, reason: str) -> None:
        if replica not in self._router.replicas:
            return
        self._router.remove(replica)
        logger.error("%s Its requests go to the %d engines left.", reason, len(self._router.replicas))
        if not self._router.replicas:
            self._on_death(f"no engine is left. {reason}")

    def release(self, session_id: str) -> None:
        """A trajectory has ended."""
        self._router.release(session_id)


@ray.remote
class ServingWorker:
    """The service and its HTTP server."""

    def __init__(
        self, config: Config, *, log_file: Path, workers: Sequence[Any], reward_workers: Sequence[Any]
    ) -> None:
        log_to(log_file)
        self.config, self.workers, self.rewards = config, workers, RewardWorkers(reward_workers)

    async def start(self, begins: bool) -> str:
        """Listen.

        Args:
            begins: The training begins without waiting for a client; before one can ask for it.

        Returns:
            The address.
        """
        from rl.rollout.dialog import load_dialog
        from rl.rollout.garbage_collection import collect_seldom
        from rl.serving.server import start_server
        from rl.serving.service import Service

        dialog = load_dialog(self.config)
        engine = RemoteEngines(self.workers, lambda reason: self.service.break_off(reason))
        model = Path(self.config.actor_config.load).name or "policy"
        self.service = Service(self.config, engine, dialog, self.rewards.score, model=model, release=engine.release)
        if begins:
            await self.service.begin_native()
        self.server = await start_server(self.service, self.config.serve_config)
        collect_seldom()
        return self.server.address

    async def call(self, method: str, *args: Any, **options: Any) -> Any:
        """Call a method of the service."""
        return await getattr(self.service, method)(*args, **options)

    async def next_events(self, timeout_s: float) -> list[Any]:
        """See `Service.next_events`; tokens and texts of groups go to the object store."""
        return [self._without_tokens(event) for event in await self.service.next_events(timeout_s)]

    async def shutdown(self) -> None:
        """Stop listening."""
        await self.server.close()

    def _without_tokens(self, event: Event) -> Any:
        if not isinstance(event, GroupDone):
            return event
        trajectories = event.group.trajectories
        rows = rows_of(trajectories)
        records = [trajectory.without_tokens() for trajectory in trajectories]
        headers, prompt_ids = headers_of(records, rows)
        header = GroupHeader(event.group.prompt, headers, prompt_ids, ray.put(rows), ray.put(records))
        return GroupEvent(event.number, header)


class Front:
    """The driver's way to the service.

    Args:
        worker: Handle of the `ServingWorker`.
    """

    def __init__(self, worker: Any) -> None:
        self._worker = worker

    def next_job(self) -> JobRequest:
        """Wait for a client that wants a training."""
        for number in itertools.count():
            job: JobRequest | None = self._call("next_job", _POLL_S)
            if job is not None:
                return job
            if number == 0:
                logger.info("waiting for clients")
        raise AssertionError("endless")

    def next_events(self) -> list[Any]:
        """What happened since the last call; waits some seconds for the first."""
        (events,) = get_all(
            [self._worker.next_events.remote(_POLL_S)], what="the service's events", timeout_s=_CALL_TIMEOUT_S
        )
        return list(events)

    def refuse_job(self, error: TurnwiseError) -> None:
        """See `Service.refuse_job`."""
        self._call("refuse_job", str(error))

    def use(self, config: Config, run_directory: Path, number: int, names: set[str]) -> None:
        """See `Service.use`."""
        self._call("use", config, run_directory, number, names)

    def begin_sampling(self, step: int, closed: list[int]) -> None:
        """See `Service.begin_sampling`."""
        self._call("begin_sampling", step, closed)

    def progress(self, batch: Mapping[str, int]) -> None:
        """See `Service.progress`."""
        self._call("progress", dict(batch))

    def begin_update(self, mean_reward: float | None, lost_groups: Mapping[str, int], *, stops_requests: bool) -> None:
        """See `Service.begin_update`."""
        self._call("begin_update", mean_reward, lost_groups, stops_requests=stops_requests)

    def protocol_metrics(self) -> dict[str, float]:
        """See `Service.protocol_metrics`."""
        found: dict[str, float] = self._call("read_protocol_metrics")
        return found

    def batches_closed(self, numbers: list[int]) -> None:
        """See `Service.batches_closed`."""
        self._call("batches_closed", numbers)

    def saved(self, name: str, folder: Path) -> None:
        """See `Service.saved`."""
        self._call("saved", name, folder)

    def end_job(self, step: int, failure: str | None) -> None:
        """See `Service.end_job`."""
        self._call("end_job", step, failure)

    def _call(self, method: str, *args: Any, **options: Any) -> Any:
        reference = self._worker.call.remote(method, *args, **options)
        return get_all([reference], what=f"the service ({method})", timeout_s=_CALL_TIMEOUT_S)[0]
