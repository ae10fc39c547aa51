"""Converts a configuration of verl: sizes, lengths, the objective, the engine.

Data, rewards, tools and the run are in `rl.migrate.verl_run`. Defaults are those of verl's ppo_trainer.yaml and
ppo_megatron_trainer.yaml.

Source: verl (0.7), https://verl.readthedocs.io/en/latest/examples/config.html
"""

from __future__ import annotations

import re
from typing import Any

from rl.algorithms.advantages import ADVANTAGES
from rl.config.migration import Missing
from rl.config.moved import SAME_PENALTIES
from rl.migrate.draft import Draft, Line, flat
from rl.migrate.lengths import fit_lengths
from rl.migrate.verl_correction import convert_correction
from rl.migrate.verl_keys import DROPPED, A, M, R
from rl.migrate.verl_run import convert_data, convert_rewards, convert_run, convert_tools

FRAMEWORK = "verl"

_ESTIMATORS = {"grpo": "group_norm", "grpo_vectorized": "group_norm", "rloo_vectorized": "rloo"}
_LOSSES = {"vanilla": "clip", "gspo": "gspo", "geo_mean": "gmpo", "cispo": "cispo", "gpg": "reinforce"}
_SAME_DIVERGENCES = ("k1", "k2", "k3", "low_var_kl")
_ALIASES = {
    "reward.custom_reward_function.": "custom_reward_function.",
    "reward.reward_model.": "reward_model.",
    "reward.reward_kwargs.": "reward_model.reward_kwargs.",
    "reward.reward_manager.name": "reward_model.reward_manager",
    "reward.num_workers": "reward_model.num_workers",
    "reward.sandbox_fusion.": "reward_model.sandbox_fusion.",
}
"""Keys of its newer releases and the ones they replaced."""
_SEES = re.compile(r"[-_\d]vl([-_/]|$)", re.IGNORECASE)
"""Names of models that take images."""
_SPLIT_KEYS = (
    "num_layers_in_first_pipeline_stage",
    "num_layers_in_last_pipeline_stage",
    "pipeline_model_parallel_layout",
)


def convert(tree: dict[str, Any], *, is_megatron: bool) -> Draft:
    """Convert verl's configuration.

    Args:
        tree: Its sections; references replaced.
        is_megatron: Whether its Megatron trainer gives the defaults.
    """
    leaves = ("data.train_files", f"{M}override_config.model_config")
    given = {_earlier(key): value for key, value in flat(tree, leaves).items()}
    draft = Draft(FRAMEWORK, {key: value for key, value in given.items() if not key.endswith("_target_")})
    convert_data(draft)
    _model(draft)
    _parallel(draft, is_megatron=is_megatron)
    _batches(draft)
    _optimizer(draft, is_megatron=is_megatron)
    _advantages(draft)
    _loss(draft)
    _divergence(draft)
    convert_correction(draft)
    _engine(draft)
    convert_tools(draft)
    convert_rewards(draft)
    convert_run(draft)
    fit_lengths(draft)
    draft.drop_known(DROPPED)
    return draft


def _earlier(key: str) -> str:
    for new, old in _ALIASES.items():
        if key.startswith(new):
            return old + key[len(new) :]
    return key


def _model(draft: Draft) -> None:
    path = draft.get(f"{M}path", "~/models/deepseek-llm-7b-chat")
    draft.put("actor_config.load", path, f"{M}path", comment=folder_comment(path))
    if _SEES.search(str(path)):
        draft.lack(Missing.IMAGES, "data.image_key", f"{A}freeze_vision_tower")
    draft.ask_if_set("data.image_key", "Models take text only; it has no effect on rows of text.")
    if draft.get(f"{M}tokenizer_path"):
        draft.copy(f"{M}tokenizer_path", "megatron_training.tokenizer_name_or_path", None)
    if draft.get(f"{M}trust_remote_code"):
        draft.copy(f"{M}trust_remote_code", "generate_config.trust_remote_code", False)
    rank = max((draft.number(key, 0) for key in (f"{M}lora_rank", f"{M}lora.rank")), default=0)
    adapter = draft.get(f"{M}lora_adapter_path")
    if rank or adapter:
        names = [name for name in draft.given if name.startswith((f"{M}lora", f"{M}target_modules", f"{M}exclude_mod"))]
        draft.lack(Missing.LORA, *names, value=rank or None)
    for name in (f"{M}tokenizer_path", f"{M}trust_remote_code", f"{M}lora_rank", f"{M}lora_adapter_path"):
        draft.drop(name, "It has its default.")
    for name, advice in (
        (f"{M}custom_chat_template", "A chat template is chosen by rl_config.prompt_type."),
        (f"{M}external_lib", "Models are loaded without code of their own."),
        (f"{M}hf_config_path", "config.json is read from actor_config.load."),
        (f"{M}mtp.enable", "There is no multi-token prediction."),
    ):
        draft.ask_if_set(name, advice)
    for name in draft.unanswered():
        if name.startswith(f"{M}override_config.") and name not in DROPPED and draft.get(name) not in ({}, None):
            if not name.startswith(f"{M}override_config.moe_config"):
                draft.ask(name, "config.json of actor_config.load has the sizes: change it there.")
        elif name.startswith(f"{M}override_config"):
            draft.drop(name, "config.json of actor_config.load has the sizes.")


def folder_comment(path: Any) -> str:
    """What to do with a name of the Hugging Face Hub."""
    text = str(path)
    return "a folder here: download the model into it" if text.count("/") == 1 and text[0] not in "/.~" else ""


def _parallel(draft: Draft, *, is_megatron: bool) -> None:
    nodes, per_node = draft.number("trainer.nnodes", 1, 1), draft.number("trainer.n_gpus_per_node", 8, 1)
    draft.put(
        "rl_config.actor_resource.num_devices",
        nodes * per_node,
        "trainer.nnodes",
        "trainer.n_gpus_per_node",
        comment=f"{nodes} nodes x {per_node} devices",
    )
    if is_megatron:
        tp = draft.copy(f"{A}megatron.tensor_model_parallel_size", "actor_config.tensor_model_parallel_size", 1)
        draft.copy(f"{A}megatron.pipeline_model_parallel_size", "actor_config.pipeline_model_parallel_size", 1)
        _virtual_stages(draft)
        if tp != 1:
            draft.copy(f"{A}megatron.sequence_parallel", "megatron_training.sequence_parallel", True)
        else:
            draft.drop(f"{A}megatron.sequence_parallel", "It needs tensor parallelism above 1.")
    else:
        comment = "FSDP shards every parameter; raise this where the model does not fit"
        draft.lines["actor_config.tensor_model_parallel_size"] = Line(1, comment)
    for part, name in (
        (Missing.CONTEXT, f"{A}ulysses_sequence_parallel_size"),
        (Missing.CONTEXT, f"{A}fsdp_config.ulysses_sequence_parallel_size"),
        (Missing.CONTEXT, f"{A}megatron.context_parallel_size"),
        (Missing.EXPERTS, f"{A}megatron.expert_model_parallel_size"),
        (Missing.EXPERTS, f"{R}expert_parallel_size"),
    ):
        if (draft.get(name) or 1) != 1:
            draft.lack(part, name, value=draft.get(name) if part is Missing.CONTEXT else None)
        else:
            draft.drop(name, "It is 1.")
    for name in _SPLIT_KEYS:
        key = f"{A}megatron.override_transformer_config.{name}"
        if draft.get(key) is not None:
            draft.ask(key, "Pipeline ranks have equally many layers: choose a pipeline size that divides them.")
    for side, place in (("param", "param"), ("optimizer", "optimizer"), ("grad", "grad")):
        for section in ("fsdp_config", "megatron"):
            if f"{A}{section}.{side}_offload" in draft.given:
                draft.copy(f"{A}{section}.{side}_offload", f"generate_config.offload_train_{place}", None)
    _recomputation(draft, is_megatron=is_megatron)


def _virtual_stages(draft: Draft) -> None:
    name = f"{A}megatron.virtual_pipeline_model_parallel_size"
    stages = draft.get(name)
    if stages:
        draft.ask(name, "num_layers_per_virtual_pipeline_stage is layers / (pipeline size x this): work it out.")
    else:
        draft.drop(name, "A pipeline rank has one chunk by default.")


def _recomputation(draft: Draft, *, is_megatron: bool) -> None:
    name, target = f"{M}enable_gradient_checkpointing", "actor_config.recompute_granularity"
    if is_megatron:
        config = f"{A}megatron.override_transformer_config."
        if draft.get(f"{config}recompute_granularity") == "selective":
            draft.ask(f"{config}recompute_granularity", "All layers are recomputed or none: full or none.")
        else:
            value = draft.get(f"{config}recompute_granularity") or "none"
            draft.put(target, value, f"{config}recompute_granularity")
        draft.drop(name, "override_transformer_config.recompute_granularity says it for Megatron.")
    else:
        draft.put(target, "full" if draft.get(name, True) else "none", name)


def _batches(draft: Draft) -> None:
    mini, comment = draft.number(f"{A}ppo_mini_batch_size", 256, 1), "prompts in both"
    prompts = draft.number("data.train_batch_size", 1024, 0)
    per_step = draft.number("async_training.require_batches", 1, 1)
    if prompts == 0:  # asynchronous training collects mini-batches
        names = ("async_training.require_batches", "data.train_batch_size")
        prompts = mini * per_step
        draft.put("megatron_training.global_batch_size", prompts, *names, comment=f"{per_step} x {mini} prompts")
    else:
        draft.put("megatron_training.global_batch_size", prompts, "data.train_batch_size", comment=comment)
    if mini > prompts:
        comment, mini = f"the whole batch; was {mini}", prompts
    draft.put("rl_config.mini_batch_size", mini, f"{A}ppo_mini_batch_size", comment=comment)
    draft.copy(f"{A}ppo_epochs", "rl_config.epochs", 1)
    draft.copy(f"{R}n", "rl_config.n_samples_per_prompt", 1)
    draft.ask_if_set(f"{A}shuffle", "Mini-batches keep the order of the batch.")
    tokens = f"{A}ppo_max_token_len_per_gpu"
    if draft.get(f"{A}use_dynamic_bsz"):
        draft.copy(tokens, "rl_config.max_packing_token_size", 16384)
    per_device = draft.get(f"{A}ppo_micro_batch_size_per_gpu")
    longest = draft.value("rl_config.max_prompt_length"), draft.get("data.max_response_length", 512)
    if (
        not draft.get(f"{A}use_dynamic_bsz")
        and isinstance(per_device, int)
        and all(isinstance(n, int) for n in longest)
    ):
        draft.put(
            "rl_config.max_packing_token_size",
            per_device * sum(longest),
            f"{A}ppo_micro_batch_size_per_gpu",
            comment=f"tokens of {per_device} of the longest samples",
        )


def _optimizer(draft: Draft, *, is_megatron: bool) -> None:
    optim = f"{A}optim."
    lr = draft.copy(f"{optim}lr", "actor_config.lr", 1e-6)
    draft.copy(f"{optim}weight_decay", "actor_config.weight_decay", 0.01)
    clip = f"{A}grad_clip" if f"{A}grad_clip" in draft.given else f"{optim}clip_grad"
    draft.copy(clip, "actor_config.clip_grad", 1.0)
    draft.drop(f"{optim}clip_grad", "actor.grad_clip says it.")
    betas = draft.get(f"{optim}betas", [0.9, 0.999])
    if isinstance(betas, list) and len(betas) == 2:
        draft.put("actor_config.adam_beta1", betas[0], f"{optim}betas")
        draft.put("actor_config.adam_beta2", betas[1], f"{optim}betas")
    styles = [f"{optim}{key}" for key in ("lr_decay_style", "lr_scheduler_type", "warmup_style")]
    style = next((draft.get(name) for name in styles if draft.get(name)), "constant")
    draft.put("actor_config.lr_decay_style", style, *styles)
    ratio = draft.get(f"{optim}min_lr_ratio") or 0.0
    if is_megatron and f"{optim}min_lr" in draft.given:
        draft.copy(f"{optim}min_lr", "actor_config.min_lr", 0.0)
    elif isinstance(lr, float) and isinstance(ratio, int | float):
        draft.put("actor_config.min_lr", lr * ratio, f"{optim}min_lr_ratio", comment=f"lr x {ratio:g}" if ratio else "")
    for key in ("min_lr", "min_lr_ratio"):
        draft.drop(f"{optim}{key}", "The other key for the end of the schedule says it.")
    optimizer = str(draft.get(f"{optim}optimizer", "adam")).lower()
    if "adamw" in optimizer or optimizer == "adam":
        draft.drop(f"{optim}optimizer", "The optimizer is AdamW.")
    else:
        draft.ask(f"{optim}optimizer", "The optimizer is AdamW.")
    warm_up(
        draft, f"{optim}lr_warmup_steps", f"{optim}lr_warmup_steps_ratio", draft.get("trainer.total_training_steps")
    )


def warm_up(draft: Draft, steps_key: str, ratio_key: str, total: Any) -> None:
    """The warm-up as a share of the run: given as one, or as steps of a run whose length is known."""
    steps, ratio = draft.get(steps_key), draft.get(ratio_key) or 0.0
    if isinstance(steps, int) and steps > 0:
        if isinstance(total, int) and total > 0:
            share = min(1.0, steps / total)
            comment = f"{steps} of {total} steps"
            draft.put("actor_config.lr_warmup_fraction", share, steps_key, ratio_key, comment=comment)
        else:
            draft.ask(steps_key, "Set actor_config.lr_warmup_fraction to these steps / the steps of the run.")
    else:
        draft.put("actor_config.lr_warmup_fraction", ratio, ratio_key)
        draft.drop(steps_key, "The warm-up is given as a share of the run.")


def _advantages(draft: Draft) -> None:
    name = draft.get("algorithm.adv_estimator", "gae")
    here = _ESTIMATORS.get(name, name)
    if name == "gae":
        critic = [key for key in draft.given if key.startswith("critic.")]
        draft.lack(Missing.CRITIC, "algorithm.adv_estimator", "algorithm.lam", *critic)
    elif here in ADVANTAGES:
        draft.put("rl_config.adv_estimator", here, "algorithm.adv_estimator")
    else:
        draft.ask("algorithm.adv_estimator", f"There is no such estimator: choose from {', '.join(ADVANTAGES)}.")
    if here == "group_norm":
        draft.copy("algorithm.norm_adv_by_std_in_grpo", "rl_config.norm_adv_by_std", True)
    else:
        draft.drop("algorithm.norm_adv_by_std_in_grpo", "It counts only with adv_estimator grpo.")
    if draft.get("algorithm.gamma", 1.0) == 1:
        draft.drop("algorithm.gamma", "Tokens are not discounted.")
    else:
        draft.ask("algorithm.gamma", "Tokens are not discounted, turns are by rl_config.turn_reward_discount.")
    draft.ask_if_set("algorithm.use_pf_ppo", "Samples are not weighed anew (PF-PPO).")


def _loss(draft: Draft) -> None:
    _clip_range(draft)
    mode = draft.get(f"{A}policy_loss.loss_mode", "vanilla")
    if mode in _LOSSES:
        draft.put("rl_config.policy_loss", _LOSSES[mode], f"{A}policy_loss.loss_mode")
    else:
        draft.ask(f"{A}policy_loss.loss_mode", f"There is no such loss: choose from {', '.join(_LOSSES.values())}.")
    if mode == "vanilla":
        draft.copy(f"{A}clip_ratio_c", "rl_config.clip_ratio_c", 3.0)
    else:
        draft.drop(f"{A}clip_ratio_c", "It counts only with loss_mode vanilla.")
    _aggregation(draft)
    draft.copy(f"{A}entropy_coeff", "rl_config.entropy_coeff", 0)


def _clip_range(draft: Draft) -> None:
    """`clip_ratio_low` and `clip_ratio_high` count where they are not null; `clip_ratio` alone is ignored by releases
    that have them.
    """
    names = (f"{A}clip_ratio_low", f"{A}clip_ratio_high")
    if any(draft.given.get(name) is not None for name in names):
        both = draft.number(f"{A}clip_ratio", 0.2)
        low, high = (draft.number(name, both if name in draft.given else 0.2) for name in names)
        draft.put("rl_config.clip_higher_enable", True, *names)
        comment = f"no lower bound, as {low:g} there" if low > 1 else ""
        draft.put("rl_config.clip_ratio_low", min(low, 1.0), names[0], comment=comment)
        draft.put("rl_config.clip_ratio_high", high, names[1])
        draft.drop(f"{A}clip_ratio", "clip_ratio_low and clip_ratio_high take its place.")
        return
    both = draft.copy(f"{A}clip_ratio", "rl_config.clip_ratio", 0.2)
    if both != 0.2 and names[0] not in draft.given:
        draft.note("rl_config.clip_ratio", "releases of verl whose file has clip_ratio_low ignore it and clip at 0.2")
    for name in names:
        draft.drop(name, "It is null: clip_ratio says it.")


def _aggregation(draft: Draft) -> None:
    name, factor = f"{A}loss_agg_mode", f"{A}loss_scale_factor"
    mode = draft.get(name, "token-mean")
    target = "rl_config.loss_agg_mode"
    if mode == "seq-mean-token-sum":
        draft.put(target, "seq-mean-token-sum-norm", name, comment="seq-mean-token-sum is this with factor 1")
        draft.put("rl_config.loss_scale_factor", 1.0, name)
    elif mode == "seq-mean-token-sum-norm":
        draft.put(target, mode, name, comment="mean over trajectories; there the sum over a micro-batch")
        if draft.get(factor) is not None:
            draft.copy(factor, "rl_config.loss_scale_factor", None)
    elif name in draft.given:
        draft.copy(name, target, mode)
    draft.drop(factor, "It counts only with seq-mean-token-sum-norm; by default it is the longest response.")


def _divergence(draft: Draft) -> None:
    in_loss, in_reward = f"{A}use_kl_loss", "algorithm.use_kl_in_reward"
    if draft.get(in_reward):
        _kl_term(draft, "algorithm.kl_ctrl.kl_coef", "algorithm.kl_penalty", "kl")
        draft.put("rl_config.use_kl_in_reward", True, in_reward)
        if draft.copy("algorithm.kl_ctrl.type", "rl_config.kl_ctrl_type", "fixed") == "adaptive":
            draft.copy("algorithm.kl_ctrl.target_kl", "rl_config.kl_target", 0.1)
            draft.copy("algorithm.kl_ctrl.horizon", "rl_config.kl_horizon", 10000)
        draft.ask_if_set(in_loss, "There is one KL term, here in the reward.")
    elif draft.get(in_loss):
        _kl_term(draft, f"{A}kl_loss_coef", f"{A}kl_loss_type", "low_var_kl")
        draft.renamed[in_loss] = ["rl_config.init_kl_coef"]
        draft.drop(in_reward, "The KL term is in the loss.")
    else:
        draft.drop(in_loss, "There is no KL term, as by default here.")
        draft.drop(in_reward, "There is no KL term, as by default here.")
    draft.drop(f"{A}kl_loss_coef", "There is no KL term in the loss.")
    draft.drop(f"{A}kl_loss_type", "There is no KL term in the loss.")


def _kl_term(draft: Draft, weight: str, kind: str, default: str) -> None:
    draft.copy(weight, "rl_config.init_kl_coef", 0.001)
    name = draft.get(kind, default)
    here = SAME_PENALTIES.get(name, name)
    if here in _SAME_DIVERGENCES:
        draft.put("rl_config.kl_penalty", here, kind)
    else:
        draft.ask(kind, f"There is no such estimator: choose from {', '.join(_SAME_DIVERGENCES)}.")


def _engine(draft: Draft) -> None:
    for key, target, default in (
        ("tensor_model_parallel_size", "infer_tensor_parallel_size", 2),
        ("gpu_memory_utilization", "gpu_memory_utilization", 0.5),
        ("max_num_batched_tokens", "max_num_batched_tokens", 8192),
        ("max_num_seqs", "max_num_seqs", 256),
        ("temperature", "sampling_config.temperature", 1.0),
    ):
        draft.copy(f"{R}{key}", f"generate_config.{target}", default)
    for key in ("enforce_eager", "enable_prefix_caching", "dtype", "max_model_len"):
        if draft.get(f"{R}{key}") is not None:
            draft.copy(f"{R}{key}", f"generate_config.{key}", None)
        draft.drop_known({f"{R}{key}": "It is null: prompt and response fit."})
    for key, whole in (("top_p", 1), ("top_k", -1)):
        whole_distribution(draft, f"{R}{key}", (whole, 0) if key == "top_k" else (whole,))
    if draft.get(f"{R}do_sample", True) is False:
        draft.ask(f"{R}do_sample", "Training samples.")
    draft.drop(f"{R}do_sample", "Training samples.")
    for key, target in (("prompt_length", "max_prompt_length"), ("response_length", "max_response_length")):
        if draft.get(f"{R}{key}") not in (None, draft.get(f"data.{target}", 512)):
            draft.ask(f"{R}{key}", f"It differs from data.{target}, which was taken.")
        draft.drop(f"{R}{key}", f"It is data.{target}.")
    for key, advice in (
        ("ignore_eos", "A turn ends with the model's end token."),
        ("quantization", "Engines compute in bfloat16 or float32."),
        ("quantization_config_file", "Engines compute in bfloat16 or float32."),
        ("over_sample_rate", "Every trajectory of a step is waited for."),
        ("skip_rollout", "Use `rl train --replay RUN` to train on recorded rollouts."),
    ):
        draft.ask_if_set(f"{R}{key}", advice)
    if (draft.get(f"{R}pipeline_model_parallel_size") or 1) != 1:
        draft.ask(f"{R}pipeline_model_parallel_size", "An engine is split by infer_tensor_parallel_size only.")
    draft.drop(f"{R}pipeline_model_parallel_size", "It is 1.")
    _evaluation(draft)


def whole_distribution(draft: Draft, name: str, whole: tuple[Any, ...]) -> None:
    """Training samples the whole distribution: another value is asked about."""
    value = draft.get(name)
    if value is None or value in whole:
        draft.drop(name, "Training samples the whole distribution.")
    else:
        draft.ask(name, "Training samples the whole distribution; generate_config.eval_sampling_config may cut it.")


def _evaluation(draft: Draft) -> None:
    there, here = f"{R}val_kwargs.", "generate_config.eval_sampling_config."
    draft.copy(f"{there}n", f"{here}num_samples", 1)
    if draft.get(f"{there}do_sample"):
        draft.copy(f"{there}temperature", f"{here}temperature", 0)
        draft.renamed[f"{there}do_sample"] = [f"{here}temperature"]
        if draft.get(f"{there}temperature"):
            draft.copy(f"{there}top_p", f"{here}top_p", 1.0)
            draft.copy(f"{there}top_k", f"{here}top_k", -1)
