"""One pass over a rank's micro-batches through Megatron's pipeline schedules: log-probs, or the loss and its gradient.

Gradients are sums. Each token's weight already includes the denominator of the whole mini-batch, so nothing may divide
again: with `calculate_per_token_loss` and a token count of 0 Megatron adds up micro-batches and data-parallel ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.pipeline_parallel import get_forward_backward_func
from torch import Tensor, nn

from rl.algorithms.mismatch import NUM_MAXIMA, NUM_SUMS, MismatchSums, mismatch_metrics
from rl.batches import MicroBatch, TokenColumns
from rl.config.correction import RolloutCorrection
from rl.training.head import HeadOutput, logprobs_and_entropy
from rl.training.model import unwrap_chunk
from rl.training.objective import MEANS, TOKEN_SUMS, Objective, TokenSums, policy_loss
from rl.training.parallel import ParallelState


@dataclass(slots=True, frozen=True)
class GradientReport:
    """Results of one forward and backward pass."""

    metrics: dict[str, float]
    """Metrics of the whole mini-batch, the same on every rank."""
    broken_samples: list[int]
    """Samples of this data-parallel rank with a NaN or Inf, as `MicroBatch.sample_ids` numbers them; on the last
    pipeline stage."""
    columns: list[TokenColumns]
    """For each micro-batch; empty before the last pipeline stage."""


def accumulate_gradients(
    chunks: list[Any], micro_batches: list[MicroBatch], objective: Objective, parallel: ParallelState
) -> GradientReport:
    """Forward and backward over all micro-batches; gradients end in the buffers, summed over data-parallel ranks.

    Args:
        chunks: From `rl.training.optimizer.wrap_chunks`, with zero gradients.
        micro_batches: This data-parallel rank's, at least one, as many on every rank.
        objective: What is minimized.
        parallel: This rank's place.

    Returns:
        Metrics `actor/pg_loss` (after importance weights), `actor/kl_loss`, `actor/entropy`, `actor/ppo_kl` and
        `actor/pg_clipfrac`, weighted as in the loss; `actor/kl`, the mean over the loss tokens; `actor/broken_tokens`;
        with a correction `training/rollout_probs_diff_mean` and `_max` and those of `rl.algorithms.mismatch`. Samples
        with a NaN or Inf.
    """

    def loss_of(micro_batch: MicroBatch, head: HeadOutput) -> tuple[Tensor, Tensor, TokenSums]:
        loss, sums = policy_loss(micro_batch, head, objective)
        return loss, torch.zeros((), dtype=torch.int, device=loss.device), sums

    results = _run(chunks, micro_batches, objective.temperature, parallel, loss_of, forward_only=False)
    metrics = _reduce_metrics(results, objective.correction, parallel)
    broken = _broken_samples(results, micro_batches) if metrics["actor/broken_tokens"] else []
    return GradientReport(metrics, broken, [result.columns for result in results])


def compute_logprobs(
    chunks: list[Any], micro_batches: list[MicroBatch], temperature: float, parallel: ParallelState
) -> list[Tensor]:
    """Log-probs of the targets, without gradient.

    Args:
        chunks: The model's.
        micro_batches: This data-parallel rank's.
        temperature: The sampling temperature.
        parallel: This rank's place.

    Returns:
        [T] float32 on the CPU for each micro-batch, 0 where `loss_mask` is 0; the same on every rank of the pipeline.
    """
    if not micro_batches:
        return []

    def logprobs_of(micro_batch: MicroBatch, head: HeadOutput) -> Tensor:
        return head.logprobs

    with torch.no_grad():
        results = _run(chunks, micro_batches, temperature, parallel, logprobs_of, forward_only=True)
    lengths = [m.num_tokens for m in micro_batches]
    joined = torch.cat(results) if results else torch.zeros(sum(lengths), device=parallel.device)
    _broadcast_from_last_stage(joined, parallel)
    return [part.clone() for part in joined.cpu().split(lengths)]


def _run(
    chunks: list[Any],
    micro_batches: list[MicroBatch],
    temperature: float,
    parallel: ParallelState,
    result_of: Callable[[MicroBatch, HeadOutput], Any],
    *,
    forward_only: bool,
) -> list[Any]:
    """Run Megatron's schedule; return each micro-batch's `result_of` on the last stage, else nothing."""

    def forward_step(micro_batches: Iterator[MicroBatch], chunk: nn.Module) -> tuple[Tensor, Callable[..., Any]]:
        micro_batch = next(micro_batches)
        return chunk(micro_batch), partial(finish, micro_batch, unwrap_chunk(chunk))

    def finish(micro_batch: MicroBatch, model: Any, hidden: Tensor, non_loss_data: bool = False) -> Any:
        head = logprobs_and_entropy(
            hidden,
            model.head_weight,
            micro_batch.target_ids,
            temperature=temperature,
            vocab_size=model.hf_config.vocab_size,
            parallel=parallel,
            sequence_parallel=model.config.sequence_parallel,
            mask=micro_batch.loss_mask,
        )
        return result_of(micro_batch, head)

    on_device = [m.to(parallel.device) for m in micro_batches]
    iterators = [iter(on_device) for _ in chunks]
    schedule = get_forward_backward_func()
    results: list[Any] = schedule(
        forward_step_func=forward_step,
        data_iterator=iterators if len(chunks) > 1 else iterators[0],
        model=chunks if len(chunks) > 1 else chunks[0],
        num_microbatches=len(micro_batches),
        seq_length=on_device[0].num_tokens,  # not used: lengths vary
        micro_batch_size=1,
        forward_only=forward_only,
        collect_non_loss_data=forward_only,
    )
    return results


def _reduce_metrics(
    results: list[TokenSums], correction: RolloutCorrection | None, parallel: ParallelState
) -> dict[str, float]:
    """Reduce the metrics of all ranks' micro-batches; `results` is empty before the last stage."""
    num_own = len(MEANS) + len(TOKEN_SUMS) + 2
    sums = torch.zeros(num_own + NUM_SUMS, device=parallel.device)
    maxima = torch.full((1 + NUM_MAXIMA,), -torch.inf, device=parallel.device)
    if results:
        sums = torch.stack([torch.cat([r.sums, r.mismatch.sums]) for r in results]).sum(0)
        maxima = torch.stack([torch.cat([r.largest_difference[None], r.mismatch.maxima]) for r in results]).amax(0)
    dist.all_reduce(sums, group=parallel.dp_group)
    dist.all_reduce(maxima, op=dist.ReduceOp.MAX, group=parallel.dp_group)
    joined = torch.cat([sums, maxima])
    _broadcast_from_last_stage(joined, parallel)
    own, mismatch, largest, extremes = joined.cpu().split([num_own, NUM_SUMS, 1, NUM_MAXIMA])
    *means, difference, kl, num_tokens, num_broken = own.tolist()
    metrics = dict(zip(MEANS, means, strict=True))
    metrics["actor/kl"] = kl / max(num_tokens, 1.0)
    metrics["actor/broken_tokens"] = num_broken
    if correction is not None:
        metrics["training/rollout_probs_diff_mean"] = difference / max(num_tokens, 1.0)
        metrics["training/rollout_probs_diff_max"] = float(largest)
        metrics |= mismatch_metrics(MismatchSums(mismatch, extremes), correction)
    return metrics


def _broken_samples(results: list[TokenSums], micro_batches: list[MicroBatch]) -> list[int]:
    found: set[int] = set()
    for result, micro_batch in zip(results, micro_batches, strict=False):  # no results before the last stage
        found |= set(micro_batch.sample_ids[result.is_broken.cpu()].tolist())
    return sorted(found)


def _broadcast_from_last_stage(tensor: Tensor, parallel: ParallelState) -> None:
    if parallel.pp_size > 1:
        dist.broadcast(
            tensor, src=dist.get_global_rank(parallel.pp_group, parallel.pp_size - 1), group=parallel.pp_group
        )
