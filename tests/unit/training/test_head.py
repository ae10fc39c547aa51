from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from rl.training import head
from rl.training.head import logprobs_and_entropy
from rl.training.parallel import ParallelState


def plain(hidden: Tensor, weight: Tensor, target_ids: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    log_p = torch.log_softmax(hidden @ weight.t() / temperature, dim=-1)
    return log_p.gather(1, target_ids.unsqueeze(1)).squeeze(1), -(log_p.exp() * log_p).sum(1)


def test_head_worked_example(parallel: ParallelState) -> None:
    # Logits 0, ln 2, 0: probabilities 1/4, 1/2, 1/4; entropy 1/2 ln 2 + 2 x 1/4 ln 4 = 1.5 ln 2.
    hidden = torch.tensor([[0.0, math.log(2.0), 0.0]] * 2)
    out = logprobs_and_entropy(
        hidden, torch.eye(3), torch.tensor([1, 0]), temperature=1.0, vocab_size=3, parallel=parallel
    )
    torch.testing.assert_close(out.logprobs, torch.tensor([math.log(0.5), math.log(0.25)]))
    torch.testing.assert_close(out.entropy, torch.tensor([1.5 * math.log(2.0)] * 2))


def test_head_temperature_divides_logits(parallel: ParallelState) -> None:
    hidden = torch.tensor([[0.0, 2.0 * math.log(2.0), 0.0]])
    out = logprobs_and_entropy(
        hidden, torch.eye(3), torch.tensor([1]), temperature=2.0, vocab_size=3, parallel=parallel
    )
    torch.testing.assert_close(out.logprobs, torch.tensor([math.log(0.5)]))


@pytest.mark.parametrize("num_bytes", [1, 4 * 50 * 3, 1 << 20], ids=["one token", "three tokens", "one chunk"])
def test_head_gradients_equal_plain_autograd(
    parallel: ParallelState, monkeypatch: pytest.MonkeyPatch, num_bytes: int
) -> None:
    monkeypatch.setattr(head, "_PRODUCT_BYTES", num_bytes)
    monkeypatch.setattr(head, "_SOFTMAX_BYTES", {"cpu": max(1, num_bytes // 2)})
    torch.manual_seed(0)
    hidden, weight = torch.randn(10, 8, requires_grad=True), torch.randn(50, 8, requires_grad=True)
    target_ids, scales = torch.randint(0, 50, (10,)), torch.randn(2, 10)

    out = logprobs_and_entropy(hidden, weight, target_ids, temperature=0.7, vocab_size=50, parallel=parallel)
    actual = torch.autograd.grad((scales[0] * out.logprobs + scales[1] * out.entropy).sum(), (hidden, weight))
    logprobs, entropy = plain(hidden, weight, target_ids, 0.7)
    expected = torch.autograd.grad((scales[0] * logprobs + scales[1] * entropy).sum(), (hidden, weight))

    torch.testing.assert_close(out.logprobs, logprobs, atol=1e-5, rtol=0)
    torch.testing.assert_close(out.entropy, entropy, atol=1e-5, rtol=0)
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("num_chunks", [1, 4, 32])
def test_head_gradient_of_bfloat16_weights_is_as_good_in_many_chunks_as_in_one(
    parallel: ParallelState, monkeypatch: pytest.MonkeyPatch, num_chunks: int
) -> None:
    """One chunk has an error of 0.22 % from its products; 32 chunks summed in bfloat16 would have 0.67 %."""
    monkeypatch.setattr(head, "_PRODUCT_BYTES", 256 // num_chunks * 64 * 2)
    torch.manual_seed(0)
    hidden, weight = torch.randn(256, 32).bfloat16(), (torch.randn(64, 32) / 10).bfloat16()
    target_ids, scale = torch.randint(0, 64, (256,)), torch.rand(256)

    def gradient(hidden: Tensor, weight: Tensor) -> Tensor:
        weight.requires_grad_()
        out = logprobs_and_entropy(hidden, weight, target_ids, temperature=1.0, vocab_size=64, parallel=parallel)
        (grad,) = torch.autograd.grad((scale * out.logprobs).sum(), weight)
        return grad.float()

    actual, expected = gradient(hidden, weight.clone()), gradient(hidden.float(), weight.float())
    assert float((actual - expected).norm() / expected.norm()) < 0.003


@pytest.mark.parametrize("term", ["logprobs", "entropy"])
def test_head_gradient_of_one_output_alone(parallel: ParallelState, term: str) -> None:
    torch.manual_seed(1)
    hidden, weight = torch.randn(4, 8, requires_grad=True), torch.randn(20, 8, requires_grad=True)
    target_ids = torch.tensor([3, 0, 19, 7])
    out = logprobs_and_entropy(hidden, weight, target_ids, temperature=1.0, vocab_size=20, parallel=parallel)
    actual = torch.autograd.grad(getattr(out, term).sum(), (hidden, weight))
    expected = torch.autograd.grad(plain(hidden, weight, target_ids, 1.0)[term == "entropy"].sum(), (hidden, weight))
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)


def test_head_mask_skips_positions(parallel: ParallelState) -> None:
    torch.manual_seed(2)
    hidden, weight = torch.randn(5, 1, 8, requires_grad=True), torch.randn(20, 8, requires_grad=True)
    target_ids, mask = torch.arange(5), torch.tensor([0.0, 1.0, 0.0, 0.5, 0.0])
    out = logprobs_and_entropy(hidden, weight, target_ids, temperature=1.0, vocab_size=20, parallel=parallel, mask=mask)
    expected, _ = plain(hidden.squeeze(1), weight, target_ids, 1.0)
    torch.testing.assert_close(out.logprobs, expected * (mask > 0), atol=1e-6, rtol=0)
    actual = torch.autograd.grad(out.logprobs.sum(), (hidden, weight))
    wanted = torch.autograd.grad((expected * (mask > 0)).sum(), (hidden, weight))
    torch.testing.assert_close(actual, wanted, atol=1e-6, rtol=1e-5)


def test_head_with_empty_mask_gives_zeros(parallel: ParallelState) -> None:
    hidden, weight = torch.randn(3, 8, requires_grad=True), torch.randn(20, 8, requires_grad=True)
    out = logprobs_and_entropy(
        hidden, weight, torch.arange(3), temperature=1.0, vocab_size=20, parallel=parallel, mask=torch.zeros(3)
    )
    (out.logprobs.sum() + out.entropy.sum()).backward()
    assert torch.equal(out.logprobs, torch.zeros(3)) and torch.equal(out.entropy, torch.zeros(3))
    assert hidden.grad is not None and torch.equal(hidden.grad, torch.zeros(3, 8))
    assert weight.grad is not None and torch.equal(weight.grad, torch.zeros(20, 8))


def test_head_ignores_padding_rows(parallel: ParallelState) -> None:
    torch.manual_seed(3)
    weight = torch.randn(7, 4, requires_grad=True)
    hidden, target_ids = torch.randn(3, 4), torch.tensor([4, 0, 2])
    out = logprobs_and_entropy(hidden, weight, target_ids, temperature=1.0, vocab_size=5, parallel=parallel)
    torch.testing.assert_close(out.logprobs, plain(hidden, weight[:5], target_ids, 1.0)[0])
    out.logprobs.sum().backward()
    assert weight.grad is not None and not weight.grad[5:].any() and weight.grad[:5].any()


def test_head_in_bfloat16_computes_softmax_in_float32(parallel: ParallelState) -> None:
    torch.manual_seed(4)
    hidden, weight = torch.randn(6, 16).bfloat16(), torch.randn(300, 16).bfloat16()
    target_ids = torch.arange(6)
    out = logprobs_and_entropy(hidden, weight, target_ids, temperature=1.0, vocab_size=300, parallel=parallel)
    logits = (hidden @ weight.t()).float()  # the only rounding to bfloat16
    expected = torch.log_softmax(logits, -1).gather(1, target_ids.unsqueeze(1)).squeeze(1)
    assert out.logprobs.dtype == torch.float32
    torch.testing.assert_close(out.logprobs, expected, atol=1e-5, rtol=0)
