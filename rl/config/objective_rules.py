"""Rules between the fields of the objective: advantages, loss, aggregation, KL term."""

from __future__ import annotations

from collections.abc import Iterator

from rl.config.problems import Problem, error, warning
from rl.config.schema import Config, LossAggregation

_COMPARE_WITHIN_GROUPS = ("group_norm", "rloo", "reinforce_plus_plus_baseline")
_OF_SEQUENCES = ("gspo", "gmpo")
_WIDE_FOR_SEQUENCES = 0.05
"""The mean log-ratio of a sequence hardly changes, so GSPO never clips with a wider range."""


def objective_problems(config: Config) -> Iterator[Problem]:
    """Combinations of the objective that are useless or misleading."""
    rl = config.rl_config
    if rl.adv_estimator in _COMPARE_WITHIN_GROUPS and rl.n_samples_per_prompt == 1:
        yield error(
            f"rl_config.n_samples_per_prompt: must be at least 2 for {rl.adv_estimator}, got 1. "
            "Raise it, to 8 for example."
        )
    elif rl.filter_groups_enable and rl.n_samples_per_prompt == 1:
        yield error(
            "rl_config.filter_groups_enable: keeps groups whose trajectories differ, got n_samples_per_prompt 1, with "
            "which none do. Set false, or raise that."
        )
    aggregation = rl.loss_agg_mode
    if aggregation is None and rl.token_level_loss:
        aggregation = LossAggregation.TOKEN_MEAN
    if rl.policy_loss in _OF_SEQUENCES and aggregation is LossAggregation.TOKEN_MEAN:
        yield warning(
            f"rl_config.policy_loss: {rl.policy_loss} has a ratio for each sequence, but token-mean counts long ones "
            "more. Set loss_agg_mode to seq-mean-token-mean for the paper's."
        )
    clip_high = rl.clip_ratio_high if rl.clip_higher_enable else rl.clip_ratio
    if rl.policy_loss == "gspo" and clip_high > _WIDE_FOR_SEQUENCES:
        key = "clip_ratio_high" if rl.clip_higher_enable else "clip_ratio"
        yield warning(
            f"rl_config.{key}: the ratio of a whole sequence stays near 1, so gspo never clips at {clip_high:g}. "
            "Set clip_higher_enable, clip_ratio_low 3e-4 and clip_ratio_high 4e-4, as in its paper."
        )
    if (
        rl.use_kl_in_reward
        and rl.init_kl_coef > 0
        and rl.adv_estimator == "group_norm"
        and rl.norm_adv_by_std
        and not rl.filter_groups_enable
    ):
        yield warning(
            "rl_config.use_kl_in_reward: in a group of equal scores the KL term is the only difference, and "
            "norm_adv_by_std scales it up to full size. Set filter_groups_enable, or norm_adv_by_std to false."
        )
