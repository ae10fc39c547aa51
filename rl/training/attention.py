"""Core attention: causal, grouped-query, over packed sequences, with rotary positions.

The rotary embedding is applied here, because Megatron's restarts at each sequence boundary and ignores position ids.
Cosine and sine are gathered by position once per micro-batch, [T, D].
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention.varlen import varlen_attn


@dataclass
class PackedSequences(PackedSeqParams):
    """Layout of a micro-batch for attention; Megatron passes it to every layer as `packed_seq_params`."""

    lengths: tuple[int, ...] = ()
    """Number of tokens of each sequence; the sum is T."""
    prefixes: tuple[int, ...] = ()
    """For each sequence, the index of the sequence it continues, or -1. Prefixes may have prefixes."""
    cos: Tensor | None = None
    """[T, 1, D], at each token's position, in the model's dtype."""
    sin: Tensor | None = None
    """[T, 1, D]."""
    mask: Tensor | None = None
    """Mask for all sequences with a prefix; the first layer builds it, `lower_right` slices it."""
    mask_prefix: int = 0
    """Number of prefix columns in `mask`: the length of the longest prefix."""

    def lower_right(self, prefix_length: int, length: int, like: Tensor) -> Tensor:
        """Attention mask of a sequence with a prefix: 0 if j <= i + prefix_length (query i, key j), else -inf.

        If columns are counted from the end of the prefix, c = j - prefix_length, the condition is c <= i for every
        sequence. So the micro-batch needs one mask, for its longest sequence and longest prefix, and all others are
        views of it.

        Args:
            prefix_length: Number of tokens in the prefix, its own prefixes included.
            length: Number of tokens in the sequence.
            like: Tensor with the dtype and device for the mask.

        Returns:
            [length, prefix_length + length], a view.
        """
        if self.mask is None:
            self.mask_prefix, longest = self._longest_prefix_and_sequence()
            shape = (longest, self.mask_prefix + longest)
            hidden = torch.full(shape, float("-inf"), dtype=like.dtype, device=like.device)
            self.mask = hidden.triu_(self.mask_prefix + 1)
        return self.mask[:length, self.mask_prefix - prefix_length : self.mask_prefix + length]

    def _longest_prefix_and_sequence(self) -> tuple[int, int]:
        """Length of the longest prefix, its own prefixes included, and of the longest sequence with a prefix."""
        total: list[int] = []
        for length, prefix in zip(self.lengths, self.prefixes, strict=True):
            total.append(length + (total[prefix] if prefix >= 0 else 0))
        pairs = [(total[p], n) for n, p in zip(self.lengths, self.prefixes, strict=True) if p >= 0]
        return max(prefix for prefix, _ in pairs), max(length for _, length in pairs)


def pack_sequences(cu_seqlens: Tensor, prefix_ids: Tensor, cos: Tensor, sin: Tensor) -> PackedSequences:
    """Build the layout that the attention of every layer reads.

    Args:
        cu_seqlens: [S + 1] int32, sequence boundaries, from 0 to T.
        prefix_ids: [S] int64, the sequence that each one continues, or -1.
        cos: [T, D], at each token's position.
        sin: [T, D].
    """
    boundaries = cu_seqlens.tolist()
    lengths = tuple(end - start for start, end in pairwise(boundaries))
    return PackedSequences(
        qkv_format="thd",
        cu_seqlens_q=cu_seqlens,
        cu_seqlens_kv=cu_seqlens,
        max_seqlen_q=max(lengths),
        max_seqlen_kv=max(lengths),
        lengths=lengths,
        prefixes=tuple(prefix_ids.tolist()),
        cos=cos.unsqueeze(1),
        sin=sin.unsqueeze(1),
    )


class PackedAttention(nn.Module):
    """Core attention for Megatron's layer spec; it has no parameters."""

    def __init__(self, config: TransformerConfig, layer_number: int, **ignored: Any) -> None:
        super().__init__()
        assert config.context_parallel_size == 1, "context parallelism is not supported"
        assert config.attention_dropout == 0.0, "attention dropout must be 0"

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        *,
        attn_mask_type: Any = None,
        attention_bias: Tensor | None = None,
        packed_seq_params: PackedSequences,
    ) -> Tensor:
        """Attend within each sequence, and to its prefix.

        Args:
            query: [T, heads of this rank, D], before the rotary embedding.
            key: [T, key-value heads of this rank, D].
            value: [T, key-value heads of this rank, D].
            attention_mask: Not used; the mask is causal within each sequence.
            attn_mask_type: Not used.
            attention_bias: Not used.
            packed_seq_params: Layout of the micro-batch.

        Returns:
            [T, heads of this rank x D].
        """
        packed = packed_seq_params
        assert packed.cos is not None and packed.sin is not None, "made by pack_sequences"
        dtype = query.dtype
        query = rotate(query, packed.cos, packed.sin)
        key = rotate(key, packed.cos, packed.sin)
        # Flash attention has no float32 kernel, and the packed kernel does not support shared prefixes.
        is_packed_kernel = query.is_cuda and query.dtype != torch.float32 and max(packed.prefixes) < 0
        attend = _attend_packed if is_packed_kernel else _attend_by_sequence
        if not query.is_cuda:  # torch's backward kernel on the CPU is faster in float32
            query, key, value = query.float(), key.float(), value.float()
        context = attend(query, key, value, packed)
        return context.flatten(1).to(dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Apply the rotary embedding: x * cos + [-x2, x1] * sin with x = [x1, x2] split in the middle of D.

    Args:
        x: [T, heads, D].
        cos: [T, 1, D].
        sin: [T, 1, D].

    Source: RoFormer, arXiv:2104.09864, in the half-split order of Hugging Face checkpoints.
    """
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


def _attend_packed(query: Tensor, key: Tensor, value: Tensor, packed: PackedSequences) -> Tensor:
    # `varlen_attn` of some torch versions has no grouped-query attention.
    repeats = query.shape[1] // key.shape[1]
    if repeats > 1:
        key, value = key.repeat_interleave(repeats, dim=1), value.repeat_interleave(repeats, dim=1)
    return varlen_attn(
        query,
        key,
        value,
        packed.cu_seqlens_q,
        packed.cu_seqlens_kv,
        packed.max_seqlen_q,
        packed.max_seqlen_kv,
        window_size=(-1, 0),  # causal
    )


def _attend_by_sequence(query: Tensor, key: Tensor, value: Tensor, packed: PackedSequences) -> Tensor:
    """Attend with one call per sequence, or one call in all if lengths are equal and no prefix is shared."""
    lengths = packed.lengths
    if len(set(lengths)) == 1 and max(packed.prefixes) < 0:
        batch = (len(lengths), lengths[0])
        context = _attend(*(x.unflatten(0, batch) for x in (query, key, value)))
        return context.flatten(0, 1)
    # `split` instead of slices: the backward of a slice fills a zero tensor of the whole length.
    queries, keys, values = (list(x.split(lengths)) for x in (query, key, value))
    contexts = []
    for i, prefix in enumerate(packed.prefixes):
        mask = None
        if prefix >= 0:  # prefixes come first, so keys[prefix] already includes its own prefix
            mask = packed.lower_right(len(keys[prefix]), lengths[i], query)
            keys[i] = torch.cat([keys[prefix], keys[i]])
            values[i] = torch.cat([values[prefix], values[i]])
        contexts.append(_attend(queries[i][None], keys[i][None], values[i][None], mask)[0])
    return torch.cat(contexts)


def _attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
    """Attend, [B, L, heads, D] in and out; causal without a mask."""
    context = functional.scaled_dot_product_attention(
        query.transpose(1, 2),
        key.transpose(1, 2),
        value.transpose(1, 2),
        attn_mask=mask,
        is_causal=mask is None,
        enable_gqa=key.shape[2] != query.shape[2],
    )
    return context.transpose(1, 2)
