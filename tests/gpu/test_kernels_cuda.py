"""The kernels that updates use on CUDA, in bfloat16, against float32 on the CPU."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from tests.gpu.cuda import NEEDS_BFLOAT16, needs, relative_error

pytestmark = [NEEDS_BFLOAT16, needs("megatron")]

LENGTHS = (1, 7, 130, 513)


def attend(
    dtype: torch.dtype, device: str, *, size: int, heads: int, kv_heads: int, prefixes: list[int]
) -> list[Tensor]:
    """Context and gradients of query, key and value, with equal inputs (rounded to bfloat16) in every dtype."""
    from rl.training.attention import PackedAttention, pack_sequences

    torch.manual_seed(0)
    total = sum(LENGTHS)
    values = [torch.randn(total, h, size).bfloat16() for h in (heads, kv_heads, kv_heads)]
    angles = torch.rand(total, size) * 6
    grad = torch.randn(total, heads * size).bfloat16()
    qkv = [x.to(device, dtype).requires_grad_(True) for x in values]
    cu_seqlens = torch.tensor([0, *torch.tensor(LENGTHS).cumsum(0).tolist()], dtype=torch.int32, device=device)
    packed = pack_sequences(
        cu_seqlens, torch.tensor(prefixes), angles.cos().to(device, dtype), angles.sin().to(device, dtype)
    )
    settings: Any = SimpleNamespace(context_parallel_size=1, attention_dropout=0.0)
    context = PackedAttention(settings, 1)(*qkv, None, packed_seq_params=packed)
    context.backward(grad.to(device, dtype))
    return [context, *(x.grad for x in qkv)]


@pytest.mark.parametrize(("heads", "kv_heads", "size"), [(28, 4, 128), (4, 4, 64), (4, 2, 16)])
@pytest.mark.parametrize("prefixes", [[-1] * 4, [-1, 0, 1, 1]], ids=["packed kernel", "shared prefixes"])
def test_attention_forward_and_backward(heads: int, kv_heads: int, size: int, prefixes: list[int]) -> None:
    sizes: dict[str, Any] = {"size": size, "heads": heads, "kv_heads": kv_heads, "prefixes": prefixes}
    actual = attend(torch.bfloat16, "cuda", **sizes)
    expected = attend(torch.float32, "cpu", **sizes)
    for name, one, other in zip(("context", "query", "key", "value"), actual, expected, strict=True):
        assert one.dtype == torch.bfloat16
        assert relative_error(one, other) < 0.02, name


@pytest.mark.parametrize("num_tokens", [300, 5000], ids=["one chunk", "chunks"])
def test_head_forward_and_backward(num_tokens: int) -> None:
    from rl.training.head import logprobs_and_entropy

    torch.manual_seed(0)
    vocab_size = 50_000  # 256 MiB hold 2,684 tokens in bfloat16
    hidden, weight = torch.randn(num_tokens, 64).bfloat16(), (torch.randn(vocab_size, 64) / 8).bfloat16()
    targets, grads = torch.randint(0, vocab_size, (num_tokens,)), torch.randn(2, num_tokens) / num_tokens
    place: Any = SimpleNamespace(tp_rank=0, tp_size=1, tp_group=None)
    results = []
    for device, dtype in (("cuda", torch.bfloat16), ("cpu", torch.float32)):
        h, w = (x.detach().to(device, dtype).requires_grad_(True) for x in (hidden, weight))
        out = logprobs_and_entropy(
            h, w, targets.to(device), temperature=0.8, vocab_size=vocab_size - 3, parallel=place,
            mask=torch.arange(num_tokens, device=device) % 5,
        )  # fmt: skip
        ((out.logprobs * grads[0].to(device)).sum() + (out.entropy * grads[1].to(device)).sum()).backward()
        results.append((out.logprobs, out.entropy, h.grad, w.grad))
    actual, expected = results
    assert actual[0].dtype == actual[1].dtype == torch.float32
    for name, one, other in zip(("log-probs", "entropy", "hidden", "weight"), actual, expected, strict=True):
        assert relative_error(one, other) < 0.02, name


def test_norm_and_gate_forward_and_backward() -> None:
    from rl.training.norm import RMSNorm
    from rl.training.swiglu import SwiGlu

    torch.manual_seed(0)
    x, grad, scale = torch.randn(40, 1, 256).bfloat16(), torch.randn(40, 1, 128).bfloat16(), torch.rand(256).bfloat16()
    gate: Any = SwiGlu(SimpleNamespace(gated_linear_unit=True, activation_func=functional.silu))  # type: ignore[arg-type]
    results = []
    for device, dtype in (("cuda", torch.bfloat16), ("cpu", torch.float32)):
        settings: Any = SimpleNamespace(use_cpu_initialization=True, params_dtype=dtype, sequence_parallel=False)
        norm = RMSNorm(settings, 256)
        norm.weight.data.copy_(scale)
        norm.to(device)
        hidden = x.detach().to(device, dtype).requires_grad_(True)
        out = gate(norm(hidden))
        out.backward(grad.to(device, dtype))
        results.append((out, hidden.grad, norm.weight.grad))
    for one, other in zip(*results, strict=True):
        assert relative_error(one, other) < 0.02
