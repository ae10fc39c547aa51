"""Shared by the GPU tests: skip marks, and a model with sizes that the kernels support."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from tests.tiny import make_tiny_model

NEEDS_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
NEEDS_BFLOAT16 = pytest.mark.skipif(
    not (torch.cuda.is_available() and torch.cuda.is_bf16_supported()), reason="needs a CUDA device with bfloat16"
)


def needs(*modules: str) -> pytest.MarkDecorator:
    """Skip if a module is not installed; each test needs only its own modules."""
    missing = [name for name in modules if find_spec(name) is None]
    return pytest.mark.skipif(bool(missing), reason=f"{', '.join(missing)} is not installed")


def make_model(folder: Path, family: str = "qwen2") -> Path:
    """Two layers, head size 64, two query heads per key head."""
    return make_tiny_model(folder, family, hidden_size=128, num_layers=2, num_heads=2, num_kv_heads=1, tied=True)


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """|a - b| / |b|."""
    actual, expected = actual.detach().double().cpu(), expected.detach().double().cpu()
    return float((actual - expected).norm() / expected.norm())
