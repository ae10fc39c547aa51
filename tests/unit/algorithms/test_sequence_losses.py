import math

import pytest
import torch
from torch import Tensor

from rl.algorithms.losses import LOSSES
from rl.algorithms.token_loss import TokenLoss

# Two sequences of 2 and 3 tokens, one without loss. Log-ratios 0.4 and 0, mean 0.2; -0.3 and 0.1, mean -0.1.
IDS = torch.tensor([0, 0, 1, -1, 1])
MASK = (IDS >= 0).float()
CHANGE = torch.tensor([0.4, 0.0, -0.3, 0.0, 0.1])
OLD = torch.tensor([-1.0, -2.0, -0.5, 0.0, -1.5])
WEIGHTS = torch.tensor([1 / 4, 1 / 4, 1 / 4, 0, 1 / 4])
"""seq-mean-token-mean: 1 / (2 sequences x 2 tokens)."""

sequence_losses = pytest.mark.parametrize("name", ["gspo", "gmpo"])


def loss_and_gradient(
    name: str, advantages: Tensor, *, ids: Tensor = IDS, clip: float = 10.0, order: Tensor | None = None
) -> tuple[TokenLoss, Tensor]:
    """Loss, and gradient of the weighted sum by the current log-probs; `order` permutes the tokens."""
    order = torch.arange(5) if order is None else order
    current = (OLD + CHANGE)[order].requires_grad_()
    token = LOSSES[name](
        current,
        OLD[order],
        advantages[order],
        clip_low=clip,
        clip_high=clip,
        clip_c=None,
        loss_mask=MASK[order],
        sequence_ids=ids[order],
    )
    (token.loss * WEIGHTS[order]).sum().backward()
    assert current.grad is not None
    return token, current.grad


@sequence_losses
def test_unclipped_loss_is_the_geometric_mean_of_the_ratios(name: str):
    # exp(0.2) = 1.2214028 with A = 1, exp(-0.1) = 0.9048374 with A = -2. Each token's gradient: -A s / (2 x 2).
    token, gradient = loss_and_gradient(name, torch.tensor([1.0, 1.0, -2.0, 0.0, -2.0]))
    torch.testing.assert_close(
        token.loss.detach() * MASK, torch.tensor([-1.2214028, -1.2214028, 1.8096748, 0, 1.8096748])
    )
    torch.testing.assert_close(gradient, torch.tensor([-0.3053507, -0.3053507, 0.4524187, 0, 0.4524187]))
    torch.testing.assert_close(token.ppo_kl, -CHANGE)
    assert token.is_clipped.tolist() == [0.0] * 5


def test_gspo_clips_whole_sequences():
    # Range 0.85 to 1.15. The first, 1.22, is bounded for A = 1 and not for A = -1; the second, 0.90, is within.
    token, gradient = loss_and_gradient("gspo", torch.tensor([1.0, 1.0, -2.0, 0.0, -2.0]), clip=0.15)
    torch.testing.assert_close(token.loss.detach()[:2], torch.tensor([-1.15, -1.15]))
    assert gradient[:2].tolist() == [0.0, 0.0] and bool((gradient[[2, 4]] > 0).all())
    assert token.is_clipped.tolist() == [1.0, 1.0, 0.0, 0.0, 0.0]
    token, gradient = loss_and_gradient("gspo", torch.tensor([-1.0, -1.0, 0.0, 0.0, 0.0]), clip=0.15)
    assert token.is_clipped.tolist() == [0.0] * 5 and bool((gradient[:2] > 0).all())


def test_gspo_gives_each_token_its_own_advantage():
    _, gradient = loss_and_gradient("gspo", torch.tensor([1.0, 3.0, 0.0, 0.0, 0.0]))
    torch.testing.assert_close(gradient[:2], -torch.tensor([1.0, 3.0]) * math.exp(0.2) / 4)


def test_gmpo_clips_tokens_in_log_space_from_one_side():
    # A = 1 at 0.15: (0.15 + 0) / 2; the clipped token has no gradient. A = -2: -0.3 becomes -0.15: (-0.15 + 0.1) / 2.
    token, gradient = loss_and_gradient("gmpo", torch.tensor([1.0, 1.0, -2.0, 0.0, -2.0]), clip=0.15)
    torch.testing.assert_close(token.loss.detach()[[0, 2]], torch.tensor([-math.exp(0.075), 2 * math.exp(-0.025)]))
    assert token.is_clipped.tolist() == [1.0, 0.0, 1.0, 0.0, 0.0]
    torch.testing.assert_close(gradient, torch.tensor([0, -math.exp(0.075) / 4, 0, 0, 2 * math.exp(-0.025) / 4]))
    # The other way round nothing is clipped: low ratios of good tokens, high ratios of bad ones.
    token, _ = loss_and_gradient("gmpo", torch.tensor([-1.0, -1.0, 1.0, 0.0, 1.0]), clip=0.15)
    assert token.is_clipped.tolist() == [0.0] * 5


@sequence_losses
def test_sequences_are_independent_and_order_does_not_matter(name: str):
    advantages = torch.tensor([1.0, 1.0, -2.0, 0.0, -2.0])
    token, gradient = loss_and_gradient(name, advantages, clip=0.25)
    order = torch.tensor([3, 4, 2, 0, 1])
    other, permuted = loss_and_gradient(name, advantages, ids=torch.tensor([4, 4, 0, -1, 0]), clip=0.25, order=order)
    torch.testing.assert_close(other.loss, token.loss[order])
    torch.testing.assert_close(permuted, gradient[order])


@sequence_losses
def test_sequences_of_one_token_are_bounded_like_single_tokens(name: str):
    ids = torch.tensor([0, 1, 2, -1, 3])
    token, _ = loss_and_gradient(name, torch.ones(5), ids=ids)
    torch.testing.assert_close(token.loss.detach()[IDS >= 0], -CHANGE.exp()[IDS >= 0])


@sequence_losses
def test_micro_batch_without_loss_tokens_has_no_gradient(name: str):
    _, gradient = loss_and_gradient(name, torch.zeros(5), ids=torch.full((5,), -1))
    assert gradient.tolist() == [0.0] * 5
