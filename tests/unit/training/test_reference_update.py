"""Every advantage, loss, aggregation and off-policy correction against a plain reference implementation."""

from __future__ import annotations

from copy import deepcopy
from itertools import cycle, product
from pathlib import Path
from typing import Any

import pytest
import torch

from rl.algorithms.advantages import ADVANTAGES
from rl.algorithms.importance import REJECTIONS
from rl.algorithms.losses import LOSSES
from rl.batch.layout import packing_layout
from rl.batch.packing import pack_samples
from rl.config.correction import ImportanceLevel, RolloutCorrection
from rl.config.schema import Config, KlPenalty, LossAggregation
from rl.training.actor import Actor
from rl.training.objective import Objective
from tests.plain_update import PLAIN_ADVANTAGES, PLAIN_LOSSES, SCALE, make_groups, plain_step
from tests.samples import make_samples
from tests.tiny import make_tiny_model
from tests.update_case import PlainUpdate, set_logprobs, update_config


def megatron_step(actor: Actor, config: Config) -> dict[str, float]:
    """The project's update: samples, packing with shared prompts, the actor."""
    samples = make_samples(make_groups(), config, {})
    (mini_batch,) = pack_samples(samples, packing_layout(config, num_data_parallel=1)).mini_batches
    for micro in mini_batch.micro_batches[0]:
        set_logprobs(micro)
    return actor.update(mini_batch.micro_batches[0], kl_coef=config.rl_config.init_kl_coef)


CLIP_RANGES = {
    "gspo": {"clip_ratio_low": 0.01, "clip_ratio_high": 0.02},
    "gmpo": {"clip_ratio_low": 0.1, "clip_ratio_high": 0.15},
    "cispo": {"clip_ratio_low": 1.0},
}
"""Clip ranges by loss, chosen so that some tokens are clipped."""

CASES: dict[str, dict[str, Any]] = {
    "clip": {},
    "dual-clip": {"clip_ratio_c": 1.05},
    "gspo": {"policy_loss": "gspo", **CLIP_RANGES["gspo"]},
    "gmpo": {"policy_loss": "gmpo", **CLIP_RANGES["gmpo"]},
    "cispo": {"policy_loss": "cispo", **CLIP_RANGES["cispo"]},
    "reinforce": {"policy_loss": "reinforce"},
    "dr-grpo": {"norm_adv_by_std": False, "loss_agg_mode": LossAggregation.SEQ_MEAN_TOKEN_SUM_NORM},
    "token-mean": {"loss_agg_mode": LossAggregation.TOKEN_MEAN},
    "rloo": {"adv_estimator": "rloo", "kl_penalty": KlPenalty.K1},
    "reinforce++": {"adv_estimator": "reinforce_plus_plus", "kl_penalty": KlPenalty.K2},
    "reinforce++-baseline": {"adv_estimator": "reinforce_plus_plus_baseline", "kl_penalty": KlPenalty.K3},
    "turns": {"turn_credit_coef": 0.5, "turn_reward_discount": 0.8},
    "turns-rloo-gmpo": {"turn_credit_coef": 0.5, "adv_estimator": "rloo", "policy_loss": "gmpo"},
    "turns-reinforce++": {"turn_credit_coef": 0.5, "adv_estimator": "reinforce_plus_plus", "policy_loss": "cispo"},
}

_TOKEN, _SEQUENCE = ImportanceLevel.TOKEN, ImportanceLevel.SEQUENCE
CORRECTIONS = [
    RolloutCorrection(_TOKEN, rollout_is_threshold=1.3),
    RolloutCorrection(_SEQUENCE),
    RolloutCorrection(_TOKEN, rollout_is_threshold=1.4, rollout_is_threshold_lower=0.7),
    RolloutCorrection(_SEQUENCE, rollout_is_threshold=3.0, rollout_is_threshold_lower=0.5),
    RolloutCorrection(None, rollout_rs="seq_sum_k1", rollout_rs_threshold=2.0),
    RolloutCorrection(_TOKEN, rollout_rs="seq_mean_k1", rollout_rs_threshold=1.2, rollout_rs_threshold_lower=0.95),
    RolloutCorrection(None, rollout_rs="seq_sum_k2", rollout_rs_threshold=0.5),
    RolloutCorrection(_SEQUENCE, rollout_rs="seq_mean_k2", rollout_rs_threshold=0.07),
    RolloutCorrection(None, rollout_rs="seq_max_k2", rollout_rs_threshold=0.15),
    RolloutCorrection(_TOKEN, rollout_rs="seq_sum_k3", rollout_rs_threshold=0.5),
    RolloutCorrection(None, rollout_rs="seq_mean_k3", rollout_rs_threshold=0.07),
    RolloutCorrection(None, rollout_rs="seq_max_k3", rollout_rs_threshold=0.2),
    RolloutCorrection(None, bypass_mode=True),
    RolloutCorrection(_TOKEN, rollout_rs="seq_mean_k1", rollout_rs_threshold=1.5, bypass_mode=True),
]
"""The last loss has no ratio. The engine's log-probs differ by up to 0.6."""


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("models") / "qwen2", "qwen2", num_layers=2)


@pytest.fixture
def config(model_folder: Path) -> Config:
    config = update_config(model_folder)
    config.rl_config.loss_agg_mode = LossAggregation.SEQ_MEAN_TOKEN_MEAN
    config.rl_config.loss_scale_factor = SCALE
    return config


def with_settings(config: Config, settings: dict[str, Any]) -> Config:
    changed = deepcopy(config)
    for key, value in settings.items():
        assert hasattr(changed.rl_config, key)
        setattr(changed.rl_config, key, value)
    return changed


def assert_same_metrics(metrics: dict[str, float], expected: dict[str, float], case: object = "") -> None:
    for name, value in expected.items():
        assert metrics[name] == pytest.approx(value, rel=1e-4, abs=1e-6), (case, name)


def assert_same_weights(actor: Actor, plain: PlainUpdate, *, atol: float = 1e-5) -> None:
    weights = plain.weights()
    for name, tensor in actor.export_hf_weights():
        torch.testing.assert_close(tensor, weights[name], atol=atol, rtol=0, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("case", CASES)
def test_update_equals_the_reference(config: Config, case: str):
    config = with_settings(config, CASES[case])
    plain, other = PlainUpdate(config), deepcopy(config)
    other.rl_config.init_kl_coef = 9.0  # the argument of `update` overrides it
    with Actor(other) as actor:
        for _ in range(3):
            expected, metrics = plain_step(plain), megatron_step(actor, config)
            assert_same_metrics(metrics, expected)
            if config.rl_config.policy_loss != "reinforce":
                assert 0.02 < metrics["actor/pg_clipfrac"] < 0.98
        assert_same_weights(actor, plain)


def assert_steps_equal(config: Config, cases: list[dict[str, Any]]) -> list[dict[str, float]]:
    """Metrics of one step per setting, all with the same actor."""
    config.actor_config.lr = 1e-4
    plain, found = PlainUpdate(config), []
    with Actor(config) as actor:
        for settings in cases:
            plain.config = with_settings(config, settings)
            actor.objective = Objective.of(plain.config)
            found.append(megatron_step(actor, plain.config))
            assert_same_metrics(found[-1], plain_step(plain), settings)
        assert_same_weights(actor, plain, atol=1e-6)
    return found


def test_updates_with_every_pair_of_loss_and_advantage_equal_the_reference(config: Config):
    """With and without turn rewards; the aggregations alternate."""
    pairs = product(PLAIN_LOSSES, PLAIN_ADVANTAGES, (0.0, 0.5))
    keys = ("policy_loss", "adv_estimator", "turn_credit_coef", "loss_agg_mode")
    cases = [
        dict(zip(keys, (*pair, mode), strict=True)) for pair, mode in zip(pairs, cycle(LossAggregation), strict=False)
    ]
    found = assert_steps_equal(config, [case | CLIP_RANGES.get(case["policy_loss"], {}) for case in cases])
    for case, metrics in zip(cases, found, strict=True):
        assert case["policy_loss"] == "reinforce" or 0.02 < metrics["actor/pg_clipfrac"] < 0.98


def test_updates_with_every_correction_equal_the_reference(config: Config):
    cases: list[dict[str, Any]] = [{"rollout_correction": correction} for correction in CORRECTIONS]
    cases[-1]["policy_loss"] = "reinforce"
    found = assert_steps_equal(config, cases)
    for correction, metrics in zip(CORRECTIONS, found, strict=True):
        assert correction.rollout_is is None or metrics["rollout_corr/rollout_is_eff_sample_size"] < 0.99
        assert correction.rollout_rs is None or 0 < metrics["rollout_corr/rollout_rs_seq_masked_fraction"] < 1
    assert {c.rollout_rs for c in CORRECTIONS} == {None, *REJECTIONS}


def test_every_advantage_loss_and_aggregation_has_a_case():
    def values(key: str, default: Any) -> set[Any]:
        return {case.get(key, default) for case in CASES.values()}

    assert values("adv_estimator", "group_norm") == set(ADVANTAGES) == set(PLAIN_ADVANTAGES)
    assert values("policy_loss", "clip") | {"sft"} == set(LOSSES)
    assert values("loss_agg_mode", LossAggregation.SEQ_MEAN_TOKEN_MEAN) == set(LossAggregation)
    assert values("kl_penalty", KlPenalty.LOW_VAR_KL) == set(KlPenalty)
