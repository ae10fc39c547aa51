"""The project's core attention: causal, grouped-query, over packed sequences, with rotary positions.

Rotary embedding happens here and not in Megatron, because Megatron's restarts at each sequence boundary and ignores
position ids: here cosine and sine are gathered by position once for each micro-batch, [T, D].
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
    """What attention needs to know of a micro-batch; travels through Megatron as its `packed_seq_params`."""

    lengths: tuple[int, ...] = ()
    """Tokens of each sequence; they add up to T."""
    prefixes: tuple[int, ...] = ()
    """The sequence whose tokens, after those of its own prefix, come before each one's own, or -1."""
    cos: Tensor | None = None
    """[T, 1, D], of each token's position, in the model's dtype."""
    sin: Tensor | None = None
    """[T, 1, D]."""
    mask: Tensor | None = None
    """Of the sequences with a prefix, made by the first layer and used by all; `lower_right` gives each one's part."""
    mask_prefix: int = 0
    """Columns of `mask` before that of a sequence's own first token: the longest prefix."""

    def lower_right(self, prefix_length: int, length: int, like: Tensor) -> Tensor:
        """Mask of a sequence behind its prefix: 0 where query i may see key j, j <= i + prefix, else minus infinity.

        All of them are parts of one: with columns counted from the end of the prefix, c = j - prefix, it is c <= i. So
        a micro-batch holds a single mask, of its longest sequence behind its longest prefix, and no longer than it
        lives itself.

        Args:
            prefix_length: Tokens of the prefix, and of its own prefixes.
            length: Tokens of the sequence.
            like: Has the dtype and device wanted.

        Returns:
            [length, prefix_length + length], a view.
        """
        if self.mask is None:
            self.mask_prefix, longest = self._longest_behind_prefix()
            shape = (longest, self.mask_prefix + longest)
            hidden = torch.full(shape, float("-inf"), dtype=like.dtype, device=like.device)
            self.mask = hidden.triu_(self.mask_prefix + 1)
        return self.mask[:length, self.mask_prefix - prefix_length : self.mask_prefix + length]

    def _longest_behind_prefix(self) -> tuple[int, int]:
        """The longest prefix, with what is before it, and the longest sequence behind one."""
        seen: list[int] = []
        for length, prefix in zip(self.lengths, self.prefixes, strict=True):
            seen.append(length + (seen[prefix] if prefix >= 0 else 0))
        behind = [(seen[p], n) for n, p in zip(self.lengths, self.prefixes, strict=True) if p >= 0]
        return max(prefix for prefix, _ in behind), max(length for _, length in behind)


def pack_sequences(cu_seqlens: Tensor, prefix_ids: Tensor, cos: Tensor, sin: Tensor) -> PackedSequences:
    """Describe a micro-batch to the attention of every layer.

    Args:
        cu_seqlens: [S + 1] int32, sequence boundaries, from 0 to T.
        prefix_ids: [S] int64, the sequence that comes before each one, or -1.
        cos: [T, D] of each token's position.
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
    """Core attention for Megatron's layer spec; holds no parameters."""

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
            packed_seq_params: Of the micro-batch.

        Returns:
            [T, heads of this rank x D].
        """
        packed = packed_seq_params
        assert packed.cos is not None and packed.sin is not None, "made by pack_sequences"
        dtype = query.dtype
        query = rotate(query, packed.cos, packed.sin)
        key = rotate(key, packed.cos, packed.sin)
        # Flash attention has no float32 kernel, and the packed one knows no shared prefixes.
        is_packed_kernel = query.is_cuda and query.dtype != torch.float32 and max(packed.prefixes) < 0
        attend = _attend_packed if is_packed_kernel else _attend_by_sequence
        if not query.is_cuda:  # where torch's backward kernel is faster in float32
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
    # Not every torch that ships `varlen_attn` has grouped-query attention in it.
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
    """One call for each sequence, or one for all where the lengths are equal and no prefix is shared."""
    lengths = packed.lengths
    if len(set(lengths)) == 1 and max(packed.prefixes) < 0:
        batch = (len(lengths), lengths[0])
        context = _attend(*(x.unflatten(0, batch) for x in (query, key, value)))
        return context.flatten(0, 1)
    # `split` and not slices: the backward of a slice fills a zero tensor of the whole length.
    queries, keys, values = (list(x.split(lengths)) for x in (query, key, value))
    contexts = []
    for i, prefix in enumerate(packed.prefixes):
        mask = None
        if prefix >= 0:  # stands earlier, so that its own prefix is there already
            mask = packed.lower_right(len(keys[prefix]), lengths[i], query)
            keys[i] = torch.cat([keys[prefix], keys[i]])
            values[i] = torch.cat([values[prefix], values[i]])
        contexts.append(_attend(queries[i][None], keys[i][None], values[i][None], mask)[0])
    return torch.cat(contexts)


def _attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
    """[B, L, heads, D] in and out; causal, or as the mask says."""
    context = functional.scaled_dot_product_attention(
        query.transpose(1, 2),
        key.transpose(1, 2),
        value.transpose(1, 2),
        attn_mask=mask,
        is_causal=mask is None,
        enable_gqa=key.shape[2] != query.shape[2],
    )
    return context.transpose(1, 2)
