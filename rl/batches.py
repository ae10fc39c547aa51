"""The records of training, in the order the data flows: header, row, plan, micro-batch.

There are two alignments:

* *token-aligned* (`Sample`): index t belongs to token t; `loss_mask[0]` is always 0, because nothing predicts the first
  token.
* *prediction-aligned* (`MicroBatch`): index t belongs to the prediction made *at* token t, so `target_ids[t]` is the
  next token and `loss_mask[t]`, `advantages[t]`, `*_logprobs[t]` belong to that target. `rl.batch.packing` shifts.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rl.types import FloatArray, IntArray, Prompt, SequenceStart, StopReason, ToolResult

if TYPE_CHECKING:  # rewards and tools start without loading torch
    import torch
    from torch import Tensor


@dataclass(slots=True, frozen=True)
class RowHeader:
    """What the plan of a step needs to know about a training row. The row itself stays where it was made."""

    length: int
    """Tokens."""
    num_loss_tokens: int
    shared_length: int
    """Number of leading unsampled tokens in common with `GroupHeader.prompt_ids`."""
    path: tuple[tuple[int, int], ...]
    """Its place in the tree of the group's rows, see `rl.batch.tree.paths_of`."""


class Exclusion(StrEnum):
    """Why a trajectory is not trained on."""

    NO_SCORE = "no_score"
    """Its reward or the infrastructure failed."""
    CUT_OFF = "cut_off"
    """The token budget ended it, and `overlong_filter_enable` is set."""
    NOTHING_SAMPLED = "nothing_sampled"
    UNIFORM_GROUP = "uniform_group"
    """Its group does not differ in `filter_groups_metric`."""
    ZERO_ADVANTAGE = "zero_advantage"
    """All advantages of its group are 0."""


@dataclass(slots=True, frozen=True)
class Use:
    """What training made of a trajectory."""

    kl_penalty: float = 0.0
    """The KL term in the reward, subtracted from the score before advantages."""
    reward: float | None = None
    """The score after length shaping and `kl_penalty`, from which advantages follow. None: not computed."""
    advantage: float | None = None
    """Mean over its sampled tokens. None: not estimated."""
    exclusion: Exclusion | None = None
    """Why it is not trained on; None if it is."""


@dataclass(slots=True)
class TrajectoryHeader:
    """What the driver needs to know about a trajectory: no tokens, no texts."""

    id: str
    stop_reason: StopReason
    score: float | None
    rewards: dict[str, float]
    reward_error: str | None
    failure: str | None
    """Why the trajectory has no score, in words."""
    turn_tokens: list[int]
    """Sampled tokens of each turn."""
    turn_rewards: list[float]
    """Rewards of each turn from tools and reward functions; 0 without any."""
    results: list[ToolResult]
    """Tool results of all turns, without texts."""
    num_tool_calls: int
    prompt_length: int
    response_length: int
    num_sampled: int
    tool_s: float
    """Seconds spent waiting for tools."""
    wall_s: float
    policy_versions: list[int]
    rows: list[RowHeader]
    """One for each token sequence with sampled tokens."""
    repetition: float = 0.0
    """Share of repeated text; see `rl.rollout.signs.repetition`."""
    num_unread_calls: int = 0
    """Turns that look like a tool call but were not read as one."""
    num_untrained: int = 0
    """Tokens that were sampled from another distribution than the run's, and are context."""
    num_as_sampled: int = 0
    """Tokens to train on that are those that the engine sampled, by the turns' checksums."""
    starts: list[SequenceStart] = field(default_factory=list)
    """How each token sequence began."""
    kl_penalty: float = 0.0
    """This and the next three: see `Use`."""
    reward: float | None = None
    advantage: float | None = None
    exclusion: Exclusion | None = None
    tokens_by_version: dict[int, int] = field(default_factory=dict)
    """Tokens to train on, by the `policy_version` that sampled them."""
    ended_at: float = 0.0
    """When it was scored, seconds since 1970."""
    answer: str = ""
    """The normalized answer, for the majority vote of an evaluation; empty in training."""

    @property
    def use(self) -> Use:
        """What training made of the trajectory."""
        return Use(self.kl_penalty, self.reward, self.advantage, self.exclusion)


@dataclass(slots=True)
class GroupHeader:
    """A scored group as the driver sees it. Its tokens and texts stay where they were made, behind references."""

    prompt: Prompt
    trajectories: list[TrajectoryHeader]
    prompt_ids: IntArray
    """[P] int32, the tokens of the group's first row before its first sampled one."""
    rows: Any
    """Reference to the group's training rows, a `list[Sample]`, in the order of `TrajectoryHeader.rows`."""
    record: Any
    """Reference to the group's `list[Trajectory]`, without tokens."""


@dataclass(slots=True)
class Sample:
    """One training row, token-aligned. L is its length."""

    trajectory_id: str
    group_id: str
    token_ids: IntArray
    """[L] int32."""
    loss_mask: NDArray[np.uint8]
    """[L] uint8, 1 on sampled tokens."""
    advantages: FloatArray | None
    """[L] float32, 0 where `loss_mask` is 0. None: estimated after packing."""
    rollout_logprobs: FloatArray
    """[L] float32, 0 where `loss_mask` is 0."""
    versions: IntArray | None = None
    """[L] int32, the `policy_version` that sampled each token, -1 elsewhere. None: demonstrations."""


@dataclass(slots=True)
class MicroBatch:
    """Samples packed end to end without padding, prediction-aligned. T tokens, S sequences."""

    token_ids: Tensor
    """[T] int64."""
    target_ids: Tensor
    """[T] int64, the next token of the same sequence; 0 at the last position of each."""
    position_ids: Tensor
    """[T] int64, from 0 in each sequence, or from the length of its prefix."""
    cu_seqlens: Tensor
    """[S + 1] int32, sequence boundaries, from 0 to T."""
    prefix_ids: Tensor
    """[S] int64, index of the earlier sequence that is this one's prefix, or -1; it may have a prefix too. What several
    samples begin with, such as a group's prompt or a trajectory's first turns, is stored once, without its last token;
    each continuation begins with that token, since it predicts another one, and points to the prefix here. The common
    start of all prompts is a sequence before them."""
    loss_mask: Tensor
    """[T] float32, 1 where `target_ids` was sampled by the model."""
    rollout_logprobs: Tensor
    """[T] float32."""
    sample_ids: Tensor
    """[T] int64, index in `MiniBatch.trajectory_ids` of the sample that trains on the target; -1 where none does."""
    loss_weights: Tensor | None = None
    """[T] float32. The loss is sum(loss_weights * per-token loss) over micro-batches and ranks, without further
    division: the weights include the denominator of the whole mini-batch (see `rl.algorithms.aggregation`). This and
    the next three columns are filled after packing."""
    advantages: Tensor | None = None
    """[T] float32."""
    old_logprobs: Tensor | None = None
    """[T] float32. None: the same as the current ones (one optimizer step per batch)."""
    ref_logprobs: Tensor | None = None
    """[T] float32. None: no KL term."""

    @property
    def num_tokens(self) -> int:
        """T, including padding."""
        return int(self.token_ids.numel())

    def to(self, device: torch.device) -> MicroBatch:
        """Copy every tensor to a device."""
        moved = {name: getattr(self, name) for name in self.__slots__}
        return MicroBatch(**{k: v.to(device, non_blocking=True) if v is not None else None for k, v in moved.items()})


@dataclass(slots=True)
class MiniBatch:
    """The input of one optimizer step, packed for all ranks, for scripts and tests in one process."""

    micro_batches: list[list[MicroBatch]]
    """[data-parallel rank][i]; the same number on every rank, some with zero weight."""
    num_loss_tokens: int
    num_trajectories: int
    trajectory_ids: list[str] = field(default_factory=list)
    """Id of each sample's trajectory, in order."""


@dataclass(slots=True)
class Batch:
    """A mini-batch for each optimizer step."""

    mini_batches: list[MiniBatch]


@dataclass(slots=True, frozen=True)
class MicroBatchPlan:
    """Which tokens of which rows a micro-batch holds. S segments, in order."""

    segments: NDArray[np.int32]
    """[S, 5]: row number in the mini-batch, first token, token after the last, prefix segment or -1, and 1 if the
    segment is the end of the row, 0 if several rows share it."""
    padding: int
    """Padding tokens at the end."""


@dataclass(slots=True)
class MiniBatchPlan:
    """The input of one optimizer step, with row numbers instead of tokens."""

    rows: list[int]
    """Row numbers in the batch."""
    micro_batches: list[list[MicroBatchPlan]]
    """[data-parallel rank][i]; the same number on every rank, some empty."""
    num_loss_tokens: int
    num_trajectories: int


@dataclass(slots=True, frozen=True)
class RowPlace:
    """Location and trajectory of a row of the batch."""

    header: RowHeader
    trajectory: int
    """Number of its trajectory in the batch."""
    source: int
    """Index of the object in `BatchPlan.sources` that holds it."""
    index: int
    """Index in that object."""


@dataclass(slots=True)
class BatchPlan:
    """A step's batch as the driver sees it: headers and arithmetic. The ranks fetch the rows and pack them."""

    rows: list[RowPlace]
    """The training rows; empty if there is nothing to learn from."""
    sources: list[Any]
    """References to lists of `Sample`, or the lists themselves."""
    mini_batches: list[MiniBatchPlan]
    epochs: int
    trajectory_ids: list[str]
    """Ids of the trajectories; `RowPlace.trajectory` is an index into them."""
    members: list[TrajectoryHeader] = field(default_factory=list)
    """The trajectories for advantage estimation, including those of groups without rows; empty for demonstrations."""
    group_ids: list[int] = field(default_factory=list)
    """The group of each member."""
    advantages: list[RowAdvantages] = field(default_factory=list)
    """Advantages of each row, once estimated."""
    weights: list[float] = field(default_factory=list)
    """For each row, the weight of each of its loss tokens."""


@dataclass(slots=True, frozen=True)
class RowAdvantages:
    """Advantages of the sampled tokens of a row, in runs of equal values: one run, or one for each turn."""

    values: FloatArray
    """[K] float32."""
    num_tokens: IntArray
    """[K] int32; they sum to the row's sampled tokens."""


@dataclass(slots=True, frozen=True)
class Share:
    """The part of a batch that one data-parallel rank trains on."""

    sources: list[Any]
    """References to lists of `Sample`, or the lists themselves."""
    rows: dict[int, tuple[int, int]]
    """Index of the source and index in it, by row number in the batch."""
    mini_batches: list[tuple[list[int], list[MicroBatchPlan]]]
    """Row numbers and this rank's micro-batches, for each mini-batch."""


@dataclass(slots=True, frozen=True)
class RunPlace:
    """Position of a step in the run; it determines the learning rate."""

    step: int
    """Step number, from 0; steps without an update count too."""
    num_steps: int
    """Steps of the whole run, estimated from the rows used so far."""
    is_recorded: bool = False
    """The step's tokens are recorded, so the update keeps what it computes for each of them."""


@dataclass(slots=True, frozen=True)
class Recording:
    """Where the tokens of a step are recorded."""

    path: Path
    place: RunPlace


@dataclass(slots=True, frozen=True)
class TokenColumns:
    """What an update computed for each prediction of a micro-batch, without gradient. See `TrainedRow`."""

    old_logprobs: Tensor
    """[T] float32. This and the next four."""
    ratios: Tensor
    is_clipped: Tensor
    correction_weights: Tensor
    entropy: Tensor

    def cpu(self) -> TokenColumns:
        """A copy on the CPU."""
        return TokenColumns(**{name: getattr(self, name).cpu() for name in self.__slots__})


@dataclass(slots=True, frozen=True)
class TrainedRow:
    """What the update computed for the tokens of one row, token-aligned. L is its length; 0 on unsampled tokens.

    With several epochs, `ratios`, `is_clipped`, `correction_weights` and `entropy` are those of the last.
    """

    trajectory_id: str
    sequence: int
    """Number of the row in its trajectory, from 0."""
    old_logprobs: FloatArray
    """[L] float32, the actor's log-probs that are compared with the engine's: at the start of the batch, or with
    `bypass_mode` in the update itself."""
    ref_logprobs: FloatArray | None
    """[L] float32, the reference's. None: no KL term in the loss."""
    advantages: FloatArray
    """[L] float32."""
    loss_weights: FloatArray
    """[L] float32, see `MicroBatch.loss_weights`."""
    ratios: FloatArray
    """[L] float32, probability under the policy in the update over that which the loss compares it with."""
    is_clipped: NDArray[np.uint8]
    """[L] uint8, 1 where the loss clipped the ratio."""
    correction_weights: FloatArray
    """[L] float32, factor on the policy loss from `rollout_correction`, 1 without any, 0 if the sequence was
    rejected."""
    entropy: FloatArray
    """[L] float32, nats, of the distribution that the token was sampled from, under the policy in the update."""
    new_logprobs: FloatArray
    """[L] float32, the actor's after the step's updates."""


@dataclass(slots=True, frozen=True)
class RolloutStatus:
    """What the rollouts are doing at this moment, for monitoring."""

    groups_done: int
    groups_wanted: int
    groups_running: int
    prompts_waiting: int
    workers_alive: int


@dataclass(slots=True, frozen=True)
class UpdateReport:
    """Results of the optimizer steps of one batch."""

    metrics: dict[str, float]
    offending: list[str] = field(default_factory=list)
    """Ids of the trajectories whose NaN or Inf caused a skipped optimizer step; all of the mini-batch's if log-probs
    were finite but the gradient was not."""
