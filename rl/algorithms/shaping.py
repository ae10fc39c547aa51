"""Score shaping by length."""

from __future__ import annotations

import torch
from torch import Tensor


def overlong_penalty(lengths: Tensor, *, max_tokens: int, buffer: int, factor: float) -> Tensor:
    """Penalize responses near `max_tokens`, linearly over the last `buffer` tokens.

    P(l) = 0 for l <= max_tokens - buffer;  factor (max_tokens - buffer - l) / buffer inside the buffer;
    -factor for l > max_tokens.

    Example: max_tokens 100, buffer 20, factor 1: lengths 80, 90, 100, 130 give 0, -0.5, -1, -1.

    Args:
        lengths: [N] response lengths in tokens.
        max_tokens: Length from which the full penalty applies.
        buffer: Number of tokens before `max_tokens` over which the penalty grows; 0 makes it a step after `max_tokens`.
        factor: The full penalty, at least 0.

    Returns:
        [N] float32, from -factor to 0, to be added to the scores.

    Source: DAPO, arXiv:2503.14476, equation 13 (soft overlong punishment).
    """
    excess = lengths.float() - (max_tokens - buffer)
    share = (excess / buffer).clamp(0.0, 1.0) if buffer > 0 else (excess > 0).float()
    return torch.zeros_like(share) - factor * share
