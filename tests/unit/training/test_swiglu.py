from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional

from rl.training.swiglu import SwiGlu

SWIGLU = SwiGlu(SimpleNamespace(gated_linear_unit=True, activation_func=functional.silu))  # type: ignore[arg-type]


def test_swiglu_worked_example() -> None:
    """Gates 0 and ln 3 (sigmoid 1/2 and 3/4), ups 2 and 4."""
    ln3 = torch.tensor(3.0).log()
    gate_up = torch.tensor([[0.0, float(ln3), 2.0, 4.0]], requires_grad=True)
    out = SWIGLU(gate_up)
    torch.testing.assert_close(out, torch.stack([torch.tensor(0.0), 3 * ln3])[None])
    out.sum().backward()
    # silu'(x) = s (1 + x (1 - s)): 1/2 and 3/4 (1 + ln3 / 4), times up; then silu of the gates.
    expected = torch.stack([torch.tensor(1.0), 3 * (1 + ln3 / 4), torch.tensor(0.0), 0.75 * ln3])
    torch.testing.assert_close(gate_up.grad, expected[None])


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_swiglu_equals_autograd(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    ours = torch.randn(5, 1, 16, dtype=dtype, requires_grad=True)
    plain = ours.detach().clone().requires_grad_(True)
    gate, up = plain.chunk(2, dim=-1)
    expected = functional.silu(gate) * up
    grad = torch.randn(5, 1, 8, dtype=dtype)
    expected.backward(grad)
    out = SWIGLU(ours)
    out.backward(grad)
    torch.testing.assert_close(out, expected, atol=0, rtol=0)
    torch.testing.assert_close(ours.grad, plain.grad, atol=1e-12 if dtype is torch.float64 else 0, rtol=0)


def test_swiglu_saves_only_its_input() -> None:
    kept: list[torch.Tensor] = []
    gate_up = torch.randn(3, 8, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        SWIGLU(gate_up)
    assert [t.data_ptr() for t in kept] == [gate_up.data_ptr()]
