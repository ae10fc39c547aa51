import math

import pytest
import torch

from rl.algorithms.kl import KlCoefficient, kl_estimate, kl_of_samples
from rl.batch.layout import PackingLayout
from rl.batch.packing import pack_samples
from rl.batches import Sample
from rl.config.schema import KlControl, KlPenalty, RLConfig

KINDS = list(KlPenalty)


def value_and_slope(difference: float, kind: KlPenalty) -> tuple[float, float]:
    logprobs = torch.tensor([-1.0 + difference], dtype=torch.float64, requires_grad=True)
    kl = kl_estimate(logprobs, torch.tensor([-1.0], dtype=torch.float64), kind)
    kl.sum().backward()
    return float(kl.detach()), float(logprobs.grad)


# exp(-0.5) = 0.6065307, exp(0.5) = 1.6487213
@pytest.mark.parametrize(
    ("kind", "difference", "value", "slope"),
    [
        (KlPenalty.K1, 0.5, 0.5, 0.5),
        (KlPenalty.K1, -0.5, -0.5, -0.5),
        (KlPenalty.K2, 0.5, 0.125, 0.5),
        (KlPenalty.K2, -0.5, 0.125, -0.5),
        (KlPenalty.K3, 0.5, 0.1065307, 0.3934693),
        (KlPenalty.K3, -0.5, 0.1487213, -0.6487213),
        (KlPenalty.LOW_VAR_KL, -0.5, 0.1487213, -0.6487213),
    ],
)
def test_kl_estimate_worked_example(kind: KlPenalty, difference: float, value: float, slope: float):
    assert value_and_slope(difference, kind) == pytest.approx((value, slope), abs=1e-6)


@pytest.mark.parametrize("kind", [KlPenalty.K1, KlPenalty.K3])
def test_kl_estimate_in_expectation_is_the_divergence(kind: KlPenalty):
    policy, reference = torch.tensor([0.7, 0.2, 0.1]), torch.tensor([0.4, 0.4, 0.2])
    exact = (policy * (policy / reference).log()).sum()
    estimate = (policy * kl_estimate(policy.log(), reference.log(), kind)).sum()
    torch.testing.assert_close(estimate, exact)


@pytest.mark.parametrize("kind", [KlPenalty.K1, KlPenalty.K2])
def test_kl_estimate_gradient_in_expectation_is_that_of_the_divergence(kind: KlPenalty):
    logits = torch.tensor([1.0, 0.0, -0.5], requires_grad=True)
    reference = torch.tensor([0.4, 0.4, 0.2]).log()
    logprobs = logits.log_softmax(0)
    (exact,) = torch.autograd.grad((logprobs.exp() * (logprobs - reference)).sum(), logits)
    logprobs = logits.log_softmax(0)
    (actual,) = torch.autograd.grad((logprobs.exp().detach() * kl_estimate(logprobs, reference, kind)).sum(), logits)
    torch.testing.assert_close(actual, exact)


@pytest.mark.parametrize("kind", KINDS)
def test_kl_estimate_of_equal_policies_is_zero_with_zero_gradient(kind: KlPenalty):
    assert value_and_slope(0.0, kind) == (0.0, 0.0)


def test_kl_estimate_stays_finite_far_from_the_reference():
    assert kl_estimate(torch.tensor([-2000.0]), torch.tensor([0.0]), KlPenalty.K3).isfinite().all()


def kl_by_trajectory(max_tokens: int) -> list[float]:
    """Sampled are 2 and 3, and 4. The log-prob of token n is -n / 10 at the engine, -n / 5 at the reference."""
    samples = []
    for name, ids in (("a/0", [1, 2, 3]), ("a/1", [1, 4]), ("b/0", [1, 9])):
        mask = torch.tensor([0.0] + [1.0] * (len(ids) - 1)) * (name != "b/0")
        rollout = -0.1 * torch.tensor(ids, dtype=torch.float32) * mask
        samples.append(Sample(name, name[0], torch.tensor(ids), mask, mask, rollout))
    layout = PackingLayout(num_data_parallel=1, max_tokens=max_tokens, mini_batch_prompts=2, share_prefix=True)
    (mini_batch,) = pack_samples(samples, layout).mini_batches
    for micro in mini_batch.micro_batches[0]:
        micro.ref_logprobs = -0.2 * micro.target_ids * micro.loss_mask
    return kl_of_samples(mini_batch.micro_batches[0], len(mini_batch.trajectory_ids), KlPenalty.K1).tolist()


@pytest.mark.parametrize("max_tokens", [1, 100])
def test_kl_of_samples_sums_over_sampled_tokens_however_they_are_packed(max_tokens: int):
    assert kl_by_trajectory(max_tokens) == pytest.approx([0.5, 0.4])  # 0.1 (2 + 3), 0.1 x 4


def test_kl_coefficient_follows_the_divergence_by_at_most_a_fifth():
    kl = KlCoefficient(0.1, is_adaptive=True, target=0.05, horizon=100.0)
    kl.observe(0.2, 10)  # four times the target: the error is bounded to 0.2
    assert kl.value == pytest.approx(0.102)
    kl.observe(0.045, 50)  # 0.102 (1 - 0.1 * 50 / 100)
    assert kl.value == pytest.approx(0.0969)
    kl.observe(-1.0, 50)  # k1 may be negative: bounded to -0.2
    assert kl.value == pytest.approx(0.0969 * 0.9)


def test_kl_coefficient_stays_at_the_target_and_where_it_is_fixed_and_never_goes_below_zero():
    kl = KlCoefficient.of(RLConfig(init_kl_coef=0.1, kl_ctrl_type=KlControl.ADAPTIVE, kl_target=0.5))
    kl.observe(0.5, 1000)
    kl.observe(math.nan, 1000)
    assert kl.value == 0.1
    kl.observe(0.0, 10**9)
    assert kl.value == 0.0
    fixed = KlCoefficient.of(RLConfig(init_kl_coef=0.1))
    fixed.observe(7.0, 1000)
    assert fixed.value == 0.1
