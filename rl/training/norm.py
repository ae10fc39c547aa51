"""RMSNorm for Megatron's layer spec that supports sequence parallelism."""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor, nn
from torch.nn import functional


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight, over the last dimension.

    Megatron's own wrapper rejects sequence parallelism, although it only needs the attribute `sequence_parallel` on the
    weight: each tensor-parallel rank sees its part of the tokens, and Megatron sums the gradients of weights that have
    the attribute over the ranks.
    """

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-6) -> None:
        super().__init__()
        device = "cpu" if config.use_cpu_initialization else torch.cuda.current_device()
        self.weight = nn.Parameter(torch.ones(hidden_size, dtype=config.params_dtype, device=device))
        self.weight.sequence_parallel = config.sequence_parallel
        self.eps = eps

    def forward(self, hidden: Tensor) -> Tensor:
        """Normalize [..., H]."""
        if hidden.is_cuda:
            return functional.rms_norm(hidden, (hidden.shape[-1],), self.weight, self.eps)
        return _RMSNormOnCpu.apply(hidden, self.weight, self.eps)


class _RMSNormOnCpu(torch.autograd.Function):
    """RMSNorm with few passes over memory, in float32; it saves only its input for the backward pass.

    With n = x s, s = 1 / sqrt(mean(x^2) + eps), and y = n w:

        dx = s (g w - n mean(g w n))        dw = sum over tokens of g n
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, eps: float) -> Tensor:
        x = hidden.float()
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        scale = norm.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(hidden, weight, scale)
        return (x * scale).mul_(weight.float()).to(hidden.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        hidden, weight, scale = ctx.saved_tensors
        size = hidden.shape[-1]
        normed, w = hidden.float() * scale, weight.float()
        product = grad * normed
        mean = (product @ w).div_(size).unsqueeze(-1)
        grad_hidden = (grad * w).addcmul_(normed, mean, value=-1).mul_(scale)
        return grad_hidden.to(hidden.dtype), product.view(-1, size).sum(0).to(weight.dtype), None
