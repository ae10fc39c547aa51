"""One pass over a rank's micro-batches through Megatron's pipeline schedules: log-probs, or the loss and its gradient.

Gradients are sums. Each token's weight already holds the denominator of the whole mini-batch, so nothing may divide
again: with `calculate_per_token_loss` and a token count of 0 Megatron adds up micro-batches and data-parallel ranks.

A NaN or Inf in the log-probs or the loss of any token makes the gradient NaN on every rank, even where a clip or a
bound would have hidden it: the optimizer then skips the step.
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

from rl.algorithms.aggregation import sequence_ids
from rl.algorithms.importance import correct
from rl.algorithms.kl import kl_estimate
from rl.algorithms.losses import LOSSES
from rl.algorithms.mismatch import NUM_MAXIMA, NUM_SUMS, MismatchSums, mismatch_metrics, mismatch_sums
from rl.algorithms.token_loss import PolicyLoss
from rl.config.correction import RolloutCorrection
from rl.config.schema import Config, KlPenalty
from rl.training.head import HeadOutput, logprobs_and_entropy
from rl.training.parallel import ParallelState
from rl.types import MicroBatch


@dataclass(slots=True, frozen=True)
class Objective:
    """What is minimized: sum of loss_weights * (w * policy loss + kl_coef * KL - entropy_coef * entropy).

    w is the importance weight of `correction`; tokens of rejected sequences count in no term, but in the denominators.
    """

    loss: PolicyLoss
    temperature: float
    """Of the distribution that was sampled from."""
    clip_low: float = 0.2
    clip_high: float = 0.2
    clip_c: float | None = None
    """Bound of the dual clip."""
    kl_coef: float = 0.0
    kl_kind: KlPenalty = KlPenalty.LOW_VAR_KL
    entropy_coef: float = 0.0
    correction: RolloutCorrection | None = None
    """None: nothing was rolled out."""

    @staticmethod
    def of(config: Config) -> Objective:
        """The objective of reinforcement learning."""
        rl = config.rl_config
        return Objective(
            loss=LOSSES[rl.policy_loss],
            temperature=config.generate_config.sampling_config.temperature,
            clip_low=rl.clip_ratio_low if rl.clip_higher_enable else rl.clip_ratio,
            clip_high=rl.clip_ratio_high if rl.clip_higher_enable else rl.clip_ratio,
            clip_c=rl.clip_ratio_c,
            kl_coef=rl.init_kl_coef,
            kl_kind=rl.kl_penalty,
            entropy_coef=rl.entropy_coeff,
            correction=rl.rollout_correction,
        )

    @staticmethod
    def of_sft() -> Objective:
        """The objective of the cold start: the likelihood of demonstrations, at temperature 1."""
        return Objective(loss=LOSSES["sft"], temperature=1.0)


_MEANS = ("actor/pg_loss", "actor/kl_loss", "actor/entropy", "actor/ppo_kl", "actor/pg_clipfrac")
"""Metrics that are sums over tokens, each weighted as in the loss: so they are means of the mini-batch."""


@dataclass(slots=True, frozen=True)
class TokenSums:
    """What is logged of one micro-batch."""

    sums: Tensor
    """[len(_MEANS) + 3]: `_MEANS`, then the rollout's differences in probability, loss tokens, and broken ones."""
    largest_difference: Tensor
    """Scalar: the largest difference in probability."""
    mismatch: MismatchSums
    is_broken: Tensor
    """[T] bool, loss tokens with a NaN or Inf."""


@dataclass(slots=True, frozen=True)
class GradientReport:
    """What came of one pass forward and backward."""

    metrics: dict[str, float]
    """Of the whole mini-batch, the same on every rank."""
    broken_samples: list[int]
    """Samples of this data-parallel rank with a NaN or Inf, as `MicroBatch.sample_ids` numbers them; on the last
    pipeline stage."""


def policy_loss(micro_batch: MicroBatch, head: HeadOutput, objective: Objective) -> tuple[Tensor, TokenSums]:
    """The loss of one micro-batch: its share of the mini-batch's, to be summed.

    Args:
        micro_batch: On the device of `head`.
        head: Current log-probs, with gradient, and entropy.
        objective: What is minimized.

    Returns:
        The scalar loss, NaN with a NaN gradient where any token is broken, and what is logged of it.
    """
    weights, mask, current = micro_batch.loss_weights, micro_batch.loss_mask, head.logprobs.detach()
    ids = sequence_ids(micro_batch.cu_seqlens, mask)
    old, trained = _old_and_trained(micro_batch, current, objective.correction)
    token = objective.loss(
        head.logprobs,
        old,
        micro_batch.advantages,
        clip_low=objective.clip_low,
        clip_high=objective.clip_high,
        clip_c=objective.clip_c,
        loss_mask=mask,
        sequence_ids=ids,
    )
    settings = objective.correction or _NO_CORRECTION
    correction = correct(trained - micro_batch.rollout_logprobs, ids, settings)
    per_token = policy = correction.weights * token.loss
    kl = torch.zeros_like(current)
    if micro_batch.ref_logprobs is not None:
        kl = kl_estimate(head.logprobs, micro_batch.ref_logprobs, objective.kl_kind)
        per_token = per_token + objective.kl_coef * kl
    if objective.entropy_coef:
        per_token = per_token - objective.entropy_coef * head.entropy
    loss = (weights * correction.is_kept * per_token).sum()
    is_broken = _is_broken(micro_batch, old, current, per_token) & (mask > 0)
    logged = torch.stack([policy * correction.is_kept, kl, head.entropy, token.ppo_kl, token.is_clipped]).detach()
    difference = (micro_batch.rollout_logprobs.exp() - trained.exp()).abs() * mask
    counts = torch.stack([difference.sum(), mask.sum(), is_broken.float().sum()])
    sums = TokenSums(
        torch.cat([(logged * weights).sum(1), counts]),
        difference.max(),
        mismatch_sums(trained, micro_batch.rollout_logprobs, ids, correction, settings),
        is_broken,
    )
    # Added, not multiplied: where a clamp has stopped the gradient, NaN times it is 0.
    return loss + torch.where(is_broken.any(), torch.nan, 0.0) * head.logprobs.sum(), sums


_NO_CORRECTION = RolloutCorrection(rollout_is=None)


def _old_and_trained(
    micro_batch: MicroBatch, current: Tensor, correction: RolloutCorrection | None
) -> tuple[Tensor, Tensor]:
    """Log-probs that the policy loss measures the change from, and those that the engine's are compared with."""
    if correction is not None and correction.bypass_mode:
        return micro_batch.rollout_logprobs, current
    old = current if micro_batch.old_logprobs is None else micro_batch.old_logprobs
    return old, old


def _is_broken(micro_batch: MicroBatch, old: Tensor, current: Tensor, per_token: Tensor) -> Tensor:
    """[T] bool, where a number that enters the loss is NaN or Inf; bounds may hide it from the loss itself."""
    numbers = [per_token.detach(), current, old, micro_batch.rollout_logprobs, micro_batch.advantages]
    if micro_batch.ref_logprobs is not None:
        numbers.append(micro_batch.ref_logprobs)
    return ~torch.isfinite(torch.stack(numbers)).all(0)


def accumulate_gradients(
    chunks: list[Any], micro_batches: list[MicroBatch], objective: Objective, parallel: ParallelState
) -> GradientReport:
    """Forward and backward over all micro-batches; gradients end in the buffers, summed over data-parallel ranks.

    Args:
        chunks: As `rl.training.optimizer.wrap_chunks` returned them, gradients zero.
        micro_batches: This data-parallel rank's, at least one, as many on every rank.
        objective: What is minimized.
        parallel: This rank's place.

    Returns:
        Metrics `actor/pg_loss` (after importance weights), `actor/kl_loss`, `actor/entropy`, `actor/ppo_kl`,
        `actor/pg_clipfrac` and `actor/broken_tokens`; with a correction `training/rollout_probs_diff_mean` and `_max`
        and those of `rl.algorithms.mismatch`. Samples with a NaN or Inf.
    """

    def loss_of(micro_batch: MicroBatch, head: HeadOutput) -> tuple[Tensor, Tensor, TokenSums]:
        loss, sums = policy_loss(micro_batch, head, objective)
        return loss, torch.zeros((), dtype=torch.int, device=loss.device), sums

    results = _run(chunks, micro_batches, objective.temperature, parallel, loss_of, forward_only=False)
    metrics = _reduce_metrics(results, objective.correction, parallel)
    broken = _broken_samples(results, micro_batches) if metrics["actor/broken_tokens"] else []
    return GradientReport(metrics, broken)


def compute_logprobs(
    chunks: list[Any], micro_batches: list[MicroBatch], temperature: float, parallel: ParallelState
) -> list[Tensor]:
    """Log-probs of the targets, without gradient.

    Args:
        chunks: The model's.
        micro_batches: This data-parallel rank's.
        temperature: Of the distribution that was sampled from.
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
    """Run Megatron's schedule; what `result_of` gave for each micro-batch, on the last stage, else nothing."""

    def forward_step(micro_batches: Iterator[MicroBatch], chunk: nn.Module) -> tuple[Tensor, Callable[..., Any]]:
        micro_batch = next(micro_batches)
        return chunk(micro_batch), partial(finish, micro_batch, _unwrap(chunk))

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
    """Join what the micro-batches of all ranks have to log; `results` is empty before the last stage."""
    num_own = len(_MEANS) + 3
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
    *means, difference, num_tokens, num_broken = own.tolist()
    metrics = dict(zip(_MEANS, means, strict=True))
    metrics["actor/broken_tokens"] = num_broken
    if correction is not None:
        metrics["training/rollout_probs_diff_mean"] = difference / max(num_tokens, 1.0)
        metrics["training/rollout_probs_diff_max"] = float(largest)
        metrics |= mismatch_metrics(MismatchSums(mismatch, extremes), correction)
    return metrics


def _broken_samples(results: list[TokenSums], micro_batches: list[MicroBatch]) -> list[int]:
    found: set[int] = set()
    for result, micro_batch in zip(results, micro_batches, strict=False):  # no results before the last stage
        if micro_batch.sample_ids is not None:
            owners = micro_batch.sample_ids.repeat_interleave(micro_batch.cu_seqlens.diff().long())
            found |= set(owners[result.is_broken.cpu()].tolist())
    return sorted(found)


def _broadcast_from_last_stage(tensor: Tensor, parallel: ParallelState) -> None:
    if parallel.pp_size > 1:
        dist.broadcast(
            tensor, src=dist.get_global_rank(parallel.pp_group, parallel.pp_size - 1), group=parallel.pp_group
        )


def _unwrap(chunk: Any) -> Any:
    while not hasattr(chunk, "hf_config"):
        chunk = chunk.module
    return chunk
