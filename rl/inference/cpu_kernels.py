"""Registers vLLM's C++ RMSNorm kernels for the CPU.

vLLM 0.32 ships these kernels, but its eager path runs six torch ops instead. The worker extension imports this module
in vLLM's workers before they look up kernels by provider name (`ir_op_priority`).
"""

from __future__ import annotations

import torch
from torch import Tensor
from vllm import ir

PROVIDER = "turnwise_cpu"
"""Provider name of these kernels in vLLM's registry."""


def _is_supported(x: Tensor, weight: Tensor | None, variance_size: int | None) -> bool:
    if x.device.type != "cpu" or weight is None or variance_size is not None:
        return False
    return weight.dtype == x.dtype and x.is_contiguous()


@ir.ops.rms_norm.register_impl(
    PROVIDER,
    supports_args=lambda x, weight, epsilon, variance_size=None: _is_supported(x, weight, variance_size),
)
def rms_norm(x: Tensor, weight: Tensor | None, epsilon: float, variance_size: int | None = None) -> Tensor:
    """Normalize over the last dimension: x / sqrt(mean(x^2) + epsilon) * weight."""
    result = torch.empty_like(x)
    torch.ops._C.rms_norm(result, x, weight, epsilon)
    return result


@ir.ops.fused_add_rms_norm.register_impl(
    PROVIDER,
    supports_args=lambda x, x_residual, weight, epsilon, variance_size=None: (
        _is_supported(x, weight, variance_size) and x_residual.is_contiguous()
    ),
    inplace=True,
)
def fused_add_rms_norm(
    x: Tensor, x_residual: Tensor, weight: Tensor | None, epsilon: float, variance_size: int | None = None
) -> tuple[Tensor, Tensor]:
    """Add in place, then normalize in place: (rms_norm(x + residual), x + residual)."""
    torch.ops._C.fused_add_rms_norm(x, x_residual, weight, epsilon)
    return x, x_residual
