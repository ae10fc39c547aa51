"""The interfaces between packages. Structural types: implementations do not inherit from these."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from prometheus_client.core import Metric

from rl.batches import BatchPlan, GroupHeader, Recording, RolloutStatus, RunPlace, Sample, UpdateReport
from rl.types import Generation, Prompt, Sampling, Scores, Span, Trajectory, WeightUpdate


class Sampler(Protocol):
    """Samples tokens from token ids: an engine, or what passes requests on to engines."""

    async def generate(self, token_ids: list[int], sampling: Sampling, *, session_id: str) -> Generation:
        """Continue `token_ids`.

        Args:
            token_ids: The prompt, never empty.
            sampling: `max_tokens` bounds the new tokens.
            session_id: Requests of one trajectory share it, so a router can keep their prefix on one replica.

        Returns:
            The sampled ids and their log-probs; with `FinishReason.ABORT` when a weight publish interrupted it.

        Raises:
            DataError: The engine refuses a sampling parameter, or cannot follow `sampling.json_schema` or
                `sampling.structural_tag`.
            RolloutError: The engine died.
        """
        ...


@runtime_checkable
class Engine(Sampler, Protocol):
    """A model that samples and takes new weights (`rl.inference.engine.VllmEngine`, `rl.inference.fake.FakeEngine`)."""

    async def update_weights(self, update: WeightUpdate) -> None:
        """Wake up, load published weights, drop the prefix cache, abort requests in flight, stamp the new version.

        Raises:
            WeightSyncError: The checksum of the loaded tensors differs from `update.checksum`.
        """
        ...

    async def sleep(self) -> None:
        """Free the accelerator's memory for the actor, including weights; no-op on CPU.

        The next publish wakes the engine; until then it may refuse requests.
        """
        ...

    async def shutdown(self) -> None:
        """End the engine's processes."""
        ...


Score = Callable[[Trajectory], Awaitable[Scores]]
"""Scores a trajectory; a failing reward does not raise."""


class Checkpointed(Protocol):
    """Models that a checkpoint saves."""

    def save_checkpoint(self, directory: Path) -> None:
        """Write Hugging Face weights and the optimizer's state."""
        ...

    def load_checkpoint(self, directory: Path) -> None:
        """Restore what `save_checkpoint` wrote, under any parallel layout."""
        ...


class DataPlace(Protocol):
    """A position in the data that a checkpoint saves (`Rollouts`, `rl.data.cursor.PromptCursor`)."""

    def expected_steps(self, completed: int) -> int | None:
        """Steps of the whole run, estimated from the data; None: endless."""
        ...

    def next_step(self, completed: int) -> int | None:
        """Number of the step that follows `completed` ones; a replay leaves out those that were not recorded.

        Returns:
            The number, from 0; None if there is none left.
        """
        ...

    def state_dict(self) -> dict[str, Any]:
        """State for a checkpoint, as plain values."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a `state_dict`."""
        ...


class Actor(Checkpointed, Protocol):
    """The trained policy as the driver sees it, with the reference if a KL term needs one.

    `rl.cluster.actors.ActorGroup` calls the ranks, each a `rl.training.actor.Actor`.
    """

    @property
    def num_data_parallel(self) -> int:
        """Ranks that train on different samples."""
        ...

    def fill_old_logprobs(self, plan: BatchPlan) -> None:
        """Compute the current policy's log-probs, if the update needs them."""
        ...

    def fill_ref_logprobs(self, plan: BatchPlan) -> dict[str, float]:
        """Compute the reference's log-probs, if a KL term needs them; returns metrics.

        With the KL term in the reward, it fills `kl_penalty` of the batch's trajectories.
        """
        ...

    def update(self, plan: BatchPlan, place: RunPlace) -> UpdateReport:
        """Take one optimizer step for each mini-batch and epoch; needs `plan.advantages`."""
        ...

    def record_tokens(self, path: Path) -> list[str]:
        """Write the tokens of the batch that was just updated, with what the update computed for each.

        It takes one more pass, for the log-probs under the new weights. Only after an `update` whose place says
        `is_recorded`.

        Args:
            path: The step's tokens file; the ranks write beside it.

        Returns:
            What went wrong with the files.
        """
        ...

    def publish(self, version: int) -> WeightUpdate:
        """Write the weights where engines can load them."""
        ...

    def take_spans(self) -> list[Span]:
        """What each rank did since the last call, for the timeline."""
        ...

    def start_profile(self) -> None:
        """Begin to profile every rank."""
        ...

    def stop_profile(self, folder: Path, name: str) -> list[str]:
        """Write each rank's profile, to files whose names begin with `name`; returns what went wrong."""
        ...


class Rollouts(DataPlace, Protocol):
    """Source of scored groups (`rl.cluster.rollouts.RolloutGroup`, `rl.cluster.ahead_rollouts.AheadRollouts`,
    `rl.rollout.replay.Replay`).
    """

    @property
    def has_engines(self) -> bool:
        """Whether there are engines to give weights to."""
        ...

    def take(
        self, num_prompts: int, metrics: MutableMapping[str, float], *, step: int = 0, is_recorded: bool = False
    ) -> list[GroupHeader]:
        """Roll out and score the next prompts of the dataset.

        Args:
            num_prompts: Groups to train on; with `filter_groups_enable`, informative ones.
            metrics: Gets `rollout/{carried,surplus,missing}_groups`, `rollout/engine_idle_share`, `timing_s/reward`.
            step: Number of the step, from 0; a replay takes the groups that were recorded in it.
            is_recorded: Keep the rows of uninformative groups too, so that they can be recorded.

        Raises:
            RolloutError: No rollout worker is left, or too many trajectories met an unavailable service.
            RewardError: No reward returns `filter_groups_metric`.
        """
        ...

    def evaluate(self, prompts: list[Prompt], sampling: Sampling, num_samples: int = 1) -> list[GroupHeader]:
        """Run given prompts with other sampling settings; touches neither the data cursor nor the metrics of `take`."""
        ...

    def update_weights(self, update: WeightUpdate) -> None:
        """Load published weights into every engine and wake sleeping ones."""
        ...

    def write_trajectories(self, path: Path, groups: Sequence[GroupHeader], recording: Recording | None = None) -> None:
        """Write groups' trajectories to a file as JSON lines, in the background, and their tokens to another."""
        ...

    def take_spans(self) -> list[Span]:
        """When engines loaded weights since the last call, for the timeline."""
        ...

    def fetch_rows(self, group: GroupHeader) -> list[Sample]:
        """A group's training rows, with their tokens."""
        ...

    def fetch_record(self, group: GroupHeader) -> list[Trajectory]:
        """A group's trajectories, without their tokens."""
        ...

    def status(self) -> RolloutStatus:
        """What the rollouts are doing; may be called from another thread."""
        ...

    def engine_metrics(self, timeout_s: float) -> dict[int, list[Metric]]:
        """Each replica's own metrics, without those that do not answer in time; may be called from another thread."""
        ...
