import math

import pytest
import torch

from rl.algorithms.importance import REJECTIONS, bound_weights, correct, importance_ratios, keep_sequences
from rl.config.correction import ImportanceLevel, RolloutCorrection

IDS = torch.tensor([-1, 0, 0, -1, 1, 1, 1])
"""A sequence of two loss tokens and one of three."""
LOG_RATIOS = torch.tensor([0.0, 2.0, 0.5, 0.0, 0.5, 1.0, 4.0]).clamp(min=1e-9).log() * (IDS >= 0)
"""Ratios 2 and 1/2, product 1; 1/2, 1 and 4, product 2."""


def test_importance_ratios_of_tokens_and_of_sequences():
    by_token = importance_ratios(LOG_RATIOS, IDS, ImportanceLevel.TOKEN)
    torch.testing.assert_close(by_token, torch.tensor([1.0, 2.0, 0.5, 1.0, 0.5, 1.0, 4.0]))
    by_sequence = importance_ratios(LOG_RATIOS, IDS, ImportanceLevel.SEQUENCE)
    torch.testing.assert_close(by_sequence, torch.tensor([1.0, 1.0, 1.0, 1.0, 2.0, 2.0, 2.0]))


def test_importance_ratios_cannot_overflow():
    ratios = importance_ratios(torch.tensor([500.0, -500.0]), torch.tensor([0, 1]), ImportanceLevel.TOKEN)
    torch.testing.assert_close(ratios, torch.tensor([math.exp(20), math.exp(-20)]))


def test_bound_weights_truncates_or_cuts_a_band_out():
    ratios = torch.tensor([0.4, 0.5, 1.5, 2.0, 3.0])
    torch.testing.assert_close(bound_weights(ratios, 2.0), torch.tensor([0.4, 0.5, 1.5, 2.0, 2.0]))
    torch.testing.assert_close(bound_weights(ratios, 2.0, 0.5), torch.tensor([0.0, 0.5, 1.5, 2.0, 0.0]))


@pytest.mark.parametrize(
    ("statistic", "upper", "lower", "kept"),
    [
        ("seq_sum_k1", 1.5, None, (1, 0)),  # ratios 1 and 2
        ("seq_sum_k1", 2.5, 1.5, (0, 1)),
        ("seq_mean_k1", 1.1, None, (1, 0)),  # geometric means 1 and 2^(1/3) = 1.26
        ("seq_mean_k1", 1.3, None, (1, 1)),
        ("seq_sum_k2", 1.0, None, (1, 0)),  # ln²2 / 2 = 0.240 each: 0.480; 0.240 + 0 + 0.961 = 1.201
        ("seq_mean_k2", 0.3, None, (1, 0)),  # 0.240; 0.400
        ("seq_max_k2", 0.5, None, (1, 0)),  # 0.240; 0.961
        ("seq_sum_k3", 0.6, None, (1, 0)),  # 1 - ln 2 = 0.307, ln 2 - 1/2 = 0.193: 0.5; 0.193 + 0 + 3 - ln 4 = 1.807
        ("seq_mean_k3", 0.2, None, (0, 0)),  # 0.25; 0.602
        ("seq_max_k3", 0.31, None, (1, 0)),  # 0.307; 1.614
    ],
)
def test_keep_sequences_worked_example(statistic: str, upper: float, lower: float | None, kept: tuple[int, int]):
    first, second = kept
    expected = torch.tensor([1, first, first, 1, second, second, second]).float()
    assert torch.equal(keep_sequences(LOG_RATIOS, IDS, statistic, upper=upper, lower=lower), expected)


@pytest.mark.parametrize("statistic", sorted(REJECTIONS))
def test_keep_sequences_does_not_depend_on_order_or_padding(statistic: str):
    generator = torch.Generator().manual_seed(1)
    ids = torch.arange(6).repeat_interleave(5)
    log_ratios = torch.randn(30, generator=generator) / 3
    upper = 1.3 if statistic.endswith("k1") else {"mean": 0.05, "sum": 0.25, "max": 0.15}[statistic[4:-3].strip("_")]
    kept = keep_sequences(log_ratios, ids, statistic, upper=upper)
    assert 0 < kept.sum() < 30
    order = torch.randperm(30, generator=generator)
    padded_ratios, padded_ids = torch.cat([log_ratios[order], torch.zeros(4)]), torch.cat([ids[order], -torch.ones(4)])
    again = keep_sequences(padded_ratios, padded_ids.long(), statistic, upper=upper)
    assert torch.equal(again, torch.cat([kept[order], torch.ones(4)]))


@pytest.mark.parametrize("statistic", sorted(REJECTIONS))
def test_keep_sequences_keeps_equal_policies_and_nothing_at_all(statistic: str):
    assert torch.equal(keep_sequences(torch.zeros(3), torch.tensor([0, 0, 1]), statistic, upper=1.0), torch.ones(3))
    nothing = keep_sequences(torch.zeros(2), torch.tensor([-1, -1]), statistic, upper=1.0)
    assert torch.equal(nothing, torch.ones(2))


def test_correct_by_default_truncates_single_tokens_at_two():
    correction = correct(LOG_RATIOS, IDS, RolloutCorrection())
    torch.testing.assert_close(correction.weights, torch.tensor([1.0, 2.0, 0.5, 1.0, 0.5, 1.0, 2.0]))
    torch.testing.assert_close(correction.ratios[-1], torch.tensor(4.0))
    assert torch.equal(correction.is_kept, torch.ones(7))


def test_correct_with_nothing_configured_changes_nothing():
    correction = correct(LOG_RATIOS, IDS, RolloutCorrection(rollout_is=None, rollout_is_threshold_lower=0.5))
    assert torch.equal(correction.weights, torch.ones(7)) and torch.equal(correction.is_kept, torch.ones(7))


def test_correct_weighs_and_rejects_independently():
    settings = RolloutCorrection(
        rollout_is=ImportanceLevel.SEQUENCE, rollout_is_threshold=1.5, rollout_rs="seq_max_k2", rollout_rs_threshold=0.5
    )
    correction = correct(LOG_RATIOS, IDS, settings)
    torch.testing.assert_close(correction.weights, torch.tensor([1.0, 1.0, 1.0, 1.0, 1.5, 1.5, 1.5]))
    assert torch.equal(correction.is_kept, torch.tensor([1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0]))
