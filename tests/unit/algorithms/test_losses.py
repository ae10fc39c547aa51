import math

import pytest
import torch

from rl.algorithms.losses import LOSSES, TokenLoss, clipped_policy_loss, reinforce_loss, sft_loss

CLIP = {"clip_low": 0.2, "clip_high": 0.28}


def gradient(loss_name: str, ratio: float, advantage: float) -> tuple[TokenLoss, float]:
    """The loss and its derivative by the current log-prob, at one ratio."""
    old = torch.tensor([-1.0])
    current = (old + math.log(ratio)).requires_grad_()
    token = LOSSES[loss_name](current, old, torch.tensor([advantage]), **CLIP)
    token.loss.sum().backward()
    return token, float(current.grad)


# With A = 2: inside the range the loss is -2 ratio and its derivative by the log-prob is -2 ratio as well.
@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "slope", "is_clipped"),
    [
        (1.0, 2.0, -2.0, -2.0, 0.0),
        (1.27, 2.0, -2.54, -2.54, 0.0),
        (1.5, 2.0, -2.56, 0.0, 1.0),  # bounded to 1.28
        (0.5, 2.0, -1.0, -1.0, 0.0),  # falling behind: not bounded
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


def test_clipped_policy_loss_at_ratio_one_has_the_gradient_of_reinforce():
    for advantage in (2.0, -0.5, 0.0):
        clip, clip_slope = gradient("clip", 1.0, advantage)
        _, reinforce_slope = gradient("reinforce", 1.0, advantage)
        assert clip_slope == reinforce_slope
        assert clip.is_clipped.tolist() == [0.0] and clip.ppo_kl.tolist() == [0.0]


def test_clipped_policy_loss_depends_on_the_difference_of_logprobs_alone():
    old, current, advantages = torch.tensor([-3.0, -0.5]), torch.tensor([-2.9, -0.7]), torch.tensor([1.0, -1.0])
    one = clipped_policy_loss(current, old, advantages, **CLIP)
    other = clipped_policy_loss(current - 1.0, old - 1.0, advantages, **CLIP)
    torch.testing.assert_close(one.loss, other.loss)


def test_clipped_policy_loss_stays_finite_at_extreme_differences():
    token = clipped_policy_loss(torch.tensor([0.0, -2000.0]), torch.tensor([-2000.0, 0.0]), -torch.ones(2), **CLIP)
    assert token.loss.isfinite().all()


def test_reinforce_loss_worked_example():
    token = reinforce_loss(torch.tensor([-0.5, -2.0]), torch.tensor([-0.4, -2.0]), torch.tensor([3.0, -1.0]), **CLIP)
    torch.testing.assert_close(token.loss, torch.tensor([1.5, -2.0]))
    torch.testing.assert_close(token.ppo_kl, torch.tensor([0.1, 0.0]))


def test_sft_loss_is_the_negative_log_likelihood_whatever_the_advantages():
    logprobs = torch.tensor([-0.5, 0.0])
    token = sft_loss(logprobs, torch.tensor([-9.0, -9.0]), torch.tensor([0.0, -7.0]), **CLIP)
    assert token.loss.tolist() == [0.5, 0.0]
    assert token.ppo_kl.tolist() == [0.0, 0.0]
