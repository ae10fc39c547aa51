"""The gated activation of the feed-forward network; it saves only its input for the backward pass."""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor, nn
from torch.nn import functional


class SwiGlu(nn.Module):
    """silu(gate) * up, with input [..., 2 F] = [gate, up].

    Megatron's operators would also save silu(gate) and a copy of up (up plus an offset of 0). Together they are as
    large as the input, a fifth of a layer's activations.

    Source: arXiv:2002.05202.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        assert config.gated_linear_unit and config.activation_func is functional.silu, "only SwiGLU is supported"

    def forward(self, gate_up: Tensor) -> Tensor:
        """Map [..., 2 F] to [..., F]."""
        return _SwiGlu.apply(gate_up)


class _SwiGlu(torch.autograd.Function):
    """d up = g silu(gate), d gate = g up silu'(gate); the backward pass recomputes silu(gate)."""

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
