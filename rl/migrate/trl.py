"""Converts TRL's GRPOConfig, with the arguments of the model and of the script beside it.

TRL counts in completions and in optimizer steps, Turnwise in prompts and in steps of one batch of rollouts.

Source: TRL (1.9), https://huggingface.co/docs/trl/grpo_trainer
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from rl.config.kinds import TrackerName
from rl.config.migration import Missing
from rl.migrate.draft import Draft
from rl.migrate.lengths import fit_lengths
from rl.migrate.trl_keys import ASKED, DROPPED
from rl.migrate.trl_objective import convert_objective
from rl.migrate.verl import folder_comment, warm_up
from rl.migrate.verl_run import NEVER, NO_LIMIT, convert_trackers

FRAMEWORK = "TRL"

_SCHEDULES = {
    "linear": "linear",
    "constant": "constant",
    "constant_with_warmup": "constant",
    "cosine": "cosine",
    "cosine_with_min_lr": "cosine",
}
_ADAMW = ("adamw_torch", "adamw_torch_fused", "adamw_hf", "adamw_apex_fused", "adamw")
_REWARDS = {"accuracy_reward": "math_acc", "accuracy": "math_acc", "reasoning_accuracy_reward": "math_acc"}
_OVERLONG = "get_soft_overlong_punishment"
_BATCH = ("per_device_train_batch_size", "gradient_accumulation_steps", "num_processes", "num_generations")


def convert(tree: Mapping[str, Any]) -> Draft:
    """Convert the arguments of TRL's GRPOTrainer.

    Args:
        tree: Names and values.
    """
    draft = Draft(FRAMEWORK, dict(tree))
    _model(draft)
    _data(draft)
    updates = _batches(draft)
    _run(draft, updates)
    _optimizer(draft, updates)
    _sampling(draft)
    convert_objective(draft)
    _rewards(draft)
    _turns(draft)
    _engine(draft)
    fit_lengths(draft)
    for name, advice in ASKED.items():
        if name == "model_revision" and draft.get(name) == "main":
            draft.drop(name, "It is the newest one.")
        draft.ask_if_set(name, advice)
    draft.drop_known(DROPPED)
    return draft


def _model(draft: Draft) -> None:
    path = draft.get("model_name_or_path")
    if path:
        draft.put("actor_config.load", path, "model_name_or_path", comment=folder_comment(path))
    else:
        draft.put("actor_config.load", "./model")
        draft.note("actor_config.load", "name the model folder")
        draft.ask("model_name_or_path", "Name the model folder in actor_config.load.")
    draft.put("megatron_training.tokenizer_name_or_path", draft.get("tokenizer_name_or_path"), "tokenizer_name_or_path")
    if draft.get("trust_remote_code"):
        draft.copy("trust_remote_code", "generate_config.trust_remote_code", False)
    draft.drop("trust_remote_code", "It is false.")
    if draft.get("use_peft"):
        names = [
            name for name in draft.given if name.startswith("lora_") or name in ("use_peft", "use_rslora", "use_dora")
        ]
        draft.lack(Missing.LORA, *names, value=draft.get("lora_r", 16))


def _data(draft: Draft) -> None:
    name = draft.get("dataset_name")
    if name:
        stem = str(name).rstrip("/").rpartition("/")[2]
        draft.put(
            "megatron_training.data_path",
            f"./dataset/{stem}.parquet",
            "dataset_name",
            comment=f"{name}, written by `rl preprocess` with a YAML of configs/datasets",
        )
    else:
        draft.put("megatron_training.data_path", "./dataset/train.parquet")
        draft.note("megatron_training.data_path", "name the rows that `rl preprocess` wrote")
        draft.ask("dataset_name", "Name the rows in megatron_training.data_path; `rl preprocess` writes them.")
    if draft.get("shuffle_dataset", True) is False:
        draft.ask("shuffle_dataset", "Prompts are shuffled in each epoch, by megatron_training.seed.")
    draft.drop("shuffle_dataset", "Prompts are shuffled in each epoch.")


def _batches(draft: Draft) -> int:
    """Completions to prompts. Returns the optimizer steps of one batch of rollouts, passes over it included.

    Completions of an optimizer step = per_device_train_batch_size x gradient_accumulation_steps x devices. Completions
    of one batch of rollouts = per_device_train_batch_size x devices x steps_per_generation, or generation_batch_size.
    """
    per_device, accumulated = draft.number(_BATCH[0], 8, 1), draft.number(_BATCH[1], 1, 1)
    devices, group = draft.number("num_processes", 1, 1), draft.number("num_generations", 8, 1)
    if "num_processes" not in draft.given:
        draft.ask(
            "num_processes",
            "The file does not say on how many devices it ran; 1 was taken. With more, multiply "
            "megatron_training.global_batch_size, rl_config.mini_batch_size and rl_config.actor_resource.num_devices.",
        )
    draft.put("rl_config.actor_resource.num_devices", devices, "num_processes")
    draft.copy("num_generations", "rl_config.n_samples_per_prompt", 8)
    rollouts = per_device * devices * (draft.number("steps_per_generation", None, 1) or accumulated)
    rollouts = draft.number("generation_batch_size", None, 1) or rollouts
    update = per_device * devices * accumulated
    if rollouts % group or update % group:
        draft.ask(
            "per_device_train_batch_size",
            f"{rollouts} completions of a batch and {update} of an optimizer step are not whole groups of {group}: the "
            "prompts were rounded up.",
        )
    names = (*_BATCH, "generation_batch_size", "steps_per_generation")
    draft.put(
        "megatron_training.global_batch_size",
        math.ceil(rollouts / group),
        *names,
        comment=f"prompts; {rollouts} completions / {group} of a prompt",
    )
    draft.put(
        "rl_config.mini_batch_size",
        min(math.ceil(update / group), math.ceil(rollouts / group)),
        *_BATCH,
        comment=f"prompts; {per_device} x {accumulated} x {devices} devices = {update} completions",
    )
    passes = draft.number("num_iterations", 1, 1)
    draft.put("rl_config.epochs", passes, "num_iterations")
    return max(1, math.ceil(rollouts / update)) * passes


def _run(draft: Draft, updates: int) -> None:
    """Steps: there optimizer steps, here batches of rollouts with `updates` optimizer steps each."""
    steps, epochs = draft.number("max_steps", -1), draft.number("num_train_epochs", 3.0)
    if steps > 0:
        comment = f"{steps} optimizer steps / {updates} of a batch" if updates > 1 else ""
        draft.put("megatron_training.train_iters", max(1, round(steps / updates)), "max_steps", comment=comment)
        draft.drop("num_train_epochs", "max_steps ends the run.")
    else:
        draft.put("megatron_training.train_iters", NEVER, "max_steps", comment="total_epochs ends the run")
        if epochs != int(epochs):
            draft.ask("num_train_epochs", "Epochs are whole: it was rounded up; train_iters ends a run earlier.")
        draft.put("megatron_training.total_epochs", math.ceil(epochs), "num_train_epochs")
    _saves(draft, updates)
    _evaluations(draft, updates)
    draft.put("megatron_training.seed", draft.number("seed", 42), "seed")
    if draft.get("output_dir"):
        draft.copy("output_dir", "megatron_training.output_dir", "", "folder of the run directories")
    draft.put("megatron_training.tracker_run_name", draft.get("run_name") or "", "run_name")
    project = "wandb_project" if "wandb_project" in draft.given else "project"
    draft.put("megatron_training.tracker_project", draft.get(project) or "", project)
    reported = draft.any_kind("report_to", "none")
    names = [str(item) for item in (reported if isinstance(reported, list) else [reported])]
    if names == ["all"]:
        draft.ask("report_to", f"Name the trackers in megatron_training.trackers: {', '.join(TrackerName)}.")
    else:
        convert_trackers(draft, "report_to", [name for name in names if name not in ("none", "None")])


def _every(draft: Draft, name: str, target: str, default: Any, updates: int) -> None:
    steps = draft.get(name, default)
    if isinstance(steps, int) and steps >= 1:
        comment = f"{steps} optimizer steps / {updates} of a batch" if updates > 1 else ""
        draft.put(target, max(1, round(steps / updates)), name, comment=comment)
    else:
        draft.ask(name, f"Set {target} to a number of steps; there it is a share of the run.")


def _saves(draft: Draft, updates: int) -> None:
    strategy, target = draft.get("save_strategy", "steps"), "megatron_training.save_interval"
    if strategy == "steps":
        _every(draft, "save_steps", target, 500, updates)
    elif strategy == "no":
        draft.put(target, NEVER, "save_strategy", comment="only the last step saves")
    else:
        draft.ask("save_strategy", f"Set {target}: saving is by steps.")
    draft.drop("save_strategy", "Saving is by steps.")
    draft.drop("save_steps", "save_strategy is not steps.")
    draft.copy("save_total_limit", "megatron_training.max_checkpoints", None)


def _evaluations(draft: Draft, updates: int) -> None:
    strategy = draft.get("eval_strategy", "no")
    if strategy == "no":
        for name in ("eval_steps", "num_generations_eval", "eval_on_start"):
            draft.drop(name, "eval_strategy is no.")
    else:
        draft.ask("eval_strategy", "Name the evaluation's rows in megatron_training.eval_data_path.")
        if strategy == "steps":
            _every(draft, "eval_steps", "megatron_training.eval_interval", draft.get("logging_steps", 10), updates)
        draft.put("megatron_training.eval_before_train", bool(draft.get("eval_on_start")), "eval_on_start")
        samples = draft.get("num_generations_eval") or draft.number("num_generations", 8, 1)
        draft.put("generate_config.eval_sampling_config.num_samples", samples, "num_generations_eval")
        temperature = draft.number("temperature", 1.0)
        draft.put("generate_config.eval_sampling_config.temperature", temperature, "temperature")
    draft.drop("eval_strategy", "There is no evaluation, as by default here.")
    draft.drop("eval_steps", "eval_strategy is not steps.")


def _optimizer(draft: Draft, updates: int) -> None:
    lr = draft.copy("learning_rate", "actor_config.lr", 1e-6)
    draft.copy("weight_decay", "actor_config.weight_decay", 0.0)
    draft.copy("max_grad_norm", "actor_config.clip_grad", 1.0)
    draft.copy("adam_beta1", "actor_config.adam_beta1", 0.9)
    draft.copy("adam_beta2", "actor_config.adam_beta2", 0.999)
    draft.copy("adam_epsilon", "actor_config.adam_eps", 1e-8)
    if draft.get("optim", "adamw_torch_fused") not in _ADAMW:
        draft.ask("optim", "The optimizer is AdamW.")
    draft.drop("optim", "The optimizer is AdamW.")
    schedule = draft.get("lr_scheduler_type", "linear")
    if schedule in _SCHEDULES:
        draft.put("actor_config.lr_decay_style", _SCHEDULES[schedule], "lr_scheduler_type")
    else:
        draft.ask("lr_scheduler_type", "Choose actor_config.lr_decay_style: constant, linear or cosine.")
    more = draft.get("lr_scheduler_kwargs") or {}
    least = more.get("min_lr", lr * more.get("min_lr_rate", 0.0)) if isinstance(more, dict) else 0.0
    draft.put("actor_config.min_lr", least, "lr_scheduler_kwargs")
    _warm_up(draft, updates)
    half = draft.get("fp16", False)
    if half:
        draft.ask("fp16", "Training computes in bfloat16 or float32.")
    draft.drop("fp16", "bf16 says it.")
    draft.put("megatron_training.bf16", True if draft.get("bf16") is None else bool(draft.get("bf16")), "bf16")
    full = draft.get("gradient_checkpointing", True)
    draft.put("actor_config.recompute_granularity", "full" if full else "none", "gradient_checkpointing")


def _warm_up(draft: Draft, updates: int) -> None:
    """`warmup_steps` below 1 is a share of the run."""
    steps = draft.get("warmup_steps", 0)
    if isinstance(steps, float) and 0 < steps < 1:
        draft.put("actor_config.lr_warmup_fraction", steps, "warmup_steps")
        draft.drop("warmup_ratio", "warmup_steps says it.")
    else:
        warm_up(draft, "warmup_steps", "warmup_ratio", draft.number("max_steps", -1))


def _sampling(draft: Draft) -> None:
    temperature = draft.number("temperature", 1.0)
    draft.put("generate_config.sampling_config.temperature", temperature, "temperature")
    wholes: dict[str, tuple[Any, ...]] = {"top_p": (1,), "top_k": (0, -1), "min_p": (0,), "repetition_penalty": (1,)}
    for name, whole in wholes.items():
        if draft.get(name) is not None and draft.get(name) not in whole:
            draft.ask(name, "Training samples the whole distribution, without penalties.")
        draft.drop(name, "Training samples the whole distribution.")


def _rewards(draft: Draft) -> None:
    names = draft.get("reward_funcs") or []
    names = [str(name) for name in (names if isinstance(names, list) else [names])]
    given = draft.get("reward_weights", []) or [1.0] * len(names)
    weights: dict[str, float] = {}
    unknown: list[str] = []
    for name, weight in zip(names, given, strict=False):
        here = _REWARDS.get(name) or (":".join(name.rpartition(".")[::2]) if "." in name else "")
        if name.startswith(_OVERLONG):
            _length_penalty(draft, weight)
        elif here:
            weights[here] = weights.get(here, 0.0) + float(weight)
        else:
            unknown.append(name)
    if weights:
        draft.put("rl_config.verifier_function", list(weights), "reward_funcs")
    if unknown:
        draft.ask("reward_funcs", f"There is no reward {', '.join(unknown)}: write it (docs/rewards.md), and name it.")
    elif not weights and not draft.get("reward_model_name_or_path"):
        draft.ask(
            "reward_funcs", "Name the functions in rl_config.verifier_function; base_acc compares with the answer."
        )
    draft.put("rl_config.verifier_weight", list(weights.values()) or [1.0], "reward_weights")
    if draft.get("reward_model_name_or_path"):
        model = draft.get("reward_model_name_or_path")
        draft.lack(Missing.REWARD_MODEL, "reward_model_name_or_path", value=model)
    draft.drop("reward_model_name_or_path", "There is none.")


def _length_penalty(draft: Draft, weight: float) -> None:
    """`get_soft_overlong_punishment` as `trl grpo` calls it: 1280 tokens, of which the last 256 cost up to 1."""
    draft.put("rl_config.overlong_buffer_enable", True, "reward_funcs")
    draft.put("rl_config.rollout_max_tokens", 1280, "reward_funcs")
    draft.put("rl_config.overlong_buffer", 256, "reward_funcs")
    draft.put("rl_config.overlong_buffer_penalty_factor", float(weight), "reward_funcs")


def _turns(draft: Draft) -> None:
    length = draft.number("max_completion_length", 512)
    draft.put("generate_config.sampling_config.max_tokens", length, "max_completion_length")
    if draft.get("max_prompt_length") is not None:
        draft.copy("max_prompt_length", "rl_config.max_prompt_length", None)
    draft.drop("max_prompt_length", "It is not set.")
    if any(draft.get(name) for name in ("tools", "max_tool_calling_iterations")):
        draft.put("rl_config.multi_turn_enable", True, "tools", "max_tool_calling_iterations")
        draft.put("rl_config.max_total_response_length", length, "max_completion_length")
        rounds = draft.get("max_tool_calling_iterations")
        draft.put(
            "rl_config.max_tool_calls",
            rounds or NO_LIMIT,
            "max_tool_calling_iterations",
            comment="" if rounds else "no limit there",
        )
        draft.ask("tools", ASKED["tools"])
    draft.drop("max_tool_calling_iterations", "There are no tools.")


def _engine(draft: Draft) -> None:
    draft.copy("vllm_gpu_memory_utilization", "generate_config.gpu_memory_utilization", 0.3)
    draft.copy("vllm_tensor_parallel_size", "generate_config.infer_tensor_parallel_size", 1)
    for name in ("vllm_max_model_length", "vllm_max_model_len"):
        if draft.get(name) is not None:
            draft.copy(name, "generate_config.max_model_len", None)
        draft.drop(name, "It is null: prompt and response fit.")
    if draft.get("vllm_mode", "colocate") == "server":
        draft.put("rl_config.use_integrated_worker", False, "vllm_mode")
        draft.ask("vllm_mode", "Set rl_config.rollout_resource.num_devices to the devices of the vLLM server.")
    draft.drop("vllm_mode", "Actor and engines take turns on the same devices, as by default here.")
