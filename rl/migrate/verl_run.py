"""Converts verl's sections of data, tools, rewards and the run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import PurePath
from typing import Any

from rl.chat.parsers import PARSERS
from rl.config.kinds import TrackerName
from rl.config.migration import Missing
from rl.migrate.draft import Draft
from rl.migrate.mindspeed import tokens_not_characters
from rl.migrate.verl_keys import DROPPED, A, R

NEVER = 100_000_000
"""Steps that no run has: `save_interval` and `train_iters` cannot be null."""
NO_LIMIT = 1000
"""Tool calls that no trajectory has."""
_NOT_TRACKERS = ("console", "file", "rank_zero")
_T = f"{R}multi_turn."
_OVERLONG = ("reward_model.reward_kwargs.overlong_buffer_cfg.", "reward_model.overlong_buffer.")


def convert_data(draft: Draft) -> None:
    """Files, lengths, and what else `data` says."""
    files = _paths(draft.any_kind("data.train_files", "~/data/rlhf/gsm8k/train.parquet"))
    draft.put("megatron_training.data_path", files[0] if files else "", "data.train_files")
    if len(files) > 1:
        draft.note("megatron_training.data_path", f"the first of {len(files)} files")
        draft.ask("data.train_files", "data_path is one file: join them, for example with pyarrow.")
    held_out = _paths(draft.any_kind("data.val_files", "~/data/rlhf/gsm8k/test.parquet"))
    draft.put("megatron_training.eval_data_path", _named(held_out), "data.val_files")
    draft.copy("data.max_prompt_length", "rl_config.max_prompt_length", 512)
    if draft.get("data.truncation", "error") == "error":
        draft.drop("data.truncation", "A longer prompt is dropped and counted.")
    else:
        draft.ask("data.truncation", "A prompt is never cut: a longer one is dropped and counted.")
    if draft.get("data.seed") is not None:
        draft.copy("data.seed", "megatron_training.seed", None)
    draft.drop("data.seed", "It is null.")
    if draft.get("data.shuffle", True) is False:
        draft.ask("data.shuffle", "Prompts are shuffled anew in each epoch, by megatron_training.seed.")
    draft.drop("data.shuffle", "Prompts are shuffled anew in each epoch.")
    if draft.get("data.prompt_key", "prompt") != "prompt":
        draft.ask("data.prompt_key", "Name the column in map_keys of a dataset's YAML, for `rl preprocess`.")
    draft.drop("data.prompt_key", "The column is called prompt here too.")
    draft.drop("data.gen_batch_size", "Dynamic sampling refills a batch prompt by prompt.")
    for name in ("data.train_max_samples", "data.val_max_samples"):
        if draft.number(name, -1) > 0:
            draft.ask(name, "All rows of a file are used: write a shorter one.")
        draft.drop(name, "All rows of a file are used.")
    for name, advice in (
        ("data.custom_cls.path", "Rows are read from parquet or jsonl: write them with a script of your own."),
        ("data.sampler.class_path", "Prompts are shuffled in each epoch; there is no other sampler."),
        ("data.datagen.path", "Rows are not generated during a run."),
        ("data.apply_chat_template_kwargs", "The template is chosen by rl_config.prompt_type."),
        ("data.tool_config_path", "The run has one tool YAML, rl_config.tool_config_path."),
    ):
        draft.ask_if_set(name, advice)
    for section in ("custom_cls", "sampler", "datagen"):
        draft.drop_known({f"data.{section}.": "It is not set."})
    for name in [name for name in draft.unanswered() if name.startswith("data.apply_chat_template_kwargs.")]:
        draft.ask(name, "The template is chosen by rl_config.prompt_type.")


def _paths(value: Any) -> list[str]:
    return [str(item) for item in (value if isinstance(value, list) else [value]) if item]


def _named(paths: Sequence[str]) -> dict[str, str]:
    """Evaluation sets by the names of their files, or of their folders where the files are called the same."""
    stems = [PurePath(path).stem for path in paths]
    if len(set(stems)) < len(stems):
        stems = [f"{PurePath(path).parent.name}_{PurePath(path).stem}" for path in paths]
    return dict(zip(stems, paths, strict=True))


def convert_tools(draft: Draft) -> None:
    """Turns, tools and the length of a response."""
    length = draft.get("data.max_response_length", 512)
    agent = draft.get(f"{R}agent.default_agent_loop")
    is_multi_turn = (
        draft.get(f"{_T}enable") is True or agent == "tool_agent" or bool(draft.get(f"{_T}tool_config_path"))
    )
    draft.put("generate_config.sampling_config.max_tokens", length, "data.max_response_length")
    if is_multi_turn:
        _turns(draft, length)
    else:
        draft.drop(f"{_T}enable", "A trajectory is one turn, as by default here.")
    if agent in ("tool_agent", "single_turn_agent", None):
        draft.drop(f"{R}agent.default_agent_loop", "multi_turn_enable says it.")
    else:
        draft.ask(
            f"{R}agent.default_agent_loop", "Write it as rl_config.agent_function or environment (docs/agents.md)."
        )
    draft.ask_if_set(f"{R}agent.agent_loop_config_path", "Write it as an agent function (docs/agents.md).")
    for name in [name for name in draft.given if name.startswith(f"{R}engine_kwargs.vllm.") and name not in DROPPED]:
        draft.ask_if_set(name, "The engine has the settings of generate_config and no others.")


def _turns(draft: Draft, length: Any) -> None:
    draft.put("rl_config.multi_turn_enable", True, f"{_T}enable", f"{R}agent.default_agent_loop")
    draft.put(
        "rl_config.max_total_response_length",
        length,
        "data.max_response_length",
        comment="tokens of all turns and tool results, as there",
    )
    tools = draft.get(f"{_T}tool_config_path")
    if tools:
        draft.put("rl_config.tool_config_path", tools, f"{_T}tool_config_path")
    else:
        draft.ask(f"{_T}tool_config_path", "Name a tool YAML in rl_config.tool_config_path, or an environment.")
    parallel = draft.copy(f"{_T}max_parallel_calls", "rl_config.max_parallel_calls", 1)
    turns_key = f"{_T}max_assistant_turns" if f"{_T}max_assistant_turns" in draft.given else f"{_T}max_turns"
    turns, answers = draft.number(turns_key, 0), draft.number(f"{_T}max_user_turns", 0)
    rounds = min(max(0, turns - 1) if turns else NO_LIMIT, answers or NO_LIMIT)
    draft.put(
        "rl_config.max_tool_calls",
        NO_LIMIT if rounds == NO_LIMIT else rounds * parallel,
        turns_key,
        f"{_T}max_user_turns",
        comment="no limit there" if rounds == NO_LIMIT else f"{rounds} rounds before the last turn x {parallel} calls",
    )
    characters = draft.get(f"{_T}max_tool_response_length", 256)
    draft.put("rl_config.max_tool_response_length", characters, f"{_T}max_tool_response_length")
    draft.note("rl_config.max_tool_response_length", tokens_not_characters(characters))
    draft.copy(f"{_T}tool_response_truncate_side", "rl_config.tool_response_truncate_side", "middle")
    if draft.get(f"{_T}format", "hermes") in PARSERS:
        draft.copy(f"{_T}format", "rl_config.tool_parser_format", "hermes")
    else:
        draft.ask(f"{_T}format", "Choose rl_config.tool_parser_format (docs/parsers.md).")
    draft.ask_if_set(f"{_T}interaction_config_path", "Write the interaction as an environment (docs/environments.md).")
    draft.ask_if_set(f"{_T}completion_callback", "Write it as an environment (docs/environments.md).")


def convert_rewards(draft: Draft) -> None:
    """Reward functions, the length penalty, dynamic sampling."""
    path, name = draft.get("custom_reward_function.path"), draft.get("custom_reward_function.name", "compute_score")
    if path:
        function = f"{path}:{name}"
        draft.put(
            "rl_config.verifier_function", [function], "custom_reward_function.path", "custom_reward_function.name"
        )
        kwargs = {
            key.rpartition(".")[2]: value
            for key, value in draft.given.items()
            if key.startswith("custom_reward_function.reward_kwargs.")
        }
        names = [key for key in draft.given if key.startswith("custom_reward_function.reward_kwargs.")]
        if kwargs:
            draft.put("rl_config.verifier_kwargs", {function: kwargs}, *names)
    else:
        draft.put("rl_config.verifier_function", ["math_acc"])
        draft.note("rl_config.verifier_function", "verl chooses by data_source; math_acc compares final answers")
        draft.drop_known({"custom_reward_function.": "It is not set."})
    if draft.get("reward_model.enable"):
        names = [
            key for key in draft.given if key.startswith("reward_model.") and key.split(".")[1] in _OF_REWARD_MODELS
        ]
        draft.lack(Missing.REWARD_MODEL, *names, value=str(draft.get("reward_model.model.path", "")))
    draft.ask_if_set(
        "reward_model.sandbox_fusion.url", "Code is run by rewards and tools of the project (docs/sandbox.md)."
    )
    draft.ask_if_set("reward_model.reward_loop_module_path", "Name the function in rl_config.verifier_function.")
    draft.ask_if_set("reward_manager.module.path", "Name the function in rl_config.verifier_function.")
    _length_penalty(draft)
    _dynamic_sampling(draft)


_OF_REWARD_MODELS = (
    "enable",
    "model",
    "strategy",
    "micro_batch_size",
    "micro_batch_size_per_gpu",
    "max_length",
    "rollout",
)


def _length_penalty(draft: Draft) -> None:
    there = next((prefix for prefix in _OVERLONG if draft.get(f"{prefix}enable")), "")
    longest = "reward_model.reward_kwargs.max_resp_len"
    if there:
        draft.copy(f"{there}enable", "rl_config.overlong_buffer_enable", False)
        draft.copy(f"{there}len", "rl_config.overlong_buffer", 0)
        draft.copy(f"{there}penalty_factor", "rl_config.overlong_buffer_penalty_factor", 1.0)
        limit = draft.get(longest) or draft.get("data.max_response_length", 512)
        draft.put("rl_config.rollout_max_tokens", limit, longest, "data.max_response_length")
    draft.drop(longest, "There is no penalty for long responses.")
    for prefix in _OVERLONG:
        draft.drop(f"{prefix}log", "Every part of a score is logged.")
        draft.drop_known({prefix: "There is no penalty for long responses."})


def _dynamic_sampling(draft: Draft) -> None:
    there = "algorithm.filter_groups."
    if not draft.get(f"{there}enable"):
        return
    draft.copy(f"{there}enable", "rl_config.filter_groups_enable", False)
    metric = draft.get(f"{there}metric")
    draft.put(
        "rl_config.filter_groups_metric", "score", f"{there}metric", comment=f"the weighted rewards; was {metric}"
    )
    batches = draft.get(f"{there}max_num_gen_batches", 0)
    prompts = draft.value("megatron_training.global_batch_size")
    per_batch = draft.get("data.gen_batch_size") or prompts
    if isinstance(batches, int) and batches > 0:
        value = math.ceil(batches * per_batch / prompts)
        comment = f"{batches} x {per_batch} prompts, in units of global_batch_size"
    else:
        value, comment = 0, "as many prompts as the dataset has; there no limit"
    sources = (f"{there}max_num_gen_batches", "data.gen_batch_size")
    draft.put("rl_config.filter_groups_max_batches", value, *sources, comment=comment)


def convert_run(draft: Draft) -> None:
    """Length of the run, saving, evaluation, trackers."""
    steps = draft.get("trainer.total_training_steps")
    comment = "" if steps else "total_epochs ends the run"
    draft.put("megatron_training.train_iters", steps or NEVER, "trainer.total_training_steps", comment=comment)
    draft.copy("trainer.total_epochs", "megatron_training.total_epochs", 30)
    _interval(draft, "trainer.save_freq", "megatron_training.save_interval", "only the last step saves")
    evaluates = _interval(draft, "trainer.test_freq", "megatron_training.eval_interval", "")
    draft.copy("trainer.val_before_train", "megatron_training.eval_before_train", True)
    draft.put("megatron_training.eval_after_train", evaluates, "trainer.test_freq")
    draft.copy("trainer.max_actor_ckpt_to_keep", "megatron_training.max_checkpoints", None)
    draft.copy("trainer.project_name", "megatron_training.tracker_project", "")
    draft.copy("trainer.experiment_name", "megatron_training.tracker_run_name", "")
    convert_trackers(draft, "trainer.logger", draft.any_kind("trainer.logger", ["console", "wandb"]))
    draft.ask_if_set("trainer.val_only", "Evaluate with `rl evaluate`.")
    if draft.get("trainer.resume_mode", "auto") == "resume_path":
        draft.ask(
            "trainer.resume_from_path", "Checkpoints of verl cannot be continued: load its exported model folder."
        )
    draft.drop("trainer.resume_from_path", "It is not used.")
    draft.drop("trainer.resume_mode", "A run continues with megatron_training.resume.")
    if draft.get("actor_rollout_ref.hybrid_engine", True) is False:
        draft.ask("actor_rollout_ref.hybrid_engine", "Set rl_config.use_integrated_worker: false and rollout_resource.")
    for name in [name for name in draft.unanswered() if name.startswith(("async_training.", "rollout.total_"))]:
        draft.ask(name, "Rollouts run ahead by whole steps: set rl_config.max_staleness (docs/asynchronous.md).")
    for name in (f"{R}nnodes", f"{R}n_gpus_per_node", "rollout.nnodes", "rollout.n_gpus_per_node"):
        if draft.get(name):
            draft.ask(name, "Set rl_config.use_integrated_worker: false and rl_config.rollout_resource.num_devices.")
        draft.drop(name, "Actor and engines take turns on the same devices.")
    draft.drop(f"{A}checkpoint", "A checkpoint is a Hugging Face folder.")


def _interval(draft: Draft, name: str, target: str, otherwise: str) -> bool:
    """Steps between events; -1 and 0 mean never."""
    steps = draft.get(name, -1)
    if isinstance(steps, int) and steps > 0:
        draft.put(target, steps, name)
        return True
    draft.put(target, NEVER if otherwise else 0, name, comment=otherwise)
    return False


def convert_trackers(draft: Draft, name: str, names: Any) -> None:
    """A list of trackers; those that do not exist here are named."""
    given = [str(item) for item in (names if isinstance(names, list) else [names])]
    known = [item for item in given if item in list(TrackerName)]
    draft.put("megatron_training.trackers", known, name)
    unknown = [item for item in given if item not in known and item not in _NOT_TRACKERS]
    if unknown:
        draft.ask(name, f"There is no tracker {', '.join(unknown)}: choose from {', '.join(TrackerName)}.")
