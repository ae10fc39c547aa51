"""CUDA-only branches, tested without CUDA.

Tensors claim to be on CUDA. On the meta device shapes, dtypes and autograd are real; on the CPU, with a reference
implementation of the packed kernel, values are real too.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from rl.batch.layout import packing_layout
from rl.batch.packing import pack_samples
from rl.training import attention, head
from rl.training.attention import PackedAttention, PackedSequences, pack_sequences
from rl.training.head import logprobs_and_entropy
from rl.training.model import build_model, load_hf_config
from rl.training.norm import RMSNorm
from rl.training.parallel import ParallelState
from rl.training.swiglu import SwiGlu
from tests.tiny import make_tiny_model
from tests.update_case import update_config, update_samples

BOUNDARIES = (0, 3, 4, 9)
HEADS, KV_HEADS, SIZE = 4, 2, 16


@pytest.fixture(autouse=True)
def claims_to_be_on_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.Tensor, "is_cuda", property(lambda tensor: True))
    monkeypatch.setitem(head._SOFTMAX_BYTES, "meta", head._SOFTMAX_BYTES["cuda"])


class Operators(TorchDispatchMode):
    """Records the names of all operators that run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(func.name())
        return func(*args, **(kwargs or {}))


@pytest.fixture
def operators() -> Iterator[Operators]:
    with Operators() as recorder:
        yield recorder


def core_attention() -> PackedAttention:
    return PackedAttention(SimpleNamespace(context_parallel_size=1, attention_dropout=0.0), 1)  # type: ignore[arg-type]


def packed(device: str, dtype: torch.dtype, prefixes: tuple[int, ...] = (-1, -1, -1)) -> PackedSequences:
    torch.manual_seed(1)
    angles = torch.rand(BOUNDARIES[-1], SIZE)
    cu_seqlens = torch.tensor(BOUNDARIES, dtype=torch.int32)
    sequences = pack_sequences(cu_seqlens, torch.tensor(prefixes), angles.cos().to(dtype), angles.sin().to(dtype))
    for name in ("cos", "sin", "cu_seqlens_q", "cu_seqlens_kv"):
        setattr(sequences, name, getattr(sequences, name).to(device))
    return sequences


def random_qkv(device: str, dtype: torch.dtype) -> list[Tensor]:
    torch.manual_seed(0)
    shapes = [(BOUNDARIES[-1], heads, SIZE) for heads in (HEADS, KV_HEADS, KV_HEADS)]
    return [torch.randn(shape).to(device, dtype).requires_grad_(True) for shape in shapes]


def attend(qkv: list[Tensor], sequences: PackedSequences) -> Tensor:
    return core_attention()(*qkv, None, packed_seq_params=sequences)


def test_attention_in_bfloat16_is_one_call_of_the_packed_kernel_each_way(operators: Operators) -> None:
    qkv = random_qkv("meta", torch.bfloat16)
    context = attend(qkv, packed("meta", torch.bfloat16))
    assert (context.shape, context.dtype) == ((9, HEADS * SIZE), torch.bfloat16)
    assert operators.names.count("torch_attn::_varlen_attn") == 1
    assert not any("scaled_dot_product" in name for name in operators.names)
    context.sum().backward()
    assert operators.names.count("torch_attn::_varlen_attn_backward") == 1
    for tensor in qkv:
        assert tensor.grad is not None
        assert (tensor.grad.shape, tensor.grad.dtype) == (tensor.shape, torch.bfloat16)


def test_attention_in_float32_and_with_shared_prefixes_goes_by_sequence(operators: Operators) -> None:
    attend(random_qkv("meta", torch.float32), packed("meta", torch.float32))
    context = attend(random_qkv("meta", torch.bfloat16), packed("meta", torch.bfloat16, prefixes=(-1, 0, 0)))
    assert context.dtype == torch.bfloat16
    assert "torch_attn::_varlen_attn" not in operators.names


def kernel_written_out(
    query: Tensor, key: Tensor, value: Tensor, cu_seq_q: Tensor, cu_seq_k: Tensor, max_q: int, max_k: int,
    *, window_size: tuple[int, int],
) -> Tensor:  # fmt: skip
    """Reference implementation of `torch.nn.attention.varlen.varlen_attn` for a causal window."""
    assert window_size == (-1, 0), "all keys before, none after"
    assert query.shape[1] == key.shape[1] == value.shape[1], "as many heads, where grouped queries are not asked for"
    assert cu_seq_q.dtype == cu_seq_k.dtype == torch.int32
    lengths = cu_seq_q.diff().tolist()
    assert (max_q, max_k, sum(lengths)) == (max(lengths), max(cu_seq_k.diff().tolist()), len(query))
    outputs = []
    for start, end in pairwise(cu_seq_q.tolist()):
        scores = torch.einsum("qhd,khd->hqk", query[start:end].float(), key[start:end].float()) / query.shape[-1] ** 0.5
        future = torch.ones(end - start, end - start).triu(1).bool()
        weights = scores.masked_fill(future, float("-inf")).softmax(-1)
        outputs.append(torch.einsum("hqk,khd->qhd", weights, value[start:end].float()))
    return torch.cat(outputs).to(query.dtype)


def test_packed_kernel_gets_what_makes_it_equal_to_attention_by_sequence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "varlen_attn", kernel_written_out)
    grad = torch.randn(9, HEADS * SIZE)
    results = []
    for dtype in (torch.bfloat16, torch.float32):  # float32 goes by sequence
        qkv = random_qkv("cpu", dtype)
        context = attend(qkv, packed("cpu", dtype))
        context.backward(grad.to(dtype))
        results.append([context.detach(), *(tensor.grad for tensor in qkv)])
    for half, single in zip(*results, strict=True):
        torch.testing.assert_close(half.float(), single, atol=0.05, rtol=0.02)


def test_norm_in_bfloat16_keeps_shape_and_dtype() -> None:
    norm = RMSNorm.__new__(RMSNorm)
    torch.nn.Module.__init__(norm)
    norm.weight = torch.nn.Parameter(torch.ones(SIZE, dtype=torch.bfloat16, device="meta"))
    norm.eps = 1e-6
    hidden = torch.empty(9, 1, SIZE, dtype=torch.bfloat16, device="meta", requires_grad=True)
    normed = norm(hidden)
    normed.sum().backward()
    assert hidden.grad is not None and norm.weight.grad is not None
    assert (normed.dtype, hidden.grad.shape, norm.weight.grad.shape) == (torch.bfloat16, hidden.shape, (SIZE,))


def test_norm_of_torch_equals_the_one_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    config = SimpleNamespace(use_cpu_initialization=True, params_dtype=torch.float32, sequence_parallel=False)
    norm = RMSNorm(config, 8, eps=1e-5)  # type: ignore[arg-type]
    torch.nn.init.normal_(norm.weight)
    results = []
    for is_cuda in (True, False):
        monkeypatch.setattr(torch.Tensor, "is_cuda", property(lambda tensor, is_cuda=is_cuda: is_cuda))
        hidden = torch.linspace(-1, 2, 24).view(3, 8).requires_grad_(True)
        normed = norm(hidden)
        results.append((normed.detach(), *torch.autograd.grad(normed.square().sum(), (hidden, norm.weight))))
    torch.testing.assert_close(*results, atol=1e-5, rtol=1e-5)


def test_swiglu_in_bfloat16_keeps_shape_and_dtype() -> None:
    gate_up = torch.empty(9, 1, 32, dtype=torch.bfloat16, device="meta", requires_grad=True)
    swiglu = SwiGlu(SimpleNamespace(gated_linear_unit=True, activation_func=functional.silu))  # type: ignore[arg-type]
    out = swiglu(gate_up)
    out.backward(torch.empty_like(out))
    assert (out.shape, out.dtype) == ((9, 1, 16), torch.bfloat16)
    assert gate_up.grad is not None and (gate_up.grad.shape, gate_up.grad.dtype) == (gate_up.shape, torch.bfloat16)


@pytest.mark.parametrize("num_bytes", [4 * 50 * 2, 1 << 20], ids=["chunks", "one chunk"])
def test_head_in_bfloat16_gives_float32_and_gradients_in_bfloat16(
    parallel: ParallelState, monkeypatch: pytest.MonkeyPatch, num_bytes: int
) -> None:
    monkeypatch.setattr(head, "_PRODUCT_BYTES", num_bytes)
    hidden = torch.empty(9, 1, 8, dtype=torch.bfloat16, device="meta", requires_grad=True)
    weight = torch.empty(50, 8, dtype=torch.bfloat16, device="meta", requires_grad=True)
    targets = torch.empty(9, dtype=torch.int64, device="meta")
    out = logprobs_and_entropy(hidden, weight, targets, temperature=0.7, vocab_size=49, parallel=parallel)
    assert (out.logprobs.shape, out.logprobs.dtype, out.entropy.dtype) == ((9,), torch.float32, torch.float32)
    (out.logprobs.sum() + out.entropy.sum()).backward()
    assert hidden.grad is not None and (hidden.grad.shape, hidden.grad.dtype) == (hidden.shape, torch.bfloat16)
    assert weight.grad is not None and (weight.grad.shape, weight.grad.dtype) == (weight.shape, torch.bfloat16)


def test_whole_model_in_bfloat16_runs_forward_and_backward(
    parallel: ParallelState, tmp_path: Path, operators: Operators
) -> None:
    """Embedding, every layer and the head, as in an update on CUDA, but without values."""
    config = update_config(make_tiny_model(tmp_path, "qwen3", num_layers=2))
    config.megatron_training.bf16 = True
    config.rl_config.share_prompt_prefix = False  # as on CUDA
    (mini_batch,) = pack_samples(update_samples(), packing_layout(config, num_data_parallel=1)).mini_batches
    (model,) = build_model(load_hf_config(tmp_path), config=config, parallel=parallel)
    model.to("meta").rope_frequencies = model.rope_frequencies.to("meta")
    micro = mini_batch.micro_batches[0][0]
    boundaries = micro.cu_seqlens, micro.prefix_ids  # the host reads them
    on_meta = micro.to(torch.device("meta"))
    on_meta.cu_seqlens, on_meta.prefix_ids = boundaries
    hidden = model(on_meta)
    out = logprobs_and_entropy(
        hidden, model.head_weight, on_meta.target_ids, temperature=0.7, vocab_size=512, parallel=parallel
    )
    (out.logprobs.sum() + out.entropy.sum()).backward()
    assert (hidden.shape, hidden.dtype) == ((micro.num_tokens, 1, 64), torch.bfloat16)
    assert operators.names.count("torch_attn::_varlen_attn") == 2  # layers
    assert operators.names.count("torch_attn::_varlen_attn_backward") == 2
    without = [name for name, p in model.named_parameters() if p.grad is None or p.grad.shape != p.shape]
    assert without == []
