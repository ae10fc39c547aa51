import math

import pytest
import torch

from rl.algorithms.losses import LOSSES, clipped_policy_loss, clipped_weight_loss, reinforce_loss, sft_loss
from rl.algorithms.token_loss import TokenLoss

CLIP = {"clip_low": 0.2, "clip_high": 0.28}
RL_LOSSES = [name for name in LOSSES if name != "sft"]


def gradient(loss_name: str, ratio: float, advantage: float, clip_c: float | None = None) -> tuple[TokenLoss, float]:
    """Loss and its derivative with respect to the current log-prob, at one ratio."""
    old = torch.tensor([-1.0])
    current = (old + math.log(ratio)).requires_grad_()
    token = LOSSES[loss_name](
        current,
        old,
        torch.tensor([advantage]),
        clip_c=clip_c,
        loss_mask=torch.ones(1),
        sequence_ids=torch.zeros(1, dtype=torch.int64),
        **CLIP,
    )
    token.loss.sum().backward()
    return token, float(current.grad)


# With A = 2: inside the range the loss is -2 ratio and its derivative by the log-prob is -2 ratio as well.
@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "slope", "is_clipped"),
    [
        (1.0, 2.0, -2.0, -2.0, 0.0),
        (1.27, 2.0, -2.54, -2.54, 0.0),
        (1.5, 2.0, -2.56, 0.0, 1.0),  # bounded to 1.28
        (0.5, 2.0, -1.0, -1.0, 0.0),  # below the range with A > 0: not clipped
        (0.5, -2.0, 1.6, 0.0, 1.0),  # bounded to 0.8
        (1.5, -2.0, 3.0, 3.0, 0.0),
    ],
)
def test_clipped_policy_loss_worked_example(
    ratio: float, advantage: float, loss: float, slope: float, is_clipped: float
):
    token, actual_slope = gradient("clip", ratio, advantage)
    assert float(token.loss.detach()) == pytest.approx(loss, rel=1e-5)
    assert actual_slope == pytest.approx(slope, rel=1e-5)
    assert token.is_clipped.tolist() == [is_clipped]
    assert float(token.ppo_kl) == pytest.approx(-math.log(ratio), rel=1e-5)


@pytest.mark.parametrize("loss_name", RL_LOSSES)
def test_losses_at_ratio_one_have_the_gradient_of_reinforce(loss_name: str):
    for advantage in (2.0, -0.5, 0.0):
        token, slope = gradient(loss_name, 1.0, advantage, clip_c=3.0)
        assert slope == -advantage
        assert token.is_clipped.tolist() == [0.0] and token.ppo_kl.tolist() == [0.0]


# Dual clip at 3, A = -2: the loss 2 ratio is bounded to 6. Good tokens and small ratios are as without it.
@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "slope", "is_clipped"),
    [
        (2.9, -2.0, 5.8, 5.8, 0.0),
        (4.0, -2.0, 6.0, 0.0, 1.0),
        (0.5, -2.0, 1.6, 0.0, 1.0),
        (4.0, 2.0, -2.56, 0.0, 1.0),
        (1.1, 2.0, -2.2, -2.2, 0.0),
    ],
)
def test_dual_clip_worked_example(ratio: float, advantage: float, loss: float, slope: float, is_clipped: float):
    token, actual_slope = gradient("clip", ratio, advantage, clip_c=3.0)
    assert float(token.loss.detach()) == pytest.approx(loss, rel=1e-5)
    assert actual_slope == pytest.approx(slope, rel=1e-5)
    assert token.is_clipped.tolist() == [is_clipped]


# The weight is bounded to 0.8 and 1.28; the derivative is -weight A, never 0. log p is log(ratio) - 1.
@pytest.mark.parametrize(
    ("ratio", "advantage", "weight", "is_clipped"),
    [(1.0, 2.0, 1.0, 0.0), (1.2, 2.0, 1.2, 0.0), (4.0, 2.0, 1.28, 1.0), (0.5, -2.0, 0.8, 1.0), (0.9, -2.0, 0.9, 0.0)],
)
def test_cispo_worked_example(ratio: float, advantage: float, weight: float, is_clipped: float):
    token, slope = gradient("cispo", ratio, advantage)
    assert float(token.loss.detach()) == pytest.approx(-weight * advantage * (math.log(ratio) - 1), rel=1e-5)
    assert slope == pytest.approx(-weight * advantage, rel=1e-5)
    assert token.is_clipped.tolist() == [is_clipped]


@pytest.mark.parametrize("loss_name", RL_LOSSES)
def test_losses_stay_finite_at_extreme_differences(loss_name: str):
    for ratio in (1e30, 1e-30):
        token, slope = gradient(loss_name, ratio, -1.0)
        assert token.loss.isfinite().all() and math.isfinite(slope)


@pytest.mark.parametrize("loss_name", ["clip", "cispo", "reinforce", "sft"])
def test_token_losses_treat_tokens_independently(loss_name: str):
    old, change = torch.tensor([-1.0, -2.0, -0.5, -3.0]), torch.tensor([0.5, -0.4, 0.0, 0.1])
    advantages, order = torch.tensor([1.0, -2.0, 0.5, 0.0]), torch.tensor([3, 0, 2, 1])

    def losses(rows: torch.Tensor) -> torch.Tensor:
        settings = {"clip_c": 1.2, "loss_mask": torch.ones(len(rows)), "sequence_ids": torch.zeros(len(rows)).long()}
        return LOSSES[loss_name]((old + change)[rows], old[rows], advantages[rows], **CLIP, **settings).loss

    together = losses(torch.arange(4))
    assert torch.equal(losses(order), together[order])
    assert torch.equal(torch.cat([losses(torch.tensor([i])) for i in range(4)]), together)


def test_clipped_policy_loss_depends_on_the_difference_of_logprobs_alone():
    old, current, advantages = torch.tensor([-3.0, -0.5]), torch.tensor([-2.9, -0.7]), torch.tensor([1.0, -1.0])
    one = clipped_policy_loss(current, old, advantages, **CLIP)
    other = clipped_policy_loss(current - 1.0, old - 1.0, advantages, **CLIP)
    torch.testing.assert_close(one.loss, other.loss)


def test_cispo_without_a_lower_bound_is_the_papers():
    old, current = torch.zeros(2), torch.tensor([0.01, 3.0]).log()
    token = clipped_weight_loss(current, old, torch.ones(2), clip_low=1.0, clip_high=0.28)
    torch.testing.assert_close(token.loss, -torch.tensor([0.01, 1.28]) * current)


def test_reinforce_loss_worked_example():
    token = reinforce_loss(torch.tensor([-0.5, -2.0]), torch.tensor([-0.4, -2.0]), torch.tensor([3.0, -1.0]), **CLIP)
    torch.testing.assert_close(token.loss, torch.tensor([1.5, -2.0]))
    torch.testing.assert_close(token.ppo_kl, torch.tensor([0.1, 0.0]))


def test_sft_loss_is_the_negative_log_likelihood_whatever_the_advantages():
    logprobs = torch.tensor([-0.5, 0.0])
    token = sft_loss(logprobs, torch.tensor([-9.0, -9.0]), torch.tensor([0.0, -7.0]), **CLIP)
    assert token.loss.tolist() == [0.5, 0.0]
    assert token.ppo_kl.tolist() == [0.0, 0.0]
