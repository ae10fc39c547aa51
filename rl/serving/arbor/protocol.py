"""Arbor's HTTP protocol, in all its generations, on one set of routes.

Source: `dspy/clients/lm_local_arbor.py` of dspy 2.6.27 and 3.0.4; `arbor/integrations/dspy` of arbor-ai 0.2.17.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from aiohttp import web

from rl.config.schema import Config
from rl.errors import ConfigError
from rl.rollout.rollout_function import Policy, Reply
from rl.services.http_guard import Bodies, Handler
from rl.serving.arbor.job import ArborJob
from rl.serving.arbor.ledger import CompletionLedger
from rl.serving.arbor.train_kwargs import read_train_kwargs
from rl.serving.arbor.wire import InitializeRequest, read_checkpoint, read_initialize, read_job, read_step
from rl.serving.dialects import DIALECTS
from rl.serving.endpoint import PREFIXES
from rl.serving.errors import ApiError, answering, bad_request
from rl.serving.job import JobState, Trainer
from rl.serving.sample_request import SampleRequest
from rl.serving.values import read_body

logger = logging.getLogger(__name__)

_MAX_BODY_BYTES = 64 << 20
_MAX_BODIES_BYTES = 1 << 30
_BEGIN_TIMEOUT_S = 1800.0
_GONE_AFTER_S = 60.0
"""Seconds without a request after which another client may take the place of one whose training waits for it."""
_COMPLETIONS = frozenset(dialect.path for dialect in DIALECTS)
_NOT_THERE = ("/v1/files", "/v1/fine_tuning/jobs")
_T = TypeVar("_T")


class Arbor:
    """The routes, and the training that a client began through them.

    Args:
        trainer: What trains.
        config: The service's.
    """

    def __init__(self, trainer: Trainer, config: Config) -> None:
        self._trainer, self._config = trainer, config
        self._ledger = CompletionLedger()
        self._bodies = Bodies(_MAX_BODY_BYTES, _MAX_BODIES_BYTES)
        self._job: ArborJob | None = None
        self._beginning: asyncio.Task[ArborJob] | None = None
        self._heard = time.monotonic()
        """When the client of the training was heard last."""
        self._records: dict[str, dict[str, Any]] = {}
        """What a client said about its checkpoints, by name."""
        self._tasks: set[asyncio.Task[Any]] = set()

    def add_to(self, application: web.Application) -> None:
        """Serve the protocol in an application that has the chat endpoint's routes."""
        for name, handler in (
            ("initialize", self._initialize),
            ("status", self._status),
            ("step", self._step),
            ("update_model", self._update_model),
            ("checkpoint", self._checkpoint),
            ("terminate", self._terminate),
            ("cancel", self._cancel),
        ):
            application.router.add_post(
                f"/v1/fine_tuning/grpo/{name}", answering(self._reading(handler), ApiError.body)
            )
        for name in ("launch", "kill"):
            application.router.add_post(f"/v1/chat/{name}", answering(self._reading(self._placed), ApiError.body))
        for path in _NOT_THERE:
            application.router.add_route("*", path + "{rest:(/.*)?}", answering(_not_there, ApiError.body))
        application.middlewares.append(self._waiting)

    def on_completion(self, request: SampleRequest, replies: Sequence[Reply], policies: Sequence[Policy]) -> None:
        """Keep completions that belong to no rollout (`rl.serving.endpoint.Plain`)."""
        self._heard = time.monotonic()
        self._ledger.add(request, replies, policies)

    def metrics(self) -> dict[str, float]:
        """Counts of the samples of a batch, under their names; empty without a training."""
        return self._job.figures.batch_metrics() if self._job is not None else {}

    @web.middleware
    async def _waiting(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Let requests for completions wait for the weights of the groups that were sent before."""
        if request.path in _COMPLETIONS and self._job is not None:
            await self._job.settle()
        return await handler(request)

    async def _initialize(self, given: Mapping[str, Any]) -> dict[str, Any]:
        request = read_initialize(given)
        self._check_model(request.model)
        if "environment" not in self._config.rl_config.verifier_function:
            raise ApiError(
                400,
                "rl_config.verifier_function: the service's rewards do not read those of clients. Start it with "
                "verifier_function: [environment].",
            )
        settings = read_train_kwargs(request.train_kwargs, self._config)
        await self._take_place()
        for note in settings.notes:
            logger.info("arbor: without effect: %s", note)
        job = ArborJob(self._trainer, self._ledger, request, settings)
        self._beginning = asyncio.create_task(self._begin(job, request, settings.changes))
        self._beginning.add_done_callback(lambda done: done.cancelled() or done.exception())
        await asyncio.shield(self._beginning)  # it goes on if the client disconnects
        return self._reply(job, [])

    async def _begin(self, job: ArborJob, request: InitializeRequest, changes: Mapping[str, Any]) -> ArborJob:
        async with asyncio.timeout(_BEGIN_TIMEOUT_S):
            await self._trainer.begin(request.suffix, changes)
        self._ledger.clear()  # other weights
        self._job, self._heard, self._records = job, time.monotonic(), {}
        logger.info("arbor: %s begins with %s", job.id, dict(changes))
        return job

    async def _take_place(self) -> None:
        """End a training whose client is gone.

        Raises:
            ApiError: A training is at work.
        """
        if self._beginning is not None and not self._beginning.done():
            raise ApiError(409, "Another client is beginning a training. Wait for it.", code="other_training")
        job, state = self._job, self._trainer.status.state
        if job is None or job.is_over or state not in (JobState.SAMPLING, JobState.UPDATING):
            return
        silent_s = time.monotonic() - self._heard
        if state is JobState.UPDATING or silent_s < _GONE_AFTER_S:
            raise ApiError(
                409,
                f"The training {job.id} is at work; its client was heard {silent_s:.0f} s ago. If it is gone, wait "
                f'{_GONE_AFTER_S:g} s, or POST fine_tuning/grpo/cancel {{"job_id": "{job.id}"}}.',
                code="other_training",
            )
        logger.warning("arbor: the client of %s is gone. Its training ends for another's.", job.id)
        await self._finish(job.end(trains_rest=False))

    async def _status(self, given: Mapping[str, Any]) -> dict[str, Any]:
        job = self._named(read_job(given).job_id)
        if job.is_over:
            return self._reply(job, [])
        job.check()  # otherwise the client would ask for ever
        return self._reply(job, job.pending_ids())

    async def _step(self, given: Mapping[str, Any]) -> dict[str, Any]:
        request = read_step(given)
        job = self._named(request.job_id)
        job.check()
        if request.metrics:
            logger.info("arbor: %s, the client's scores: %s", job.id, request.metrics)
        await self._finish(job.take(request))
        return self._reply(job, [])

    async def _update_model(self, given: Mapping[str, Any]) -> dict[str, Any]:
        job = self._named(read_job(given).job_id)
        await self._finish(job.settle())
        job.check()
        return self._reply(job, [])

    async def _checkpoint(self, given: Mapping[str, Any]) -> dict[str, Any]:
        request = read_checkpoint(given)
        job = self._named(request.job_id)
        job.check()
        folder = await self._finish(job.save(request.checkpoint_name))
        self._records[request.checkpoint_name] = {
            "checkpoint_name": request.checkpoint_name,
            "checkpoint_dir": str(folder),
            "timestamp": time.time(),
            "metadata": request.metadata,
        }
        return self._reply(job, [])

    async def _terminate(self, given: Mapping[str, Any]) -> dict[str, Any]:
        job = self._named(read_job(given).job_id)
        await self._finish(job.end(trains_rest=True))
        if job.failure is not None:
            job.check()
        return self._reply(job, [])

    async def _cancel(self, given: Mapping[str, Any]) -> dict[str, Any]:
        job = self._named(read_job(given).job_id)
        await self._finish(job.end(trains_rest=False))
        return self._reply(job, [])

    async def _placed(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """`chat/launch` and `chat/kill`: the model is always served."""
        if given.get("launch_kwargs"):
            logger.info("arbor: without effect: launch_kwargs: the service's configuration places the engines")
        return {"status": "success", "current_model": self._trainer.model}

    def _named(self, job_id: str | None) -> ArborJob:
        """The training of a request; clients of dspy 2.6 name none."""
        job = self._job
        if job is None:
            raise ApiError(409, "No training was begun. POST fine_tuning/grpo/initialize first.", code="no_training")
        if job_id not in (None, job.id):
            raise ApiError(
                404,
                f"job_id: '{job_id:.80}' is unknown here; another client began a training, or the service was started "
                "again meanwhile. Initialize a training.",
                param="job_id",
            )
        self._heard = time.monotonic()
        return job

    def _check_model(self, name: str) -> None:
        while prefix := next((prefix for prefix in PREFIXES if name.startswith(prefix)), None):
            name = name.removeprefix(prefix)
        if Path(name).name.lower() != Path(self._trainer.model).name.lower():
            raise bad_request(
                "model", f"'{name:.100}' is not served. Name '{self._trainer.model}', or start the service with it."
            )

    def _reply(self, job: ArborJob, pending_ids: list[int]) -> dict[str, Any]:
        """What every route answers. `metrics` is no client's; it tells users how their samples were matched."""
        status = self._trainer.status
        return {
            "job_id": job.id,
            "status": "failed" if job.failure is not None else "succeeded" if job.is_over else "running",
            "current_model": self._trainer.model,
            "checkpoints": {name: self._checkpoint_of(job, name, path) for name, path in status.checkpoints.items()},
            "last_checkpoint": status.last_checkpoint,
            "pending_batch_ids": pending_ids,
            "step": status.step,
            "metrics": job.figures.metrics(),
        }

    def _checkpoint_of(self, job: ArborJob, name: str, path: str) -> str | dict[str, Any]:
        plain = {"checkpoint_name": name, "checkpoint_dir": path}
        return self._records.get(name, plain) if job.request.describes_checkpoints else path

    async def _finish(self, work: Coroutine[Any, Any, _T]) -> _T:
        """Do something to its end, also if the client disconnects meanwhile."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        try:
            return await asyncio.shield(task)
        except TimeoutError as error:
            raise ApiError(500, "The training did not answer in time. See the service's log.") from error

    def _reading(
        self, handler: Callable[[Mapping[str, Any]], Awaitable[dict[str, Any]]]
    ) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        """Read the body of a request; some clients send none."""

        async def read(http: web.Request) -> web.StreamResponse:
            given: Mapping[str, Any] = {}
            if http.can_read_body:
                async with self._bodies.read(http) as body:
                    given = read_body(body) if body else {}
            try:
                return web.json_response(await handler(given))
            except ConfigError as error:
                raise ApiError(400, f"{error}", code="configuration") from error

        return read


async def _not_there(http: web.Request) -> web.Response:
    raise ApiError(
        501,
        "Supervised fine-tuning over HTTP is not there: `rl sft` trains on demonstrations. This service trains with "
        "rewards, at fine_tuning/grpo.",
        code="not_implemented",
    )
