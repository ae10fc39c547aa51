import pytest
import torch

from rl.algorithms.aggregation import loss_aggregation, sequence_ids, sequence_mean, sequence_sum, token_loss_weights
from rl.config.schema import Config, LossAggregation

# Trajectory 0: one loss token. Trajectory 1: two samples with 1 and 2 loss tokens. Trajectory 2: none.
MASK = torch.tensor([0, 1, 0, 0, 1, 0, 1, 1, 0, 0], dtype=torch.float32)
IDS = torch.tensor([0, 0, 0, 1, 1, 1, 1, 1, 2, 2])
LOSS = torch.tensor([9.0, 4.0, 9.0, 9.0, 1.0, 9.0, 2.0, 3.0, 9.0, 9.0])

modes = pytest.mark.parametrize("mode", LossAggregation)


def test_token_mean_is_the_mean_over_tokens():
    weights = token_loss_weights(MASK, IDS, LossAggregation.TOKEN_MEAN)
    torch.testing.assert_close(weights, MASK / 4)
    assert float((weights * LOSS).sum()) == 2.5  # (4 + 1 + 2 + 3) / 4


def test_seq_mean_token_mean_counts_a_trajectory_once():
    weights = token_loss_weights(MASK, IDS, LossAggregation.SEQ_MEAN_TOKEN_MEAN)
    expected = torch.tensor([0, 1 / 2, 0, 0, 1 / 6, 0, 1 / 6, 1 / 6, 0, 0])
    torch.testing.assert_close(weights, expected)
    torch.testing.assert_close((weights * LOSS).sum(), torch.tensor(3.0))  # (4 + 2) / 2


def test_seq_mean_token_sum_norm_divides_by_a_constant():
    weights = token_loss_weights(MASK, IDS, LossAggregation.SEQ_MEAN_TOKEN_SUM_NORM, scale=5.0)
    torch.testing.assert_close(weights, MASK / 10)
    torch.testing.assert_close((weights * LOSS).sum(), torch.tensor(1.0))  # (4 / 5 + 6 / 5) / 2


@modes
def test_token_loss_weights_follow_a_permutation_of_the_tokens(mode: LossAggregation):
    order = torch.tensor([7, 2, 9, 0, 4, 1, 3, 8, 6, 5])
    weights = token_loss_weights(MASK, IDS, mode, scale=3.0)
    torch.testing.assert_close(token_loss_weights(MASK[order], IDS[order], mode, scale=3.0), weights[order])


@modes
def test_token_loss_weights_ignore_padding(mode: LossAggregation):
    padded = token_loss_weights(torch.cat([MASK, torch.zeros(3)]), torch.cat([IDS, torch.tensor([2, 2, 2])]), mode)
    assert padded.tolist() == [*token_loss_weights(MASK, IDS, mode).tolist(), 0.0, 0.0, 0.0]


@modes
def test_token_loss_weights_without_loss_tokens_are_zero(mode: LossAggregation):
    assert token_loss_weights(torch.zeros(3), torch.arange(3), mode).tolist() == [0.0] * 3


@modes
def test_token_loss_weights_of_one_token(mode: LossAggregation):
    assert token_loss_weights(torch.ones(1), torch.zeros(1, dtype=torch.int64), mode).tolist() == [1.0]


def test_loss_agg_mode_overrides_token_level_loss():
    config = Config()
    assert loss_aggregation(config)[0] is LossAggregation.TOKEN_MEAN
    config.rl_config.token_level_loss = False
    assert loss_aggregation(config)[0] is LossAggregation.SEQ_MEAN_TOKEN_MEAN
    config.rl_config.loss_agg_mode, config.rl_config.loss_scale_factor = LossAggregation.SEQ_MEAN_TOKEN_SUM_NORM, 7.0
    assert loss_aggregation(config) == (LossAggregation.SEQ_MEAN_TOKEN_SUM_NORM, 7.0)


def test_default_loss_scale_is_the_longest_response():
    config = Config()
    config.rl_config.max_total_response_length, config.generate_config.sampling_config.max_tokens = 700, 300
    assert loss_aggregation(config)[1] == 300.0
    config.rl_config.multi_turn_enable = True
    assert loss_aggregation(config)[1] == 700.0


def test_sequence_ids_number_the_samples_of_a_micro_batch():
    assert sequence_ids(torch.tensor([-1, 7, 7, -1, 2])).tolist() == [-1, 1, 1, -1, 0]
    assert sequence_ids(torch.tensor([3, 3])).tolist() == [0, 0]
    assert sequence_ids(torch.tensor([-1])).tolist() == [-1]


def test_sequence_sum_and_mean_worked_example_with_gradient():
    ids = torch.tensor([-1, 0, 0, -1, 1])
    values = torch.tensor([9.0, 1.0, 3.0, 9.0, 7.0], requires_grad=True)
    assert sequence_sum(values, ids).tolist() == [0, 4, 4, 0, 7]
    means = sequence_mean(values, ids)
    assert means.tolist() == [0, 2, 2, 0, 7]
    (means * torch.tensor([5.0, 1.0, 3.0, 5.0, 2.0])).sum().backward()
    assert values.grad is not None
    assert values.grad.tolist() == [0, 2, 2, 0, 2]  # (1 + 3) / 2 for each token of the first


def test_sequence_mean_without_loss_tokens_is_zero():
    assert sequence_mean(torch.ones(3), torch.full((3,), -1)).tolist() == [0.0] * 3
