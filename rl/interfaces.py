"""What the rooms ask of each other. Structural types: implementations do not inherit from these."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from rl.types import (
    Generation,
    Group,
    MicroBatch,
    Prompt,
    RunPlace,
    Sampling,
    ToolCall,
    ToolResult,
    Trajectory,
    WeightUpdate,
)

if TYPE_CHECKING:  # as in rl.types
    from torch import Tensor


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


class Tool(Protocol):
    """A session of one tool for one trajectory (`rl.tools.base`)."""

    async def execute(self, call: ToolCall) -> ToolResult:
        """Run one call. Never raises for what the model or the service did wrong: that is in the result's status."""
        ...


Score = Callable[[Trajectory], Awaitable[None]]
"""Fills `score`, `rewards` and `reward_error` of a trajectory in place; never raises for a failing reward."""


class Actor(Protocol):
    """The trained policy, one rank of it (`rl.training.actor.Actor`)."""

    def compute_logprobs(self, micro_batches: list[MicroBatch]) -> list[Tensor]:
        """Log-probs [T] float32 on CPU of `target_ids`, one tensor for each micro-batch (the same on every rank)."""
        ...

    def update(
        self, mini_batch: list[MicroBatch], *, place: RunPlace | None = None, kl_coef: float | None = None
    ) -> dict[str, float]:
        """One optimizer step on this rank's micro-batches; metrics reduced over all ranks."""
        ...

    def export_hf_weights(self) -> Iterator[tuple[str, Tensor]]:
        """Tensors of this pipeline stage under Hugging Face names, tensor-parallel shards joined.

        A collective over the tensor-parallel group; every rank must exhaust the iterator.
        """
        ...

    def save_checkpoint(self, directory: Path) -> None:
        """Write Hugging Face weights and the optimizer's state, collectively."""
        ...

    def load_checkpoint(self, directory: Path) -> None:
        """Restore what `save_checkpoint` wrote, under any parallel layout."""
        ...


class Rollouts(Protocol):
    """Where scored groups come from (`rl.cluster.group.RolloutGroup`)."""

    def take(self, num_prompts: int, metrics: MutableMapping[str, float]) -> list[Group]:
        """Run the next prompts of the dataset to scored groups.

        Args:
            num_prompts: Groups to train on; with `filter_groups_enable` informative ones.
            metrics: Gets `rollout/{carried,surplus,missing}_groups`, `rollout/engine_idle_share`, `timing_s/reward`.

        Raises:
            RolloutError: No rollout worker is left, or too many trajectories met an unavailable service.
            RewardError: No reward gives `filter_groups_metric`.
        """
        ...

    def evaluate(self, prompts: list[Prompt], sampling: Sampling, num_samples: int = 1) -> list[Group]:
        """Run given prompts with other sampling settings; touches neither the data cursor nor the metrics of `take`."""
        ...
