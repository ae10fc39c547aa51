"""Converts verl's section of the off-policy correction.

Source: verl (0.7), https://verl.readthedocs.io/en/latest/algo/rollout_corr.html
"""

from __future__ import annotations

from rl.algorithms.importance import REJECTIONS, is_ratio_statistic
from rl.migrate.draft import Draft
from rl.migrate.verl_keys import A


def convert_correction(draft: Draft) -> None:
    """Weights and rejections of what the engine sampled."""
    there, here = "algorithm.rollout_correction.", "rl_config.rollout_correction."
    cap = f"{A}tis_imp_ratio_cap"
    if draft.number(cap, -1) > 0:
        draft.put(f"{here}rollout_is", "token", cap)
        draft.copy(cap, f"{here}rollout_is_threshold", 2.0)
    else:
        draft.copy(f"{there}rollout_is", f"{here}rollout_is", None)
        if draft.get(f"{there}rollout_is") is not None:
            draft.copy(f"{there}rollout_is_threshold", f"{here}rollout_is_threshold", 2.0)
        draft.drop(cap, "It is not set.")
    rejection = str(draft.get(f"{there}rollout_rs", ""))
    if rejection in REJECTIONS:
        draft.copy(f"{there}rollout_rs", f"{here}rollout_rs", None)
        _bounds(
            draft, f"{there}rollout_rs_threshold", f"{here}rollout_rs_threshold", is_ratio=is_ratio_statistic(rejection)
        )
    else:
        draft.ask_if_set(f"{there}rollout_rs", f"There is no such statistic: choose from {', '.join(REJECTIONS)}.")
    bypass, kind = draft.get(f"{there}bypass_mode"), draft.get(f"{there}loss_type", "ppo_clip")
    if bypass:
        draft.copy(f"{there}bypass_mode", f"{here}bypass_mode", False)
        if kind == "reinforce":
            draft.put("rl_config.policy_loss", "reinforce", f"{there}loss_type")
        elif draft.get(f"{there}rollout_is") is not None:
            comment = "the clipped ratio is to the engine's policy already; there not applied either"
            draft.put(f"{here}rollout_is", None, f"{there}rollout_is", comment=comment)
    draft.ask_if_set(f"{there}rollout_is_batch_normalize", "Weights are not divided by their mean.")
    draft.ask_if_set(f"{there}rollout_token_veto_threshold", "There is no veto: rollout_rs excludes sequences.")
    draft.drop(f"{there}bypass_mode", "It has its default.")
    for key in ("rollout_is_threshold", "rollout_rs_threshold", "loss_type"):
        draft.drop(f"{there}{key}", "It counts only with the correction that it belongs to.")


def _bounds(draft: Draft, name: str, target: str, *, is_ratio: bool) -> None:
    """A bound, or two of a ratio as text: `0.5_2.0`."""
    value = draft.get(name)
    parts = str(value).strip("'").split("_")
    try:
        bounds = [float(part) for part in parts]
    except ValueError:
        draft.ask(name, f"Set {target} to one number, and its lower bound to another.")
        return
    draft.put(target, bounds[-1], name)
    if len(bounds) == 2 and is_ratio:
        draft.put(f"{target}_lower", bounds[0], name)
