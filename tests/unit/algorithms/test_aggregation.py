import torch

from rl.algorithms.aggregation import token_loss_weights

# Trajectory 0: one loss token. Trajectory 1: two samples with 1 and 2 loss tokens. Trajectory 2: none.
MASK = torch.tensor([0, 1, 0, 0, 1, 0, 1, 1, 0, 0], dtype=torch.float32)
IDS = torch.tensor([0, 0, 0, 1, 1, 1, 1, 1, 2, 2])
LOSS = torch.tensor([9.0, 4.0, 9.0, 9.0, 1.0, 9.0, 2.0, 3.0, 9.0, 9.0])


def test_token_loss_weights_token_level_is_the_mean_over_tokens():
    weights = token_loss_weights(MASK, IDS, token_level=True)
    torch.testing.assert_close(weights, MASK / 4)
    assert float((weights * LOSS).sum()) == 2.5  # (4 + 1 + 2 + 3) / 4


def test_token_loss_weights_sequence_level_counts_a_trajectory_once():
    weights = token_loss_weights(MASK, IDS, token_level=False)
    expected = torch.tensor([0, 1 / 2, 0, 0, 1 / 6, 0, 1 / 6, 1 / 6, 0, 0])
    torch.testing.assert_close(weights, expected)
    torch.testing.assert_close((weights * LOSS).sum(), torch.tensor(3.0))  # (4 + 2) / 2


def test_token_loss_weights_follow_a_permutation_of_the_tokens():
    order = torch.tensor([7, 2, 9, 0, 4, 1, 3, 8, 6, 5])
    for token_level in (True, False):
        weights = token_loss_weights(MASK, IDS, token_level=token_level)
        permuted = token_loss_weights(MASK[order], IDS[order], token_level=token_level)
        torch.testing.assert_close(permuted, weights[order])


def test_token_loss_weights_without_loss_tokens_are_zero():
    for token_level in (True, False):
        assert token_loss_weights(torch.zeros(3), torch.arange(3), token_level=token_level).tolist() == [0.0] * 3
