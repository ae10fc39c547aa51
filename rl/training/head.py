"""Log-probs and entropy from hidden states without materializing all logits.

The matrix product of the head, the softmax and their gradients run on one chunk of tokens at a time; each
tensor-parallel rank handles its part of the vocabulary.

With z = hidden @ weight^T / temperature and p = softmax(z), for a target y:

    logprob = z_y - log sum_j exp(z_j)          d logprob / d z_j = [j = y] - p_j
    entropy = log sum_j exp(z_j) - sum_j p_j z_j    d entropy / d z_j = -p_j (log p_j + entropy)

Matrix products use the dtype of the weights, everything else float32. If one chunk holds all tokens, its logits are
kept for the backward pass; otherwise the backward pass recomputes them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.tensor_parallel import (
    copy_to_tensor_model_parallel_region,
    gather_from_sequence_parallel_region,
)
from torch import Tensor
from torch.distributed import ProcessGroup

from rl.training.parallel import ParallelState

_PRODUCT_BYTES = 256 << 20
"""Size of one chunk's logits in the dtype of the weights; large, because each chunk reads all weights."""
_SOFTMAX_BYTES = {"cpu": 8 << 20, "cuda": 256 << 20}
"""Size of one block's logits in float32, by device; on the CPU they should fit into the cache."""


@dataclass(slots=True, frozen=True)
class HeadOutput:
    """Result of the head for each position."""

    logprobs: Tensor
    """[T] float32, log-prob of the target; 0 where masked."""
    entropy: Tensor
    """[T] float32, entropy of the predicted distribution; 0 where masked."""


def logprobs_and_entropy(
    hidden: Tensor,
    weight: Tensor,
    target_ids: Tensor,
    *,
    temperature: float,
    vocab_size: int,
    parallel: ParallelState,
    sequence_parallel: bool = False,
    mask: Tensor | None = None,
) -> HeadOutput:
    """Compute the log-prob of each target and the entropy of each prediction; differentiable in `hidden` and `weight`.

    Args:
        hidden: [T, H] or [T, 1, H], output of the last model chunk.
        weight: [padded V / tensor-parallel size, H], this rank's rows of the head.
        target_ids: [T] int64.
        temperature: Divides the logits, above 0.
        vocab_size: V without padding; padding rows are ignored.
        parallel: This rank's place.
        sequence_parallel: Whether `hidden` is this rank's part of the tokens.
        mask: [T], nonzero where the result is needed; other positions are not computed. None means all.

    Returns:
        The same on every tensor-parallel rank.
    """
    hidden = hidden.flatten(0, -2)
    if sequence_parallel:
        hidden = gather_from_sequence_parallel_region(hidden, tensor_parallel_output_grad=True)
    elif parallel.tp_size > 1:
        hidden = copy_to_tensor_model_parallel_region(hidden)
    wanted = None if mask is None or bool(mask.all()) else mask.nonzero().squeeze(1)
    if wanted is not None:
        hidden, target_ids = hidden.index_select(0, wanted), target_ids.index_select(0, wanted)
    shard = _VocabShard.of(weight, vocab_size, parallel)
    logprobs, entropy = _Head.apply(hidden, weight, target_ids, 1.0 / temperature, shard)
    if wanted is not None:
        zeros = logprobs.new_zeros(mask.shape[0])  # type: ignore[union-attr]
        logprobs, entropy = zeros.index_copy(0, wanted, logprobs), zeros.index_copy(0, wanted, entropy)
    return HeadOutput(logprobs, entropy)


@dataclass(slots=True, frozen=True)
class _VocabShard:
    """This rank's part of the vocabulary: ids [start, start + size)."""

    start: int
    size: int
    group: ProcessGroup | None

    @staticmethod
    def of(weight: Tensor, vocab_size: int, parallel: ParallelState) -> _VocabShard:
        rows = weight.shape[0]
        start = min(parallel.tp_rank * rows, vocab_size)
        group = parallel.tp_group if parallel.tp_size > 1 else None
        return _VocabShard(start, min(rows, vocab_size - start), group)

    def reduce(self, tensor: Tensor, op: Any = dist.ReduceOp.SUM) -> Tensor:
        if self.group is not None:
            dist.all_reduce(tensor, op=op, group=self.group)
        return tensor

    def local(self, target_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Row of each target in this shard (0 if it is in another shard), and whether it is in this shard."""
        rows = target_ids - self.start
        is_here = (rows >= 0) & (rows < self.size)
        return rows.where(is_here, 0), is_here


class _Head(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, target_ids: Tensor, scale: float, shard: _VocabShard
    ) -> tuple[Tensor, Tensor]:
        rows = weight[: shard.size]
        stats = hidden.new_empty((4, hidden.shape[0]), dtype=torch.float32)
        local_targets, is_here = shard.local(target_ids)
        chunks = _blocks(hidden.shape[0], _tokens_per(_PRODUCT_BYTES, rows, rows.element_size()))
        logits = None
        for start, end in chunks:
            logits = hidden[start:end] @ rows.t()
            for first, last in _blocks(end - start, _softmax_tokens(rows)):
                part = slice(start + first, start + last)
                _softmax_stats(logits[first:last], scale, local_targets[part], out=stats[:, part])
        logprobs, entropy, log_normalizer = _combine(stats, is_here, shard)
        ctx.save_for_backward(hidden, weight, target_ids, log_normalizer, entropy)
        ctx.logits = logits if len(chunks) == 1 and any(ctx.needs_input_grad) else None
        ctx.scale, ctx.shard, ctx.chunks = scale, shard, chunks
        ctx.set_materialize_grads(False)
        return logprobs, entropy

    @staticmethod
    def backward(
        ctx: Any, grad_logprobs: Tensor | None, grad_entropy: Tensor | None
    ) -> tuple[Tensor, Tensor, None, None, None]:
        hidden, weight, target_ids, log_normalizer, entropy = ctx.saved_tensors
        rows = weight[: ctx.shard.size]
        local_targets, is_here = ctx.shard.local(target_ids)
        grad_logprobs = torch.zeros_like(entropy) if grad_logprobs is None else grad_logprobs
        tokens = torch.stack((grad_logprobs, grad_logprobs * is_here, log_normalizer, entropy), dim=1)
        grad_hidden = torch.empty_like(hidden)
        # Sum several chunks in float32: bfloat16 would round the sum after each chunk. Meanwhile this takes six bytes
        # per weight of the head (the sum and one chunk's product) instead of two.
        sums_in_float32 = len(ctx.chunks) > 1 and weight.dtype != torch.float32
        grad_weight = torch.zeros_like(weight, dtype=torch.float32 if sums_in_float32 else None)
        own_rows = grad_weight[: ctx.shard.size]
        for start, end in ctx.chunks:
            logits = hidden[start:end] @ rows.t() if ctx.logits is None else ctx.logits
            for first, last in _blocks(end - start, _softmax_tokens(rows)):
                part = slice(start + first, start + last)
                block = logits[first:last]
                block.copy_(
                    _logits_gradient(
                        block.float().mul_(ctx.scale),
                        local_targets[part],
                        tokens[part],
                        None if grad_entropy is None else grad_entropy[part],
                    ).mul_(ctx.scale)
                )
            torch.mm(logits, rows, out=grad_hidden[start:end])
            if sums_in_float32:
                own_rows.add_(logits.t() @ hidden[start:end])
            else:
                own_rows.addmm_(logits.t(), hidden[start:end])
        ctx.logits = None
        return grad_hidden, grad_weight.to(weight.dtype), None, None, None


def _softmax_stats(logits: Tensor, scale: float, targets: Tensor, *, out: Tensor) -> None:
    """Fill [4, t] from logits [t, V]: max, sum of exp(z - max), sum of exp(z - max) (z - max), z of the target."""
    scaled = logits * scale if logits.dtype == torch.float32 else logits.float().mul_(scale)
    torch.gather(scaled, 1, targets.unsqueeze(1), out=out[3].unsqueeze(1))
    out[0] = scaled.amax(1)
    scaled.sub_(out[0].unsqueeze(1))
    exponentials = scaled.exp()
    out[1] = exponentials.sum(1)
    out[2] = scaled.mul_(exponentials).sum(1)


def _logits_gradient(logits: Tensor, targets: Tensor, tokens: Tensor, grad_entropy: Tensor | None) -> Tensor:
    """Replace scaled logits by their gradient, in place.

    g_logprob ([j = y] - p_j) - g_entropy p_j (log p_j + entropy)

    Args:
        logits: [t, V] float32, scaled; overwritten.
        targets: [t] local rows.
        tokens: [t, 4]: g_logprob, g_logprob or 0 if the target is in another shard, log normalizer, entropy.
        grad_entropy: [t], or None if the entropy is not in the loss.
    """
    grad_logprobs, grad_target, log_normalizer, entropy = tokens.unsqueeze(2).unbind(1)
    log_p = logits.sub_(log_normalizer)
    if grad_entropy is None:
        gradient = log_p.exp_().mul_(-grad_logprobs)
    else:
        factor = (log_p + entropy).mul_(-grad_entropy.unsqueeze(1)).sub_(grad_logprobs)
        gradient = log_p.exp_().mul_(factor)
    return gradient.scatter_add_(1, targets.unsqueeze(1), grad_target)


def _combine(stats: Tensor, is_here: Tensor, shard: _VocabShard) -> tuple[Tensor, Tensor, Tensor]:
    """Combine the statistics of all shards into log-prob, entropy and log normalizer, each [T]."""
    local_max, total, weighted, target = stats.unbind(0)
    top = shard.reduce(local_max.clone(), dist.ReduceOp.MAX)
    shift = local_max - top
    rescale = shift.exp()
    weighted = (weighted + shift * total) * rescale
    sums = shard.reduce(torch.stack((total * rescale, weighted, target * is_here)))
    log_total = sums[0].log()
    log_normalizer = top + log_total
    return sums[2] - log_normalizer, log_total - sums[1] / sums[0], log_normalizer


def _tokens_per(num_bytes: int, rows: Tensor, element_size: int) -> int:
    return max(1, num_bytes // (max(1, rows.shape[0]) * element_size))


def _softmax_tokens(rows: Tensor) -> int:
    return _tokens_per(_SOFTMAX_BYTES[rows.device.type], rows, 4)


def _blocks(total: int, size: int) -> list[tuple[int, int]]:
    return [(start, min(start + size, total)) for start in range(0, total, size)]
