"""The records of training: row, micro-batch, mini-batch, batch.

Two alignments are used, and only two:

* *token-aligned* (`Sample`): index t belongs to token t; `loss_mask[0]` is always 0, because nothing predicts the first
  token.
* *prediction-aligned* (`MicroBatch`): index t belongs to the prediction made *at* token t, so `target_ids[t]` is the
  next token and `loss_mask[t]`, `advantages[t]`, `*_logprobs[t]` belong to that target. `rl.batch.packing` shifts.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rl.types import FloatArray, IntArray, RowHeader, TrajectoryHeader

if TYPE_CHECKING:  # rewards and tools start without loading torch
    import torch
    from torch import Tensor


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
    """[L] float32, 0 where `loss_mask` is 0. None: they are made after the row was packed."""
    rollout_logprobs: FloatArray
    """[L] float32, 0 where `loss_mask` is 0."""
    versions: IntArray | None = None
    """[L] int32, the `policy_version` that sampled each token, -1 elsewhere. None: demonstrations."""


@dataclass(slots=True)
class MicroBatch:
    """Samples packed one behind the other without padding, prediction-aligned. T tokens, S sequences."""

    token_ids: Tensor
    """[T] int64."""
    target_ids: Tensor
    """[T] int64, the next token of the same sequence; 0 at the last position of each."""
    position_ids: Tensor
    """[T] int64, from 0 in each sequence, or from the length of its prefix."""
    cu_seqlens: Tensor
    """[S + 1] int32, sequence boundaries, from 0 to T."""
    prefix_ids: Tensor
    """[S] int64, the sequence of this micro-batch whose tokens come before this one's own, or -1; it stands earlier,
    and may have one before it too. A group's prompt is held once, without its last token; each answer's sequence begins
    with that token and names the prompt here. What all prompts begin with is a sequence before those."""
    loss_mask: Tensor
    """[T] float32, 1 where `target_ids` was sampled by the model."""
    rollout_logprobs: Tensor
    """[T] float32."""
    loss_weights: Tensor | None = None
    """[T] float32. The loss is sum(loss_weights * per-token loss) over micro-batches and ranks, no further division:
    the denominator of the whole mini-batch is already in here (see `rl.algorithms.aggregation`). This and the next
    columns are filled after packing."""
    advantages: Tensor | None = None
    """[T] float32."""
    old_logprobs: Tensor | None = None
    """[T] float32. None: the current ones are the old ones (one optimizer step per batch)."""
    ref_logprobs: Tensor | None = None
    """[T] float32. None: no KL term."""
    sample_ids: Tensor | None = None
    """[S] int64, where each sequence's sample stands in `MiniBatch.trajectory_ids`; -1: a shared prompt or padding."""

    @property
    def num_tokens(self) -> int:
        """T, padding of the packing included."""
        return int(self.token_ids.numel())

    def to(self, device: torch.device) -> MicroBatch:
        """Copy every tensor to a device."""
        moved = {name: getattr(self, name) for name in self.__slots__}
        return MicroBatch(**{k: v.to(device, non_blocking=True) if v is not None else None for k, v in moved.items()})


@dataclass(slots=True)
class MiniBatch:
    """What one optimizer step consumes, packed for all ranks: for a script or a test in one process."""

    micro_batches: list[list[MicroBatch]]
    """[data-parallel rank][i]; the same number on every rank, filled up with zero-weight ones."""
    num_loss_tokens: int
    num_trajectories: int
    trajectory_ids: list[str] = field(default_factory=list)
    """Of each sample, in order."""


@dataclass(slots=True)
class Batch:
    """A mini-batch for each optimizer step."""

    mini_batches: list[MiniBatch]


@dataclass(slots=True, frozen=True)
class MicroBatchPlan:
    """Which tokens of which rows a micro-batch holds. S segments, in order."""

    segments: NDArray[np.int32]
    """[S, 5]: the row's number in the mini-batch, the first token, the token after the last, the segment that comes
    before it or -1, and 1 where the tokens are the row's own, 0 where several rows share them."""
    padding: int
    """Tokens of padding behind them."""


@dataclass(slots=True)
class MiniBatchPlan:
    """What one optimizer step consumes: row numbers in place of tokens."""

    rows: list[int]
    """Numbers of its rows in the batch."""
    micro_batches: list[list[MicroBatchPlan]]
    """[data-parallel rank][i]; the same number on every rank, filled up with empty ones."""
    num_loss_tokens: int
    num_trajectories: int


@dataclass(slots=True, frozen=True)
class RowPlace:
    """Where a row of the batch is found, and whose it is."""

    header: RowHeader
    trajectory: int
    """Number of its trajectory in the batch."""
    source: int
    """Number of the object in `BatchPlan.sources` that holds it."""
    index: int
    """Its place there."""


@dataclass(slots=True)
class BatchPlan:
    """A step's batch as the driver sees it: headers and arithmetic. The ranks fetch the rows and pack them."""

    rows: list[RowPlace]
    """The training rows; none where there is nothing to learn from."""
    sources: list[Any]
    """References to lists of `Sample`, or the lists themselves."""
    mini_batches: list[MiniBatchPlan]
    epochs: int
    trajectory_ids: list[str]
    """Of the trajectories that the rows belong to."""
    members: list[TrajectoryHeader] = field(default_factory=list)
    """The trajectories that advantages are estimated over, more than the rows' where groups were left out; empty for
    demonstrations."""
    group_ids: list[int] = field(default_factory=list)
    """The group of each member."""
    advantages: list[RowAdvantages] = field(default_factory=list)
    """Of each row, once they are estimated."""
    weights: list[float] = field(default_factory=list)
    """The weight of each loss token of a row, from the row's mini-batch."""


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
    """For each row number of the batch, its source and its place there."""
    mini_batches: list[tuple[list[int], list[MicroBatchPlan]]]
    """For each mini-batch its row numbers and this rank's micro-batches."""


@dataclass(slots=True, frozen=True)
class RunPlace:
    """How far a run is in one of its steps; the learning rate follows it."""

    step: int
    """Number of the step, from 0; one that trains on nothing counts too."""
    num_steps: int
    """Steps of the whole run, as the rows that were used up to this step let expect."""


@dataclass(slots=True, frozen=True)
class UpdateReport:
    """What came of the optimizer steps of one batch."""

    metrics: dict[str, float]
    offending: list[str] = field(default_factory=list)
    """Ids of the trajectories whose NaN or Inf made an optimizer step be skipped; all of the mini-batch's where their
    log-probs were finite and the gradient was not."""
