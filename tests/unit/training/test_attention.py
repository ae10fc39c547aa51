from __future__ import annotations

import gc
import math
import weakref

import torch
from torch import Tensor

from rl.training.attention import PackedSequences, _attend_by_sequence, pack_sequences, rotate


def packed(*boundaries: int, prefixes: tuple[int, ...] | None = None) -> PackedSequences:
    num_tokens, num_sequences = boundaries[-1], len(boundaries) - 1
    return pack_sequences(
        torch.tensor(boundaries, dtype=torch.int32),
        torch.tensor(prefixes or (-1,) * num_sequences),
        torch.ones(num_tokens, 4),
        torch.zeros(num_tokens, 4),
    )


def random_qkv(num_tokens: int, *, heads: int = 4, kv_heads: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.randn(num_tokens, heads, 4), torch.randn(num_tokens, kv_heads, 4), torch.randn(num_tokens, kv_heads, 4)


def plain_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Causal softmax attention of one sequence, written out."""
    repeats = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)
    scores = torch.einsum("qhd,khd->hqk", query, key) / math.sqrt(query.shape[-1])
    future = torch.ones(len(query), len(query)).triu(1).bool()
    return torch.einsum("hqk,khd->qhd", scores.masked_fill(future, -math.inf).softmax(-1), value)


def test_rotate_worked_example() -> None:
    # D = 4 holds two pairs, (1, 3) and (2, 4). Turned by 90 degrees: (a, b) -> (-b, a).
    x = torch.tensor([[[1.0, 2.0, 3.0, 4.0]]])
    turned = rotate(x, torch.zeros(1, 1, 4), torch.ones(1, 1, 4))
    assert torch.equal(turned, torch.tensor([[[-3.0, -4.0, 1.0, 2.0]]]))


def test_rotate_by_zero_changes_nothing() -> None:
    x = torch.randn(3, 2, 4)
    assert torch.equal(rotate(x, torch.ones(3, 1, 4), torch.zeros(3, 1, 4)), x)


def test_pack_sequences_lengths() -> None:
    sequences = packed(0, 3, 4, 9)
    assert sequences.lengths == (3, 1, 5)
    assert sequences.max_seqlen_q == 5


def test_attention_of_unequal_lengths_equals_each_alone() -> None:
    qkv = random_qkv(9)
    context = _attend_by_sequence(*qkv, packed(0, 3, 4, 9))
    expected = torch.cat([plain_attention(*(x[a:b] for x in qkv)) for a, b in ((0, 3), (3, 4), (4, 9))])
    torch.testing.assert_close(context, expected, atol=1e-6, rtol=1e-5)


def test_attention_of_equal_lengths_equals_each_alone() -> None:
    qkv = random_qkv(8)
    context = _attend_by_sequence(*qkv, packed(0, 4, 8))
    expected = torch.cat([plain_attention(*(x[a:b] for x in qkv)) for a, b in ((0, 4), (4, 8))])
    torch.testing.assert_close(context, expected, atol=1e-6, rtol=1e-5)


def test_attention_ignores_later_tokens() -> None:
    query, key, value = random_qkv(6)
    before = _attend_by_sequence(query, key, value, packed(0, 6))
    key[4:], value[4:] = 7.0, -7.0
    after = _attend_by_sequence(query, key, value, packed(0, 6))
    torch.testing.assert_close(after[:4], before[:4], atol=1e-6, rtol=0)
    assert not torch.allclose(after[4:], before[4:])


def test_attention_with_a_shared_prefix_equals_each_whole_sequence_alone() -> None:
    # A prompt of 3 tokens, answers of 2 and 4, and an unrelated sequence of 3.
    qkv = random_qkv(12)
    context = _attend_by_sequence(*qkv, packed(0, 3, 5, 9, 12, prefixes=(-1, 0, 0, -1)))
    prompt, first, second, other = (list(range(a, b)) for a, b in ((0, 3), (3, 5), (5, 9), (9, 12)))
    expected = torch.cat([
        plain_attention(*(x[prompt] for x in qkv)),
        plain_attention(*(x[prompt + first] for x in qkv))[3:],
        plain_attention(*(x[prompt + second] for x in qkv))[3:],
        plain_attention(*(x[other] for x in qkv)),
    ])  # fmt: skip
    torch.testing.assert_close(context, expected, atol=1e-6, rtol=1e-5)


def test_attention_with_a_prefix_of_a_prefix_equals_each_whole_sequence_alone() -> None:
    # A system prompt of 2 tokens; a prompt of 3 after it with answers of 2 and 4; an answer of 1 right after it.
    qkv = random_qkv(12)
    context = _attend_by_sequence(*qkv, packed(0, 2, 5, 7, 11, 12, prefixes=(-1, 0, 1, 1, 0)))
    system, prompt, first, second, other = (list(range(a, b)) for a, b in ((0, 2), (2, 5), (5, 7), (7, 11), (11, 12)))
    expected = torch.cat([
        plain_attention(*(x[system + prompt] for x in qkv)),
        plain_attention(*(x[system + prompt + first] for x in qkv))[5:],
        plain_attention(*(x[system + prompt + second] for x in qkv))[5:],
        plain_attention(*(x[system + other] for x in qkv))[2:],
    ])  # fmt: skip
    torch.testing.assert_close(context, expected, atol=1e-6, rtol=1e-5)


def test_masks_of_all_sequences_are_views_of_one() -> None:
    """Prefixes of 2 and 5 tokens, sequences of 3, 2 and 4 after them: one mask with 4 x (5 + 4) numbers."""
    sequences = packed(0, 2, 5, 7, 11, prefixes=(-1, 0, 1, 1))
    like = torch.zeros(1)
    see, hide = 0.0, -math.inf
    assert sequences.lower_right(2, 3, like).tolist() == [
        [see, see, see, hide, hide],
        [see, see, see, see, hide],
        [see, see, see, see, see],
    ]
    assert sequences.lower_right(5, 2, like).tolist() == [[see] * 6 + [hide], [see] * 7]
    assert sequences.lower_right(5, 4, like).sum(1).tolist() == [hide, hide, hide, 0.0]
    assert sequences.mask is not None and sequences.mask.numel() == 4 * (5 + 4)
    assert sequences.mask.data_ptr() == sequences.lower_right(5, 4, like).data_ptr()


def test_attention_frees_its_masks() -> None:
    """Over micro-batches of changing lengths, as in a run."""
    masks = []
    for length in range(100, 110):
        sequences = packed(0, length, 2 * length, prefixes=(-1, 0))
        _attend_by_sequence(*random_qkv(2 * length), sequences)
        assert sequences.mask is not None
        masks.append(weakref.ref(sequences.mask))
    del sequences
    gc.collect()
    assert [mask() for mask in masks] == [None] * 10
