"""The rollout workers as Ray actors: sends prompts to them and survives the death of a worker."""

from __future__ import annotations

import errno
import itertools
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import ray
from prometheus_client.core import Metric
from ray.exceptions import RayError, RayTaskError

from rl.batches import GroupHeader, Recording
from rl.cluster.health import get_all, result
from rl.cluster.relay import relay
from rl.config.schema import Config
from rl.errors import RolloutError, WorkerDiedError
from rl.inference.router import Router
from rl.rollout.headers import uses_of
from rl.rollout.workers import PromptBatch, groups_at_once
from rl.types import Prompt, Span, StopReason, WeightUpdate

logger = logging.getLogger(__name__)

_GRACE_S = 120.0
"""Seconds beyond a trajectory's own deadline before its worker counts as hung."""
_CALL_TIMEOUT_S = 600.0
_NONE: Mapping[int, tuple[Any, ...]] = MappingProxyType({})


@dataclass(slots=True)
class _Job:
    """One prompt on one worker."""

    order: int
    prompt: Prompt
    replica: int
    rows: ray.ObjectRef
    record: ray.ObjectRef
    started: float = field(default_factory=time.monotonic)


class RayWorkers:
    """Rollout workers in processes of their own (`rl.rollout.workers.Workers`).

    Rows and records of a group stay in the object store of the worker's machine; the driver owns them, so they outlive
    the worker.

    Args:
        workers: Handles in order of replica.
        nodes: Ray's id of each worker's node.
        rewards: The reward workers; the first writes trajectories.
    """

    def __init__(
        self, workers: Sequence[Any], config: Config, *, nodes: Sequence[str], rewards: Sequence[Any] = ()
    ) -> None:
        self.workers = dict(enumerate(workers))
        self.config, self.nodes, self.rewards = config, dict(enumerate(nodes)), list(rewards)
        self.router = Router(list(self.workers))
        self._running: dict[int, dict[ray.ObjectRef, _Job]] = {}
        """What each call of `run` waits for."""
        self._run_numbers = itertools.count()
        self._writing: ray.ObjectRef | None = None

    def run(self, batch: PromptBatch) -> Iterator[tuple[int, GroupHeader]]:
        """See `Workers`. If a worker dies, its prompts go to the others."""
        number, running = next(self._run_numbers), dict[ray.ObjectRef, _Job]()
        self._running[number] = running
        try:
            while (batch.waiting and not batch.is_held) or running:
                self._dispatch(batch, running)
                done, _ = ray.wait(list(running), num_returns=1, timeout=1.0) if running else ([], [])
                for ref in done:
                    job = running.pop(ref)
                    try:
                        group = self._group(ref, job)
                    except WorkerDiedError as error:
                        self._remove(job.replica, error)
                        batch.waiting.appendleft((job.order, job.prompt))
                        continue
                    self.router.release(job.prompt.id)
                    yield job.order, group
                self._drop(batch, running)
                self._end_hung(running)
        finally:
            del self._running[number]

    def call(self, method: str, arguments: Mapping[int, tuple[Any, ...]] = _NONE, *, what: str) -> list[Any]:
        """See `Workers`; each worker may get its own arguments. Dead workers are skipped."""
        refs = {
            replica: getattr(worker, method).remote(*arguments.get(replica, ()))
            for replica, worker in self.workers.items()
        }
        results = []
        for replica, ref in refs.items():
            try:
                results += get_all([ref], what=f"{what}, rollout worker {replica}", timeout_s=_CALL_TIMEOUT_S)
            except WorkerDiedError as error:
                self._remove(replica, error)
        return results

    @property
    def num_alive(self) -> int:
        """See `Workers`."""
        return len(self.workers)

    @property
    def num_running(self) -> int:
        """See `Workers`."""
        return sum(map(len, list(self._running.values())))

    def engine_metrics(self, timeout_s: float) -> dict[int, list[Metric]]:
        """See `Workers`. A worker that is dying is found out by `run`, not here."""
        refs = {worker.engine_metrics.remote(): replica for replica, worker in list(self.workers.items())}
        done, _ = ray.wait(list(refs), num_returns=len(refs), timeout=timeout_s) if refs else ([], [])
        answers: dict[int, list[Metric]] = {}
        for ref in done:
            with suppress(RayError):
                answers[refs[ref]] = ray.get(ref)
        return answers

    def update_weights(self, update: WeightUpdate) -> list[Span]:
        """See `Workers`."""
        local = relay(update, [self.nodes[replica] for replica in self.workers])
        updates = {replica: (local[self.nodes[replica]],) for replica in self.workers}
        return self.call("update_weights", updates, what="loading published weights")

    def write(self, path: Path, groups: Sequence[GroupHeader], recording: Recording | None = None) -> None:
        """See `Workers`. One step at a time: each call waits for the previous files."""
        self.finish_writing()
        records, rows = [group.record for group in groups], [group.rows for group in groups]
        self._writing = self.rewards[0].write.remote(
            path, records, uses_of(groups), rows if recording is not None else [], recording
        )

    def finish_writing(self, timeout_s: float = _CALL_TIMEOUT_S) -> None:
        """Wait until the current files are written. Tokens that could not be recorded are a warning.

        Raises:
            OSError: The trajectories could not be written.
        """
        if self._writing is None:
            return
        writing, self._writing = self._writing, None
        try:
            (failure,) = get_all([writing], what="writing trajectories", timeout_s=timeout_s)
        except RayTaskError as error:
            if isinstance(error.cause, OSError):
                raise OSError(error.cause.errno or errno.EIO, str(error.cause)) from error
            raise
        if failure is not None:
            logger.warning("%s", failure)

    def fetch(self, reference: Any) -> Any:
        """See `Workers`."""
        return result(reference, what="the object store")

    def keep(self, value: Any) -> Any:
        """See `Workers`."""
        return ray.put(value)

    def _dispatch(self, batch: PromptBatch, running: dict[ray.ObjectRef, _Job]) -> None:
        """Send prompts to workers with room. Deadlines run from here, so prompts must not wait in a worker's queue."""
        room = groups_at_once(self.config, batch.num_samples)
        while batch.waiting and not batch.is_held and len(running) < room * len(self.workers):
            order, prompt = batch.waiting.popleft()
            if order in batch.dropped:
                continue
            replica = self.router.route(prompt.id)
            ref, rows, record = self.workers[replica].run_group.remote(
                prompt, batch.num_samples, batch.sampling, batch.keeps_rows
            )
            running[ref] = _Job(order, prompt, replica, rows, record)

    def _drop(self, batch: PromptBatch, running: dict[ray.ObjectRef, _Job]) -> None:
        """Cancel what is not wanted any more: its requests are aborted, its tools closed."""
        for ref, job in list(running.items()):
            if job.order in batch.dropped:
                del running[ref]
                self.router.release(job.prompt.id)
                ray.cancel(ref)

    def _group(self, ref: ray.ObjectRef, job: _Job) -> GroupHeader:
        trajectories, prompt_ids = result(ref, what=f"rollout worker {job.replica}")
        if any(t.stop_reason is StopReason.ENGINE_FAILED for t in trajectories):
            name = f"rollout worker {job.replica}"
            raise WorkerDiedError(f"{name}: its engine died. See logs/rollout-{job.replica}.log of the run directory.")
        return GroupHeader(job.prompt, trajectories, prompt_ids, job.rows, job.record)

    def _remove(self, replica: int, error: RolloutError) -> None:
        """Take a dead worker out of the routing."""
        if replica in self.workers:
            del self.workers[replica]
            self.router.remove(replica)
            if self.workers:
                logger.error("%s Its prompts go to the %d workers left.", error, len(self.workers))
        if not self.workers:
            raise RolloutError(f"no rollout worker is left. {error}") from error

    def _end_hung(self, running: dict[ray.ObjectRef, _Job]) -> None:
        """Kill workers that are long past a trajectory's deadline; their prompts go to other workers."""
        rl, now = self.config.rl_config, time.monotonic()
        deadline = rl.trajectory_timeout + rl.verifier_timeout + _GRACE_S
        overdue = [ref for ref, job in running.items() if now - job.started > deadline]
        if not overdue:
            return
        # What ended while the driver was elsewhere, in a long update for example, only waits to be collected.
        _, unfinished = ray.wait(overdue, num_returns=len(overdue), timeout=0)
        for job in [running[ref] for ref in unfinished]:
            if job.replica in self.workers:
                worker = self.workers[job.replica]
                error = RolloutError(
                    f"rollout worker {job.replica}: prompt {job.prompt.id} has not ended {now - job.started:.0f} s "
                    f"after its start, though rl_config.trajectory_timeout is {rl.trajectory_timeout:.0f} s and "
                    f"verifier_timeout {rl.verifier_timeout:.0f} s. Its engine or a reward hangs; see its log in logs/ "
                    "of the run directory."
                )
                self._remove(job.replica, error)
                ray.kill(worker)
