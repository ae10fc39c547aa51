"""The gate of the feed-forward network, which keeps its input alone for the backward pass."""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor, nn
from torch.nn import functional


class SwiGlu(nn.Module):
    """silu(gate) * up, of [..., 2 F] = [gate, up].

    Written with Megatron's own operators it keeps silu(gate) and a copy of up as well (up + an offset that is 0), which
    together are as large as the input: a fifth of a layer's activations.

    Source: arXiv:2002.05202.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        assert config.gated_linear_unit and config.activation_func is functional.silu, "another activation"

    def forward(self, gate_up: Tensor) -> Tensor:
        """Map [..., 2 F] to [..., F]."""
        return _SwiGlu.apply(gate_up)


class _SwiGlu(torch.autograd.Function):
    """d up = g silu(gate), d gate = g up silu'(gate); silu(gate) is computed again in the backward pass."""

    @staticmethod
    def forward(ctx: Any, gate_up: Tensor) -> Tensor:
        ctx.save_for_backward(gate_up)
        gate, up = gate_up.chunk(2, dim=-1)
        return functional.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (gate_up,) = ctx.saved_tensors
        gate, up = gate_up.chunk(2, dim=-1)
        grad_gate_up = torch.empty_like(gate_up)
        grad_gate, grad_up = grad_gate_up.chunk(2, dim=-1)
        torch.mul(grad, functional.silu(gate), out=grad_up)
        torch.ops.aten.silu_backward.grad_input(grad * up, gate, grad_input=grad_gate)
        return grad_gate_up
