import math

import pytest
import torch
from torch import Tensor

from rl.algorithms.importance import correct
from rl.algorithms.mismatch import MismatchSums, mismatch_metrics, mismatch_sums
from rl.config.correction import RolloutCorrection

IDS = torch.tensor([-1, 0, 0, -1, 1])
TRAINED = torch.tensor([0.0, 0.5, 0.25, 0.0, 0.4]).clamp(min=1e-9).log() * (IDS >= 0)
ROLLOUT = torch.tensor([0.0, 0.25, 0.5, 0.0, 0.1]).clamp(min=1e-9).log() * (IDS >= 0)
"""Ratios 2 and 1/2 in a sequence of two tokens, 4 in one of one token."""
SETTINGS = RolloutCorrection(rollout_rs="seq_max_k2", rollout_rs_threshold=0.5)


def summed(trained: Tensor, rollout: Tensor, ids: Tensor, settings: RolloutCorrection = SETTINGS) -> MismatchSums:
    return mismatch_sums(trained, rollout, ids, correct(trained - rollout, ids, settings), settings)


def test_mismatch_metrics_worked_example():
    metrics = mismatch_metrics(summed(TRAINED, ROLLOUT, IDS), SETTINGS)
    ppl_trained = (math.sqrt(8) + 2.5) / 2  # exp(-(ln 1/2 + ln 1/4) / 2) and 1 / 0.4
    ppl_rollout = (math.sqrt(8) + 10) / 2
    weights = (2.0, 0.5, 2.0)  # 4 is truncated
    mean, second = 1.5, (4 + 0.25 + 4) / 3
    assert sum(weights) / 3 == mean
    expected = {
        "kl": -math.log(4) / 3,  # -(ln 2 - ln 2 + ln 4) / 3
        "k3_kl": ((1 - math.log(2)) + (math.log(2) - 0.5) + (3 - math.log(4))) / 3,
        "chi2_token": (4 + 0.25 + 16) / 3 - 1,
        "training_ppl": ppl_trained,
        "rollout_ppl": ppl_rollout,
        "log_ppl_diff": -math.log(4) / 2,
        "log_ppl_abs_diff": math.log(4) / 2,
        "log_ppl_diff_max": 0.0,
        "log_ppl_diff_min": -math.log(4),
        "ppl_ratio": (1 + 0.25) / 2,
        "chi2_seq": (1 + 16) / 2 - 1,
        "rollout_is_mean": mean,
        "rollout_is_std": math.sqrt(second - mean**2),
        "rollout_is_max": 2.0,
        "rollout_is_min": 0.5,
        "rollout_is_eff_sample_size": mean**2 / second,
        "rollout_is_ratio_fraction_high": 1 / 3,  # above 2: the 4
        "rollout_is_ratio_fraction_low": 0.0,  # below 1/2: none
        "rollout_rs_masked_fraction": 1 / 3,  # ln²4 / 2 = 0.96 is above 0.5
        "rollout_rs_seq_masked_fraction": 1 / 2,
    }
    assert metrics == pytest.approx({f"rollout_corr/{name}": v for name, v in expected.items()}, rel=1e-5, abs=1e-6)


def test_mismatch_metrics_do_not_depend_on_how_micro_batches_are_cut():
    whole = summed(TRAINED, ROLLOUT, IDS)
    first = summed(TRAINED[:4], ROLLOUT[:4], IDS[:4])
    second = summed(TRAINED[4:], ROLLOUT[4:], torch.tensor([0]))
    empty = summed(torch.zeros(3), torch.zeros(3), torch.full((3,), -1))
    maxima = torch.stack([first.maxima, second.maxima, empty.maxima]).amax(0)
    joined = MismatchSums(first.sums + second.sums + empty.sums, maxima)
    assert mismatch_metrics(joined, SETTINGS) == pytest.approx(mismatch_metrics(whole, SETTINGS), rel=1e-5, abs=1e-6)


def test_mismatch_metrics_of_equal_policies():
    metrics = mismatch_metrics(summed(TRAINED, TRAINED, IDS), SETTINGS)
    ones = {"rollout_is_mean", "rollout_is_max", "rollout_is_min", "rollout_is_eff_sample_size", "ppl_ratio"}
    for name, value in metrics.items():
        short = name.removeprefix("rollout_corr/")
        if not short.endswith("_ppl"):
            assert value == (1.0 if short in ones else 0.0), name


def test_mismatch_metrics_without_tokens_are_empty():
    assert mismatch_metrics(summed(torch.zeros(3), torch.zeros(3), torch.full((3,), -1)), SETTINGS) == {}


def test_mismatch_metrics_omit_what_is_not_configured():
    settings = RolloutCorrection(rollout_is=None)
    names = mismatch_metrics(summed(TRAINED, ROLLOUT, IDS, settings), settings)
    assert "rollout_corr/kl" in names
    assert not [name for name in names if "rollout_is" in name or "rollout_rs" in name]
