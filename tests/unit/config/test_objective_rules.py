"""Combinations of advantages, loss, aggregation and KL term that make no sense."""

from __future__ import annotations

import pytest

from rl.config.load import compose_config
from rl.config.no_effect import no_effect_problems
from rl.config.objective_rules import objective_problems
from rl.config.schema import KlControl, LossAggregation


def problems_of(tmp_path, *settings: str) -> list[str]:
    (tmp_path / "run.yaml").write_text("megatron_training: {data_path: rows.parquet}\n")
    composed = compose_config("run", [f"rl_config.{setting}" for setting in settings], tmp_path)
    config = composed.config
    found = [
        *composed.problems,
        *objective_problems(config),
        *no_effect_problems(config, composed.given),
    ]
    return [f"{problem.severity} {problem.text}" for problem in found]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["n_samples_per_prompt=1"], "error rl_config.n_samples_per_prompt: must be at least 2 for group_norm, got 1."),
        (
            ["n_samples_per_prompt=1", "adv_estimator=rloo"],
            "error rl_config.n_samples_per_prompt: must be at least 2 for rloo, got 1.",
        ),
        (
            ["n_samples_per_prompt=1", "adv_estimator=reinforce_plus_plus", "filter_groups_enable=true"],
            "error rl_config.filter_groups_enable: keeps groups whose trajectories differ, got n_samples_per_prompt 1,",
        ),
        (["clip_ratio_c=0.9"], "error rl_config.clip_ratio_c: must be at least 1, got 0.9."),
        (["kl_target=0", "init_kl_coef=0.1", "kl_ctrl_type=adaptive"], "error rl_config.kl_target: must be above 0,"),
        (
            ["turn_reward_discount=1.5", "turn_credit_coef=1", "multi_turn_enable=true"],
            "error rl_config.turn_reward_discount: must be at most 1, got 1.5.",
        ),
        (
            ["policy_loss=gmpo"],
            "warning rl_config.policy_loss: gmpo has a ratio for each sequence, but token-mean counts long ones more.",
        ),
        (
            ["policy_loss=gspo", "token_level_loss=false"],
            "warning rl_config.clip_ratio: the ratio of a whole sequence stays near 1, so gspo never clips at 0.2.",
        ),
        (
            ["use_kl_in_reward=true", "init_kl_coef=0.1"],
            "warning rl_config.use_kl_in_reward: in a group of equal scores the KL term is the only difference,",
        ),
        (["policy_loss=reinforce", "clip_ratio=0.1"], "warning rl_config.clip_ratio: has no effect, got 0.1,"),
        (["policy_loss=cispo", "clip_ratio_c=3"], "warning rl_config.clip_ratio_c: has no effect, got 3.0,"),
        (["adv_estimator=rloo", "norm_adv_by_std=false"], "warning rl_config.norm_adv_by_std: has no effect,"),
        (["turn_credit_coef=1"], "warning rl_config.turn_credit_coef: has no effect, got 1.0, because multi_turn"),
        (
            ["loss_agg_mode=seq-mean-token-mean", "token_level_loss=false"],
            "warning rl_config.token_level_loss: has no effect, got False, because loss_agg_mode is set.",
        ),
        (["loss_scale_factor=100"], "warning rl_config.loss_scale_factor: has no effect, got 100.0,"),
        (["use_kl_in_reward=true"], "warning rl_config.use_kl_in_reward: has no effect, got True, because init_kl"),
        (["kl_horizon=5"], "warning rl_config.kl_horizon: has no effect, got 5.0, because kl_ctrl_type is fixed."),
    ],
)
def test_objective_names_the_key_and_the_value(tmp_path, settings: list[str], message: str) -> None:
    (problem,) = problems_of(tmp_path, *settings)
    assert problem.startswith(message)


@pytest.mark.parametrize(
    "settings",
    [
        ["n_samples_per_prompt=1", "adv_estimator=reinforce_plus_plus"],
        ["clip_ratio_c=1"],
        ["policy_loss=gspo", "loss_agg_mode=seq-mean-token-mean", "clip_ratio=0.0004"],
        ["use_kl_in_reward=true", "init_kl_coef=0.1", "adv_estimator=rloo"],
        ["loss_agg_mode=seq-mean-token-sum-norm", "loss_scale_factor=100", "norm_adv_by_std=false"],
    ],
)
def test_objective_accepts_what_makes_sense(tmp_path, settings: list[str]) -> None:
    assert problems_of(tmp_path, *settings) == []


def test_enumerations_are_read_from_their_names(tmp_path) -> None:
    (tmp_path / "run.yaml").write_text("rl_config: {loss_agg_mode: seq-mean-token-sum-norm, kl_ctrl_type: adaptive}\n")
    rl = compose_config("run", [], tmp_path).config.rl_config
    assert rl.loss_agg_mode is LossAggregation.SEQ_MEAN_TOKEN_SUM_NORM
    assert rl.kl_ctrl_type is KlControl.ADAPTIVE
