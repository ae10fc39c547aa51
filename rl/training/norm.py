"""RMSNorm for Megatron's layer spec that also works under sequence parallelism."""

from __future__ import annotations

import torch
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor, nn
from torch.nn import functional


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight, over the last dimension.

    Megatron's own wrapper refuses sequence parallelism. All it takes is the mark `sequence_parallel` on the weight:
    each tensor-parallel rank then sees only its part of the tokens, and Megatron sums the weight's gradient over the
    ranks where that mark stands.
    """

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-6) -> None:
        super().__init__()
        device = "cpu" if config.use_cpu_initialization else torch.cuda.current_device()
        self.weight = nn.Parameter(torch.ones(hidden_size, dtype=config.params_dtype, device=device))
        self.weight.sequence_parallel = config.sequence_parallel
        self.eps = eps

    def forward(self, hidden: Tensor) -> Tensor:
        """Normalize [..., H]."""
        return functional.rms_norm(hidden, (hidden.shape[-1],), self.weight, self.eps)
