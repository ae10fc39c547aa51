"""One training of an Arbor client: its groups, and when they become a batch.

A client that asks for batch ids (dspy 3.0.4 and later) is offered none while the weights are updated; the batch is
complete when each id has its group. Earlier ones send the groups of a step one after another and then ask for
completions: the first request for one closes the batch and waits for the new weights.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import secrets
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from rl.errors import TurnwiseError
from rl.serving.arbor.figures import Figures
from rl.serving.arbor.ids import BatchIds
from rl.serving.arbor.ledger import Completion, CompletionLedger, Match, Untrained
from rl.serving.arbor.train_kwargs import Settings
from rl.serving.arbor.wire import InitializeRequest, Sample, StepRequest
from rl.serving.errors import ApiError, bad_request
from rl.serving.job import JobState, Trainer
from rl.types import Prompt, Trajectory

logger = logging.getLogger(__name__)

_UPDATE_TIMEOUT_S = 4 * 3600.0
_SUBMIT_TIMEOUT_S = 600.0
_SAVE_TIMEOUT_S = 3600.0
_MOST_SEEN = 100_000
"""Groups that are remembered, so that their copies are recognized."""


class ArborJob:
    """A training that was begun.

    Args:
        trainer: What trains.
        ledger: The completions that samples are matched with.
        request: The client's.
        settings: What it asked for.
    """

    def __init__(
        self, trainer: Trainer, ledger: CompletionLedger, request: InitializeRequest, settings: Settings
    ) -> None:
        self.id = f"grpo-{secrets.token_hex(4)}"
        self.request, self.figures = request, Figures()
        self.is_over = False
        """The client ended it."""
        self._trainer, self._ledger, self._settings = trainer, ledger, settings
        self._ids = BatchIds(settings.num_generations) if request.asks_for_ids else None
        self._seen: dict[bytes, int] = {}
        """Number of the batch in which each group came."""
        self._num_batches, self._num_groups, self._num_open = 0, 0, 0
        self._closing: asyncio.Task[None] | None = None
        self._failure: str | None = None
        self._lock = asyncio.Lock()

    @property
    def failure(self) -> str | None:
        """Why it failed."""
        status = self._trainer.status
        return status.failure or "no reason given" if status.state is JobState.FAILED else self._failure

    def check(self) -> None:
        """Check that it goes on.

        Raises:
            ApiError: It failed, ended, or has done all its steps.
        """
        if self.failure is not None:
            raise ApiError(500, f"The training failed: {self.failure}", code="training_failed")
        if self.is_over:
            raise ApiError(409, f"job_id: {self.id} has ended. Initialize another training.", param="job_id")
        if self._trainer.status.state is JobState.ENDED:
            raise ApiError(
                409,
                f"The training has done its {self._trainer.status.step} steps (max_steps, or the service's "
                "megatron_training.train_iters). Raise it, or take fewer train steps. The model stays served.",
                code="training_ended",
            )

    def pending_ids(self) -> list[int]:
        """The batch ids that a client may use now; none while weights are updated."""
        if self._ids is None or self._closing is not None or self._trainer.status.state is not JobState.SAMPLING:
            return []
        if self._ids.is_used:  # it asks again, so it has sent what it had
            self._close()
            return []
        return self._ids.offer(self._ledger.num_seen)

    async def take(self, request: StepRequest) -> None:
        """Take a group: match it with the completions, and give it to the next batch.

        Raises:
            ApiError: The training does not go on, the id is wrong, or the group cannot be trained on.
        """
        async with self._lock:
            await self._closed()
            self.check()
            batch_id = self._checked_id(request)
            matches = self._ledger.match(request.batch)
            key = _digest(request.batch)
            is_copy = self._is_copy(key, matches)
            if is_copy:
                self._ledger.free(matches)
                self.figures.count("duplicate_groups")
            else:
                await self._submit(request.batch, matches)
            self._remember(key)
            if self._ids is not None:
                self._ids.take(batch_id, is_copy=is_copy)
                if self._ids.is_complete:
                    self._close()

    async def settle(self) -> None:
        """Wait until the engines have the weights of all groups that a client has sent.

        Without batch ids, it closes the batch. It does not raise: `failure` tells.
        """
        if self._ids is None and self._num_open and self.failure is None and not self.is_over:
            self._close()
        await self._closed()

    async def save(self, name: str) -> Path:
        """Save the weights, those of all groups that were sent."""
        await self.settle()
        self.check()
        async with asyncio.timeout(_SAVE_TIMEOUT_S):
            return await self._trainer.save(name)

    async def end(self, *, trains_rest: bool) -> None:
        """End the training; the model stays served. An ended or a failed one stays as it is.

        Args:
            trains_rest: Take the groups of the open batch for a last update.
        """
        async with self._lock:
            await self._closed()
            if trains_rest and self._num_open and self.failure is None and not self.is_over:
                self._close()
                await self._closed()
            self.is_over = True
            async with asyncio.timeout(_SAVE_TIMEOUT_S):
                await self._trainer.end()
        logger.info("arbor: %s ended after %d batches: %s", self.id, self._num_batches, self.figures)

    def _checked_id(self, request: StepRequest) -> int:
        if self._ids is None:
            return -1
        if request.batch_id is None:
            raise bad_request("batch_id", "is missing. Send one of the pending_batch_ids that `status` tells.")
        self._ids.check(request.batch_id)
        return request.batch_id

    def _is_copy(self, key: bytes, matches: Sequence[Match | None]) -> bool:
        """Whether a group came before. Without batch ids no client sends copies."""
        if self._ids is None or key not in self._seen:
            return False
        return self._seen[key] == self._num_batches or self._ids.expects_copy or None in matches

    def _remember(self, key: bytes) -> None:
        self._seen[key] = self._num_batches
        if len(self._seen) > _MOST_SEEN:
            del self._seen[next(iter(self._seen))]

    def _close(self) -> None:
        """Train on what has come, in the background."""
        if self._closing is None:
            self._closing = asyncio.create_task(self._train())

    async def _closed(self) -> None:
        if self._closing is not None:
            await asyncio.shield(self._closing)

    async def _train(self) -> None:
        try:
            async with asyncio.timeout(_UPDATE_TIMEOUT_S):
                await self._trainer.close_batch()
        except Exception as error:  # whatever it is, clients must hear of it
            if self._trainer.status.state is not JobState.ENDED:
                self._failure = self._trainer.status.failure or _words(error)
                logger.error("arbor: %s failed: %s", self.id, self._failure)
        finally:
            self._num_batches, self._num_open, self._closing = self._num_batches + 1, 0, None
            if self._ids is not None:
                self._ids.begin_step()
            self.figures.begin_batch()
            logger.info("arbor: %s, %d batches: %s", self.id, self._num_batches, self.figures)

    async def _submit(self, batch: Sequence[Sample], matches: Sequence[Match | None]) -> None:
        """Give a group to the training. After an error it is as if it had not come: the client may send it again."""
        found = [
            self._usable(sample, match, batch[:i]) for i, (sample, match) in enumerate(zip(batch, matches, strict=True))
        ]
        try:
            if group := self._trajectories(batch, found):
                async with asyncio.timeout(_SUBMIT_TIMEOUT_S):
                    await self._trainer.submit(group)
        except BaseException:
            self._ledger.free([*matches, *found])
            raise
        self._num_open += bool(group)
        self._count(found, is_dropped=not group)

    def _trajectories(self, batch: Sequence[Sample], found: Sequence[Match | Completion | str]) -> list[Trajectory]:
        """The completions of a group's samples, scored; without those that cannot be trained on."""
        others = [one for one in found if isinstance(one, Completion) and one.untrained is Untrained.OTHER_SAMPLING]
        if len(others) == len(batch):
            raise self._other_sampling(others[0])
        own = [(sample, one) for sample, one in zip(batch, found, strict=True) if isinstance(one, Match)]
        if len(own) < 2:
            return []
        self._num_groups += 1
        messages = [{"role": role, "content": text} for role, text in own[0][1].completion.prompt]
        prompt = Prompt(f"{self.id}-{self._num_groups:06d}", messages, "", "arbor")
        return [_scored(sample, match, prompt, i) for i, (sample, match) in enumerate(own)]

    def _count(self, found: Sequence[Match | Completion | str], *, is_dropped: bool) -> None:
        reasons = [_reason(one) for one in found if not isinstance(one, Match)]
        self.figures.count("groups")
        self.figures.count("samples", len(found) - reasons.count("duplicate_samples"))
        for reason in reasons:
            self.figures.count(reason if reason == "duplicate_samples" else f"left_out/{reason}")
        for one in found:
            if isinstance(one, Match):
                self.figures.count(str(one.kind))
        if is_dropped:
            self.figures.count("dropped_groups")

    def _usable(self, sample: Sample, match: Match | None, earlier: Sequence[Sample]) -> Match | Completion | str:
        """A sample's match, or the completion that cannot be trained on, or why there is none."""
        if match is None:
            return self._ledger.take_untrained(sample) or ("duplicate_samples" if sample in earlier else "unknown")
        return "too_long" if self._is_too_long(match.completion) else match

    def _is_too_long(self, completion: Completion) -> bool:
        limits = (
            (completion.num_prompt_tokens, self._settings.max_prompt_length),
            (completion.num_tokens, self._settings.max_completion_length),
            (completion.num_prompt_tokens + completion.num_tokens, self._settings.max_context_length),
        )
        return any(limit is not None and length > limit for length, limit in limits)

    def _other_sampling(self, completion: Completion) -> ApiError:
        own = self._settings.changes.get("generate_config.sampling_config.temperature")
        told = f"temperature {own:g} of train_kwargs" if own is not None else "the service's temperature"
        return bad_request(
            "batch",
            f"its completions were sampled with {completion.sampling}, the training assumes {told}, and no top_p, "
            "top_k or min_p. Give the LM and train_kwargs the same temperature, and the LM nothing else.",
        )


def _reason(found: Completion | str) -> str:
    return found if isinstance(found, str) else str(found.untrained)


def _scored(sample: Sample, match: Match, prompt: Prompt, number: int) -> Trajectory:
    given = {"score": sample.reward, "matched": str(match.kind)}
    return replace(match.completion.trajectory, prompt=prompt, sample_index=number, environment=given)


def _digest(batch: Sequence[Sample]) -> bytes:
    text = json.dumps([asdict(sample) for sample in batch], sort_keys=True, default=str)
    return hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=16).digest()


def _words(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return f"the update took more than {_UPDATE_TIMEOUT_S:g} s"
    return str(error) if isinstance(error, TurnwiseError) else f"{type(error).__name__}: {error}"
