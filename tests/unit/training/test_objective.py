"""The loss of one micro-batch with literal log-probs."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from rl.algorithms.losses import LOSSES
from rl.batches import MicroBatch
from rl.config.correction import ImportanceLevel, RolloutCorrection
from rl.training.head import HeadOutput
from rl.training.objective import Objective, policy_loss

MASK = torch.tensor([0.0, 1.0, 1.0, 0.0, 1.0])
"""Two sequences, with two loss tokens and one."""
OLD = torch.tensor([1.0, 0.5, 0.25, 1.0, 0.4]).log()
ROLLOUT = torch.tensor([1.0, 0.25, 0.5, 1.0, 0.1]).log()
"""OLD / ROLLOUT is 2, 1/2 and 4."""
ADVANTAGES = torch.tensor([0.0, 1.0, 1.0, 0.0, -2.0])


def make_micro_batch(old: Tensor | None = OLD, ref: Tensor | None = None) -> MicroBatch:
    return MicroBatch(
        token_ids=torch.arange(5),
        target_ids=torch.arange(5),
        position_ids=torch.tensor([0, 1, 2, 0, 1]),
        cu_seqlens=torch.tensor([0, 3, 5], dtype=torch.int32),
        prefix_ids=torch.tensor([-1, -1]),
        loss_mask=MASK,
        loss_weights=MASK / 3,
        advantages=ADVANTAGES,
        rollout_logprobs=ROLLOUT.clone(),
        sample_ids=torch.tensor([-1, 0, 0, -1, 1]),
        old_logprobs=old,
        ref_logprobs=ref,
    )


def loss_and_gradient(
    correction: RolloutCorrection | None,
    *,
    loss: str = "clip",
    current: Tensor = OLD,
    batch: MicroBatch | None = None,
    kl_coef: float = 0.0,
) -> tuple[float, Tensor]:
    logprobs = current.clone().requires_grad_(True)
    objective = Objective(
        LOSSES[loss], temperature=1.0, clip_low=0.2, clip_high=0.2, kl_coef=kl_coef, correction=correction
    )
    value, _ = policy_loss(batch or make_micro_batch(), HeadOutput(logprobs, torch.zeros(5)), objective)
    value.backward()
    assert logprobs.grad is not None
    return value.item(), logprobs.grad


@pytest.mark.parametrize(
    ("correction", "weights"),
    [
        (RolloutCorrection(rollout_is=None), (1.0, 1.0, 1.0)),
        (RolloutCorrection(), (2.0, 0.5, 2.0)),
        (RolloutCorrection(rollout_is_threshold_lower=1.0), (2.0, 0.0, 0.0)),
        (RolloutCorrection(rollout_is=ImportanceLevel.SEQUENCE, rollout_is_threshold=3.0), (1.0, 1.0, 3.0)),
    ],
    ids=["none", "token", "band", "sequence"],
)
def test_policy_loss_weighs_each_token_where_the_ratio_is_one(
    correction: RolloutCorrection, weights: tuple[float, float, float]
):
    """Loss -A and gradient -A w / 3 at each token; no gradient flows through w."""
    value, gradient = loss_and_gradient(correction)
    first, second, third = weights
    assert value == pytest.approx((-first - second + 2 * third) / 3)
    torch.testing.assert_close(gradient, torch.tensor([0.0, -first / 3, -second / 3, 0.0, 2 * third / 3]))


def test_policy_loss_clips_around_old_and_weighs_by_old_over_rollout():
    """current / old is 1.5 at the first token, clipped at 1.2: no gradient; the weight does not change with current."""
    current = OLD + torch.tensor([0.0, math.log(1.5), math.log(1.1), 0.0, 0.0])
    value, gradient = loss_and_gradient(RolloutCorrection(), current=current)
    assert value == pytest.approx((-2 * 1.2 - 0.5 * 1.1 + 2 * 2) / 3)
    torch.testing.assert_close(gradient, torch.tensor([0.0, 0.0, -0.5 * 1.1 / 3, 0.0, 2 * 2 / 3]))


def test_policy_loss_in_bypass_mode_is_clipped_around_the_rollout():
    """current / rollout is 1.1, 1.5 and 0.5: not clipped; clipped at 1.2; clipped at 0.8 with A < 0."""
    current = ROLLOUT + torch.tensor([0.0, math.log(1.1), math.log(1.5), 0.0, math.log(0.5)])
    value, gradient = loss_and_gradient(RolloutCorrection(rollout_is=None, bypass_mode=True), current=current)
    assert value == pytest.approx((-1.1 - 1.2 + 2 * 0.8) / 3)
    torch.testing.assert_close(gradient, torch.tensor([0.0, -1.1 / 3, 0.0, 0.0, 0.0]))


def test_policy_loss_in_bypass_mode_weighs_a_loss_without_ratio_by_current_over_rollout():
    current = ROLLOUT + torch.tensor([0.0, math.log(1.5), math.log(3), 0.0, math.log(0.5)])
    _, gradient = loss_and_gradient(RolloutCorrection(bypass_mode=True), loss="reinforce", current=current)
    torch.testing.assert_close(gradient, torch.tensor([0.0, -1.5 / 3, -2 / 3, 0.0, 2 * 0.5 / 3]))


def test_policy_loss_excludes_rejected_sequences_from_every_term_but_keeps_the_denominator():
    settings = RolloutCorrection(rollout_is=None, rollout_rs="seq_max_k2", rollout_rs_threshold=0.5)  # ln²4 / 2 > 0.5
    batch = make_micro_batch(ref=torch.zeros(5))
    value, gradient = loss_and_gradient(settings, batch=batch, kl_coef=0.1)
    free, _ = loss_and_gradient(RolloutCorrection(rollout_is=None), batch=batch, kl_coef=0.1)
    kl = 1 / 0.4 - 1 + math.log(0.4)  # k3 against log-prob 0
    assert value == pytest.approx(free - (2 + 0.1 * kl) / 3)
    assert gradient[4] == 0.0 and gradient[1] != 0.0


def test_policy_loss_without_old_logprobs_weighs_by_current_over_rollout_without_gradient():
    batch = make_micro_batch(old=None)
    _, gradient = loss_and_gradient(RolloutCorrection(), batch=batch)
    torch.testing.assert_close(gradient, torch.tensor([0.0, -2 / 3, -0.5 / 3, 0.0, 2 * 2 / 3]))


@pytest.mark.parametrize("field", ["old_logprobs", "rollout_logprobs", "ref_logprobs", "advantages", "logprobs"])
@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_policy_loss_of_a_number_that_is_not_finite_is_nan_and_so_is_its_gradient(field: str, number: float):
    """Even though bounded exponents, IcePop's band and the rejection would hide most of them."""
    settings = RolloutCorrection(rollout_is_threshold_lower=0.1, rollout_rs="seq_max_k2", rollout_rs_threshold=9.0)
    batch, logprobs = make_micro_batch(ref=OLD.clone()), OLD.clone()
    tensor = logprobs if field == "logprobs" else getattr(batch, field).clone()
    tensor[2] = number
    if field != "logprobs":
        setattr(batch, field, tensor)
    logprobs.requires_grad_(True)
    objective = Objective(LOSSES["clip"], temperature=1.0, correction=settings)
    value, sums = policy_loss(batch, HeadOutput(logprobs, torch.zeros(5)), objective)
    value.backward()
    assert logprobs.grad is not None
    assert math.isnan(value.item()) and bool(logprobs.grad.isnan().all())
    assert sums.is_broken.tolist() == [False, False, True, False, False]


def test_policy_loss_ignores_tokens_outside_the_loss_mask():
    batch = make_micro_batch()
    batch.rollout_logprobs[3] = -math.inf
    expected, _ = loss_and_gradient(RolloutCorrection())
    value, _ = loss_and_gradient(RolloutCorrection(), batch=batch)
    assert value == expected
