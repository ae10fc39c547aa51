"""Converts the objective of TRL's GRPOConfig: advantages, loss, clip range, KL term, correction.

Source: TRL (1.9), https://huggingface.co/docs/trl/grpo_trainer and paper_index
"""

from __future__ import annotations

from typing import Any

from rl.migrate.draft import Draft

_AGGREGATIONS = {
    "grpo": "seq-mean-token-mean",
    "dapo": "token-mean",
    "bnpo": "token-mean",
    "cispo": "token-mean",
    "dr_grpo": "seq-mean-token-sum-norm",
}

_SMALLEST = 1e-9
"""A lower bound that no weight is below: with one, weights above the upper bound become 0."""
_CORRECTION = "rl_config.rollout_correction."


def convert_objective(draft: Draft) -> None:
    """Everything that decides what is learned from a batch."""
    scale = draft.any_kind("scale_rewards", "group")
    if scale in (True, "group", "True", False, "none", "False"):
        draft.put("rl_config.norm_adv_by_std", scale in (True, "group", "True"), "scale_rewards")
    else:
        draft.ask("scale_rewards", "Rewards are divided by the group's standard deviation, or not at all.")
    if draft.get("multi_objective_aggregation", "sum_then_normalize") != "sum_then_normalize":
        draft.ask("multi_objective_aggregation", "Weighted rewards are summed, then normalized.")
    draft.drop("multi_objective_aggregation", "Weighted rewards are summed, then normalized.")
    loss = draft.get("loss_type", "dapo")
    _loss(draft, loss)
    _clip_range(draft, loss)
    draft.copy("beta", "rl_config.init_kl_coef", 0.0)
    draft.copy("entropy_coef", "rl_config.entropy_coeff", 0.0)
    draft.copy("mask_truncated_completions", "rl_config.overlong_filter_enable", False)
    if draft.get("top_entropy_quantile", 1.0) != 1:
        draft.ask("top_entropy_quantile", "All sampled tokens are trained.")
    draft.drop("top_entropy_quantile", "All sampled tokens are trained, as by default there.")
    _correction(draft)


def _loss(draft: Draft, loss: Any) -> None:
    if loss in _AGGREGATIONS:
        draft.put("rl_config.loss_agg_mode", _AGGREGATIONS[loss], "loss_type")
        if "loss_type" not in draft.given:  # token_level_loss says the same
            draft.lines.pop("rl_config.loss_agg_mode", None)
        if loss == "bnpo":
            draft.note("rl_config.loss_agg_mode", "over the whole mini-batch; there over each device's part")
    else:
        draft.ask("loss_type", f"There is no such loss: choose from {', '.join(_AGGREGATIONS)}.")
    if loss == "dr_grpo":
        length = draft.number("max_completion_length", 512)
        draft.put("rl_config.loss_scale_factor", float(length), "max_completion_length", "loss_type")
    level = draft.get("importance_sampling_level", "token")
    if loss == "cispo":
        draft.put("rl_config.policy_loss", "cispo", "loss_type")
    elif level == "sequence":
        draft.put("rl_config.policy_loss", "gspo", "importance_sampling_level")
    elif level != "token":
        draft.ask("importance_sampling_level", "Ratios are of tokens, or with policy_loss gspo of sequences.")
    draft.drop("importance_sampling_level", "The ratio is of tokens.")


def _clip_range(draft: Draft, loss: Any) -> None:
    """CISPO there bounds the ratio by epsilon_high itself, here by 1 + clip_ratio_high, and has no lower bound."""
    low = draft.number("epsilon", 0.2)
    high = draft.number("epsilon_high")
    names = ("epsilon", "epsilon_high")
    if loss == "cispo":
        bound = low if high is None else high
        draft.put("rl_config.clip_higher_enable", True, *names)
        draft.put("rl_config.clip_ratio_low", 1.0, *names, comment="no lower bound, as there")
        if bound > 1:
            comment = f"the ratio is at most {bound:g}"
            draft.put("rl_config.clip_ratio_high", bound - 1, "epsilon_high", "epsilon", comment=comment)
        else:
            draft.ask("epsilon_high", "The bound of CISPO's ratio must be above 1: set rl_config.clip_ratio_high.")
    elif high is None or high == low:
        draft.put("rl_config.clip_ratio", low, *names)
    else:
        draft.put("rl_config.clip_higher_enable", True, "epsilon_high")
        draft.put("rl_config.clip_ratio_low", low, "epsilon", "epsilon_high")
        draft.put("rl_config.clip_ratio_high", high, "epsilon_high")
    if draft.get("delta") is not None:
        draft.copy("delta", "rl_config.clip_ratio_c", None)
    draft.drop("delta", "It is not set.")


def _correction(draft: Draft) -> None:
    """The weight between engine and actor: truncated, or 0 beyond its bounds."""
    there = "vllm_importance_sampling_"
    names = tuple(f"{there}{key}" for key in ("mode", "correction", "clip_max", "clip_min", "cap"))
    if draft.get(names[1], True) is False:
        draft.put(f"{_CORRECTION}rollout_is", None, names[1])
        for name in names:
            draft.drop(name, "There is no correction.")
        return
    level, _, kind = str(draft.get(names[0], "sequence_mask")).partition("_")
    highest = draft.get(names[4]) or draft.given.get(names[2], 3.0)
    lowest = draft.get(names[3])
    draft.put(f"{_CORRECTION}rollout_is", level, names[0], names[1])
    if highest is None:
        draft.ask(names[2], "A weight has an upper bound: set rl_config.rollout_correction.rollout_is_threshold.")
    else:
        draft.put(f"{_CORRECTION}rollout_is_threshold", highest, names[4], names[2])
    if kind == "mask":
        comment = "with a lower bound, weights beyond the upper one become 0"
        draft.put(f"{_CORRECTION}rollout_is_threshold_lower", lowest or _SMALLEST, names[3], names[0], comment=comment)
    elif lowest is not None:
        draft.ask(names[3], "A truncated weight has no lower bound.")
    draft.drop(names[3], "It is not set.")
    draft.drop(names[2], "It is not set.")
    draft.drop(names[4], "It is not set.")
