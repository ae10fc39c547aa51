"""Converts a run's YAML of MindSpeed-RL. `rl.config.migration` and `rl.config.moved` answer its keys one by one; here
is what depends on several keys, on its defaults, or on units.

Source: the configuration of MindSpeed-RL (2026-04).
"""

from __future__ import annotations

import math
from typing import Any

from rl.config.keys import key_paths
from rl.config.migration import MIGRATION, NO_ARCHITECTURE, Missing
from rl.config.moved import take_over
from rl.config.moved_trackers import TAKEN_OVER
from rl.config.schema import Config
from rl.config.sources import shipped_folder
from rl.migrate.draft import Draft, answer_foreign_key, flat
from rl.migrate.lengths import fit_lengths
from rl.rewards.registry import REWARDS

FRAMEWORK = "MindSpeed-RL"

_DEFAULTS: dict[str, Any] = {
    "actor_config.adam_beta2": 0.999,
    "actor_config.lr_decay_style": "linear",
    "rl_config.n_samples_per_prompt": 1,
    "rl_config.mini_batch_size": 1,
    "rl_config.max_prompt_length": 512,
    "rl_config.init_kl_coef": 0.01,
    "rl_config.rollout_correction.rollout_is": None,
    "generate_config.infer_tensor_parallel_size": 8,
    "generate_config.max_model_len": 2048,
    "generate_config.max_num_batched_tokens": 2048,
    "generate_config.sampling_config.temperature": 0.2,
    "generate_config.sampling_config.max_tokens": 128,
}
"""Its defaults that differ from those here and change what is learned, or what fits. Prefix caching, offloading and the
like change neither."""

_UNDER_CONDITION: dict[str, dict[str, Any]] = {
    "rl_config.clip_higher_enable": {"rl_config.clip_ratio_low": 0.1, "rl_config.clip_ratio_high": 0.1},
    "rl_config.filter_groups_enable": {"rl_config.filter_groups_max_batches": 1},
    "rl_config.multi_turn_enable": {"rl_config.tool_response_truncate_side": "middle"},
}
"""The same for keys that count only where another key is true."""

_NOTES = {
    "rl_config.max_tool_calls": "executed calls here; there rounds with calls, times max_parallel_calls",
    "rl_config.max_parallel_calls": "a further call of a turn gets an error result; there it is dropped silently",
}

_REWARD_NOTES = {
    "base_acc": "base_acc compares the answer alone, there also its form",
    "format": "format is 1 for one box, there for <think> and <answer>",
}
_RESOURCES = ("reference_resource", "reward_resource", "vit_resource", "critic_resource")
_TOKENIZER = "megatron_training.tokenizer_name_or_path"


def convert(tree: dict[str, Any], models: list[str]) -> Draft:
    """Convert the YAML of a run.

    Args:
        tree: Its sections, `defaults` composed and taken out.
        models: Names of configs/model/* that it builds on.
    """
    tree = {name: _with_underscores(section) for name, section in tree.items() if name not in models}
    draft = Draft(FRAMEWORK, flat(tree))
    is_pairwise = draft.get("megatron_training.stage") == "dpo"
    _take_keys(draft, tree)
    _architecture(draft, models)
    _stage(draft)
    _folders(draft)
    if not is_pairwise:
        for key, value in _DEFAULTS.items():
            if key not in draft.lines:
                draft.put(key, value)
        _conditional_defaults(draft)
        _sampling(draft)
        _multi_turn(draft)
        _rewards(draft)
        fit_lengths(draft)
        _batch(draft)
    else:
        sizes = [f"actor_config.{kind}_model_parallel_size" for kind in ("tensor", "pipeline")]
        draft.put("rl_config.actor_resource.num_devices", math.prod(map(draft.value, sizes)))
    for key, reason in (
        ("megatron_training.seq_length", "RL training is limited by max_prompt_length and the response."),
        ("megatron_training.eval_interval", "It is not used there; here it needs eval_data_path."),
    ):
        _without_effect(draft, key, reason)
    return draft


def _with_underscores(section: Any) -> Any:
    """Its keys may have dashes (`min-lr`), as its command line has them."""
    return (
        {str(key).replace("-", "_"): value for key, value in section.items()} if isinstance(section, dict) else section
    )


def _take_keys(draft: Draft, tree: dict[str, Any]) -> None:
    """Take over, rename, drop or refuse every key by the tables that `rl validate` uses."""
    taken, _ = take_over(Config, tree)
    moved = {entry.moved_to: old for old, entry in MIGRATION.items() if entry.moved_to and old in draft.given}
    origin = {new: old for new, old in moved.items() if new not in draft.given}
    values = flat(taken)
    for path, value in values.items():
        if path in key_paths(Config):
            draft.put(path, value, origin.get(path, path))
    for name in draft.unanswered():
        target = TAKEN_OVER.get(name) or getattr(MIGRATION.get(name), "moved_to", "")
        if name.startswith("model."):
            draft.drop(name, NO_ARCHITECTURE)
        elif target in draft.given:
            draft.drop(name, f"{target} says it.")
        elif target and name not in values:
            draft.renamed[name] = [target]
            if target in values:
                draft.put(target, values[target], name)
        elif name.split(".")[1] in _RESOURCES and draft.given[name] is None:
            draft.drop(name, "It is null.")
        elif name != "megatron_training.stage":
            answer_foreign_key(draft, name, name)


def _architecture(draft: Draft, models: list[str]) -> None:
    for name in models:
        if (shipped_folder() / "model" / f"{name}.yaml").is_file():
            draft.model = name


def _stage(draft: Draft) -> None:
    stage = draft.get("megatron_training.stage")
    if stage == "dpo":
        draft.lack(Missing.DPO, "megatron_training.stage")
    elif stage == "ray_ppo" or draft.get("rl_config.adv_estimator") == "gae":
        draft.lack(Missing.CRITIC, "megatron_training.stage", "rl_config.adv_estimator")
        draft.kept.pop("rl_config.adv_estimator", None)
    elif stage in (None, "ray_grpo", "ray_dapo"):
        draft.drop("megatron_training.stage", "GRPO and DAPO differ in the keys of rl_config.")
    else:
        answer_foreign_key(draft, "megatron_training.stage", "megatron_training.stage")


def _folders(draft: Draft) -> None:
    """The actor loads the Hugging Face folder that the tokenizer came from; data is what `rl preprocess` wrote."""
    load, tokenizer = (draft.value(key) for key in ("actor_config.load", _TOKENIZER))
    if tokenizer and tokenizer != load:
        sources = [name for name in ("actor_config.load", "megatron_training.load") if name in draft.given]
        comment = f"the Hugging Face folder, of which there {load} was converted" if load else "the Hugging Face folder"
        draft.put("actor_config.load", tokenizer, *sources, _TOKENIZER, comment=comment)
        draft.lines.pop(_TOKENIZER, None)
    if draft.value("actor_config.load") in (".", "./"):
        draft.put("actor_config.load", "./model", _TOKENIZER, comment="name the Hugging Face folder")
        draft.lines.pop(_TOKENIZER, None)
        draft.ask(_TOKENIZER, "Name the Hugging Face folder in actor_config.load.")
    prefix = draft.value("megatron_training.data_path")
    if isinstance(prefix, str) and prefix and not prefix.endswith((".parquet", ".jsonl", ".json")):
        draft.put(
            "megatron_training.data_path",
            f"{prefix.rstrip('/')}.parquet",
            "megatron_training.data_path",
            comment="written by `rl preprocess`; there the prefix of .bin and .idx files",
        )
        draft.ask(
            "prompt_type of the dataset's YAML",
            "It is rl_config.prompt_type here. Give that YAML to `rl migrate` too, then to `rl preprocess`.",
        )
    columns = draft.value("megatron_training.dataset_additional_keys")
    if isinstance(columns, list) and "labels" in columns:
        key = "megatron_training.dataset_additional_keys"
        rest = [name for name in columns if name != "labels"]
        if rest:
            draft.put(key, rest, key, comment="without labels: every row has its ground truth")
        else:
            _without_effect(draft, key, "Every row has its ground truth.")


def _conditional_defaults(draft: Draft) -> None:
    for switch, defaults in _UNDER_CONDITION.items():
        if draft.value(switch) is True:
            for key, value in defaults.items():
                if key not in draft.lines:
                    draft.put(key, value)
    if draft.value("rl_config.kl_ctrl_type") == "adaptive":
        for key, value in (("rl_config.kl_target", 100.0), ("rl_config.kl_horizon", 1000.0)):
            if key not in draft.lines:
                draft.put(key, value)
        draft.note("rl_config.kl_target", "nats per token")
    if draft.value("rl_config.filter_groups_enable") is True:
        batches = draft.value("rl_config.filter_groups_max_batches")
        if isinstance(batches, int) and batches <= 0:
            draft.note("rl_config.filter_groups_max_batches", "as many prompts as the dataset has; there no limit")


def _sampling(draft: Draft) -> None:
    """Training rollouts are samples of the whole distribution."""
    for name, whole in (("top_p", 1.0), ("top_k", -1), ("min_p", 0.0)):
        key = f"generate_config.sampling_config.{name}"
        value = draft.get(key, 50 if name == "top_k" else whole)
        if value == whole:
            continue
        draft.lines.pop(key, None)
        draft.kept.pop(key, None)
        draft.ask(key, f"Training samples the whole distribution ({name} {whole:g}); there {value:g}.")


def _multi_turn(draft: Draft) -> None:
    if draft.value("rl_config.multi_turn_enable") is not True:
        return
    rounds, parallel = (draft.value(f"rl_config.{key}") for key in ("max_tool_calls", "max_parallel_calls"))
    if isinstance(rounds, int) and isinstance(parallel, int):
        draft.put("rl_config.max_tool_calls", rounds * max(1, parallel), "rl_config.max_tool_calls")
    for key, comment in _NOTES.items():
        draft.note(key, comment)
    limit = draft.value("rl_config.max_tool_response_length")
    if isinstance(limit, int):
        draft.note("rl_config.max_tool_response_length", tokens_not_characters(limit))


def tokens_not_characters(limit: int) -> str:
    """The comment on a limit of tool results that was in characters."""
    return f"tokens here; there {limit} characters, about {max(1, round(limit / 4))} tokens"


def _rewards(draft: Draft) -> None:
    key = "rl_config.verifier_function"
    given, names, weights = draft.get(key, ["base_acc"]), draft.value(key), draft.value("rl_config.verifier_weight")
    if not isinstance(names, list):
        return  # `Draft.finish` takes it out
    unknown = [name for name in names if ":" not in str(name) and name not in REWARDS]
    if unknown:
        pairs = [pair for pair in zip(names, weights, strict=False) if pair[0] not in unknown] or [("base_acc", 1.0)]
        names, weights = ([*part] for part in zip(*pairs, strict=True))
        draft.put("rl_config.verifier_weight", weights, "rl_config.verifier_weight")
        draft.put(key, names, key)
        draft.ask("rewards", f"There is no reward {', '.join(map(str, unknown))}: write it (docs/rewards.md).")
    elif key not in draft.lines:
        draft.put(key, names)
    notes = [_REWARD_NOTES[name] for name in names if name in _REWARD_NOTES]
    if names != given:
        notes.insert(0, f"there {', '.join(map(str, given))}; scores here are 0 and 1")
    if notes:
        draft.note(key, "; ".join(notes))
    if draft.value("rl_config.filter_groups_enable") is True:
        metric = "rl_config.filter_groups_metric"
        if draft.value(metric) not in ("score", *names):
            draft.put(metric, "score", metric, comment="the weighted sum of the rewards differs within the group")


def _batch(draft: Draft) -> None:
    """Prompts in both; a mini-batch cannot be larger than the batch. A micro-batch has a budget of tokens."""
    budget = "rl_config.update_max_packing_token_size"
    if draft.get("rl_config.use_dynamic_bsz") and draft.get(budget):
        draft.put("rl_config.max_packing_token_size", draft.get(budget), budget, comment="of every pass here")
    whole, mini = draft.value("megatron_training.global_batch_size"), draft.value("rl_config.mini_batch_size")
    if isinstance(whole, int) and isinstance(mini, int) and mini > whole:
        draft.put(
            "rl_config.mini_batch_size", whole, "rl_config.mini_batch_size", comment=f"the whole batch; was {mini}"
        )


def _without_effect(draft: Draft, key: str, reason: str) -> None:
    if draft.lines.pop(key, None) is not None:
        draft.kept.pop(key, None)
        draft.drop(key, reason)
