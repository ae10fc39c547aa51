from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from rl.training.norm import _RMSNormOnCpu


def gradients(normed: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    scales = torch.randn(normed.shape, generator=torch.Generator().manual_seed(1))
    return torch.autograd.grad((normed.float() * scales).sum(), inputs)


def test_rms_norm_worked_example() -> None:
    # The mean square of 3, 1, 1, 1 is 3, plus 1 is 4: half of each, times the weight.
    x = torch.tensor([[3.0, 1.0, 1.0, 1.0]])
    normed = _RMSNormOnCpu.apply(x, torch.tensor([1.0, 2.0, 4.0, 0.0]), 1.0)
    assert normed.tolist() == [[1.5, 1.0, 2.0, 0.0]]


@pytest.mark.parametrize("shape", [(5, 1, 16), (3, 2, 16), (1, 16)])
def test_rms_norm_gradient_equals_autograd(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(shape, requires_grad=True), torch.randn(16, requires_grad=True)
    ours, plain = _RMSNormOnCpu.apply(x, weight, 1e-5), functional.rms_norm(x, (16,), weight, 1e-5)
    torch.testing.assert_close(ours, plain, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(gradients(ours, x, weight), gradients(plain, x, weight), atol=1e-5, rtol=1e-5)


def test_rms_norm_in_bfloat16_computes_in_float32() -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(7, 16).bfloat16(), torch.randn(16).bfloat16()
    exact = functional.rms_norm(x.double(), (16,), weight.double(), 1e-5)
    normed = _RMSNormOnCpu.apply(x, weight, 1e-5)
    assert normed.dtype == torch.bfloat16
    torch.testing.assert_close(normed.double(), exact, atol=0, rtol=2**-8)  # rounded once
