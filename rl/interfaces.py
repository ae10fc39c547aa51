"""What the rooms ask of each other. Structural types: implementations do not inherit from these."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from rl.batches import BatchPlan, RunPlace, Sample, UpdateReport
from rl.types import Generation, GroupHeader, Prompt, Sampling, Scores, Trajectory, WeightUpdate


@runtime_checkable
class Engine(Protocol):
    """Samples tokens from token ids (`rl.inference.engine.VllmEngine`, `rl.inference.fake.FakeEngine`)."""

    async def generate(self, token_ids: list[int], sampling: Sampling, *, session_id: str) -> Generation:
        """Continue `token_ids`.

        Args:
            token_ids: The prompt, never empty.
            sampling: `max_tokens` bounds the new tokens.
            session_id: Requests of one trajectory share it, so that a router can keep their prefix on one replica.

        Returns:
            The sampled ids and their log-probs; with `FinishReason.ABORT` when a weight publish interrupted it.

        Raises:
            RolloutError: The engine died.
        """
        ...

    async def update_weights(self, update: WeightUpdate) -> None:
        """Wake up, load published weights, drop the prefix cache, abort requests in flight, stamp the new version.

        Raises:
            WeightSyncError: The checksum of the loaded tensors differs from `update.checksum`.
        """
        ...

    async def sleep(self) -> None:
        """Free the accelerator's memory for the actor, weights included; nothing on CPU.

        The next publish wakes the engine; until then it may refuse requests.
        """
        ...

    async def shutdown(self) -> None:
        """End the engine's processes."""
        ...


Score = Callable[[Trajectory], Awaitable[Scores]]
"""What the rewards give to a trajectory; never raises for a failing reward."""


class Checkpointed(Protocol):
    """What a checkpoint holds of the models."""

    def save_checkpoint(self, directory: Path) -> None:
        """Write Hugging Face weights and the optimizer's state."""
        ...

    def load_checkpoint(self, directory: Path) -> None:
        """Restore what `save_checkpoint` wrote, under any parallel layout."""
        ...


class DataPlace(Protocol):
    """A place in the data, which a checkpoint keeps (`Rollouts`, `rl.data.cursor.PromptCursor`)."""

    def expected_steps(self, completed: int) -> int | None:
        """Steps of the whole run, as far as the data tells; None: without end."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps, as plain values."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        ...


class Actor(Checkpointed, Protocol):
    """The trained policy as the pages see it, with the reference where a KL term needs one.

    `rl.cluster.actors.ActorGroup` calls the ranks, each a `rl.training.actor.Actor`.
    """

    @property
    def num_data_parallel(self) -> int:
        """Ranks that train on different samples."""
        ...

    def fill_old_logprobs(self, plan: BatchPlan) -> None:
        """Compute the log-probs of the policy as it is now, where the update needs them."""
        ...

    def fill_ref_logprobs(self, plan: BatchPlan) -> dict[str, float]:
        """Compute the reference's log-probs, where a KL term needs them; returns metrics.

        With the KL term in the reward it fills in `kl_penalty` of the batch's trajectories.
        """
        ...

    def update(self, plan: BatchPlan, place: RunPlace) -> UpdateReport:
        """One optimizer step for each mini-batch and epoch; `plan.advantages` are filled."""
        ...

    def publish(self, version: int) -> WeightUpdate:
        """Write the weights where engines can load them."""
        ...


class Rollouts(DataPlace, Protocol):
    """Where scored groups come from (`rl.cluster.rollouts.RolloutGroup`)."""

    def take(self, num_prompts: int, metrics: MutableMapping[str, float]) -> list[GroupHeader]:
        """Run the next prompts of the dataset to scored groups.

        Args:
            num_prompts: Groups to train on; with `filter_groups_enable` informative ones.
            metrics: Gets `rollout/{carried,surplus,missing}_groups`, `rollout/engine_idle_share`, `timing_s/reward`.

        Raises:
            RolloutError: No rollout worker is left, or too many trajectories met an unavailable service.
            RewardError: No reward gives `filter_groups_metric`.
        """
        ...

    def evaluate(self, prompts: list[Prompt], sampling: Sampling, num_samples: int = 1) -> list[GroupHeader]:
        """Run given prompts with other sampling settings; touches neither the data cursor nor the metrics of `take`."""
        ...

    def update_weights(self, update: WeightUpdate) -> None:
        """Load published weights into every engine, which wakes those that sleep."""
        ...

    def write_trajectories(self, path: Path, groups: Sequence[GroupHeader]) -> None:
        """Write groups' trajectories to a file, a JSON line each, while the run goes on."""
        ...

    def fetch_rows(self, group: GroupHeader) -> list[Sample]:
        """A group's training rows, with their tokens."""
        ...

    def fetch_record(self, group: GroupHeader) -> list[Trajectory]:
        """A group's trajectories, without their tokens."""
        ...
