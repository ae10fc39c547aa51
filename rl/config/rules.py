"""Rules between fields: parallel sizes, lengths, sampling, the algorithm, multi-turn."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields

from rl.config.divisibility import devices_fault, engine_fault, pipeline_fault, tensor_fault
from rl.config.early_warning import EarlyWarning
from rl.config.estimates import GIB, longest_response, memory_estimate
from rl.config.objective_rules import objective_problems
from rl.config.problems import Problem, error, warning
from rl.config.schema import Config, Device, MegatronTraining, ModelConfig, ResumeMode, RLConfig
from rl.errors import unknown_name


def parallel_problems(config: Config, facts: ModelConfig | None) -> Iterator[Problem]:
    """The actor's parallel sizes against devices and against the architecture, where that is known."""
    actor = config.actor_config
    tp, pp = actor.tensor_model_parallel_size, actor.pipeline_model_parallel_size
    faults = [devices_fault(config.rl_config.actor_resource.num_devices, tp=tp, pp=pp)]
    if facts is not None:
        chunk = actor.num_layers_per_virtual_pipeline_stage
        faults += [
            tensor_fault(facts, tp),
            pipeline_fault(facts.num_hidden_layers, pp=pp, layers_per_chunk=chunk),
        ]
    yield from map(error, filter(None, faults))


def in_process_problems(config: Config) -> Iterator[Problem]:
    """What a run in one process cannot have."""
    rl = config.rl_config
    if not rl.in_process:
        return
    for key, resource in (("actor_resource", rl.actor_resource), ("rollout_resource", rl.rollout_resource)):
        if resource.num_devices > 1:
            yield error(f"rl_config.{key}.num_devices: must be 1 with in_process, got {resource.num_devices}. Set 1.")
    if rl.ray_address is not None:
        yield error(
            f"rl_config.ray_address: in_process starts no worker in a cluster, got '{rl.ray_address}'. Remove one."
        )
    for name in ("max_staleness", "over_sample_rate"):
        if getattr(rl, name) > 0:
            yield error(
                f"rl_config.{name}: must be 0 with in_process, where rollouts and update take turns, got "
                f"{getattr(rl, name):g}. Set 0."
            )
    if not rl.use_integrated_worker:
        yield error("rl_config.use_integrated_worker: must be true with in_process, got false. Set true.")
    if rl.num_reward_workers > 1:
        yield warning("rl_config.num_reward_workers: has no effect with in_process.")


def length_problems(config: Config, facts: ModelConfig | None) -> Iterator[Problem]:
    """Token lengths against each other and against the limits of engine and model."""
    rl, generate, training = config.rl_config, config.generate_config, config.megatron_training
    longest, limit = rl.max_prompt_length + longest_response(config), generate.max_model_len
    if longest > limit:
        key = "max_total_response_length" if rl.multi_turn_enable else "generate_config.sampling_config.max_tokens"
        yield error(
            f"generate_config.max_model_len: must hold rl_config.max_prompt_length ({rl.max_prompt_length}) plus "
            f"{key} ({longest_response(config)}), got {limit}. Set {longest}, or lower those."
        )
    if rl.multi_turn_enable:
        yield from _turn_length_problems(config)
    if facts is None:
        return
    if 0 < facts.max_position_embeddings < limit:
        yield error(
            f"generate_config.max_model_len: the model was trained for {facts.max_position_embeddings} tokens, got "
            f"{limit}. Lower it."
        )
    cache = generate.kv_cache_memory_gb * GIB
    per_token = memory_estimate(config, facts).cache_bytes_per_token
    if training.device is not Device.CUDA and cache < per_token * limit:
        make = error if training.device is Device.CPU else warning
        yield make(
            f"generate_config.kv_cache_memory_gb: on CPU one sequence of max_model_len {limit} needs "
            f"{per_token * limit / GIB:.2f} GiB, got {generate.kv_cache_memory_gb:g}. Raise it, or lower max_model_len."
        )


def _turn_length_problems(config: Config) -> Iterator[Problem]:
    """Parts of a trajectory against the whole. Without tools there is one turn, which only max_tokens limits."""
    rl, max_tokens = config.rl_config, config.generate_config.sampling_config.max_tokens
    total = rl.max_total_response_length
    if max_tokens > total:
        yield error(
            f"generate_config.sampling_config.max_tokens: one turn must fit into rl_config.max_total_response_length, "
            f"{total}, got {max_tokens}. Set at most {total}."
        )
    for name in ("final_answer_reserve", "max_tool_response_length"):
        if getattr(rl, name) >= total:
            yield error(
                f"rl_config.{name}: must be under max_total_response_length ({total}), got {getattr(rl, name)}. "
                "Lower it."
            )


def sampling_problems(config: Config) -> Iterator[Problem]:
    """Training rollouts must be samples of exactly the distribution whose log-probs are trained on."""
    sampling, where = config.generate_config.sampling_config, "generate_config.sampling_config"
    for name, required in (("top_p", 1.0), ("top_k", -1), ("min_p", 0.0)):
        if (value := getattr(sampling, name)) != required:
            yield error(
                f"{where}.{name}: must be {required:g} in training, got {value:g}: cut tails would make the log-probs "
                "those of another distribution. Remove it; generate_config.eval_sampling_config may cut them."
            )
    if (config.generate_config.dtype == "bfloat16") != config.megatron_training.bf16:
        yield warning(
            f"generate_config.dtype: engines compute in {config.generate_config.dtype} while megatron_training.bf16 is "
            f"{str(config.megatron_training.bf16).lower()}, so their log-probs differ more. Choose the same."
        )


def engine_problems(config: Config, facts: ModelConfig | None) -> Iterator[Problem]:
    """How much an engine computes at once, and how it is split over devices."""
    generate = config.generate_config
    if generate.max_num_batched_tokens < generate.max_num_seqs:
        yield error(
            f"generate_config.max_num_batched_tokens: must be at least max_num_seqs ({generate.max_num_seqs}), got "
            f"{generate.max_num_batched_tokens}. Raise it, or lower max_num_seqs."
        )
    if facts is not None and (fault := engine_fault(facts, generate.infer_tensor_parallel_size)):
        yield error(fault)


def algorithm_problems(config: Config) -> Iterator[Problem]:
    """Group and batch sizes, rewards, dynamic sampling, length shaping."""
    rl, training = config.rl_config, config.megatron_training
    yield from objective_problems(config)
    if rl.mini_batch_size is not None and rl.mini_batch_size > training.global_batch_size:
        yield error(
            f"rl_config.mini_batch_size: must be at most megatron_training.global_batch_size, "
            f"{training.global_batch_size} prompts, got {rl.mini_batch_size}. Lower it, or remove it."
        )
    yield from _reward_problems(config)
    metric = rl.filter_groups_metric
    if rl.filter_groups_enable and metric != "score" and not _is_reward_metric(config, metric):
        yield error(
            f"rl_config.filter_groups_metric: must be 'score' or a reward of verifier_function "
            f"({', '.join(rl.verifier_function)}), got '{metric}'. Set score."
        )
    yield from _correction_problems(config)
    yield from _overlong_problems(config)
    if config.actor_config.min_lr > config.actor_config.lr:
        yield error(
            f"actor_config.min_lr: must be at most lr, {config.actor_config.lr:g}, got {config.actor_config.min_lr:g}. "
            "Lower it."
        )


def multi_turn_problems(config: Config) -> Iterator[Problem]:
    """Requirements of tools, environments and rollout functions."""
    rl = config.rl_config
    named = [key for key in ("environment", "rollout_function", "agent_function") if not is_built_in(rl, key)]
    if rl.multi_turn_enable and not rl.tool_config_path and not named:
        yield error(
            "rl_config.tool_config_path: must name a tool YAML with multi_turn_enable, got nothing. "
            "Set configs/tools/retool_config.yaml, for example."
        )
    if named and not rl.multi_turn_enable:
        yield error(f"rl_config.{named[0]}: needs multi_turn_enable, got '{getattr(rl, named[0])}'. Set that to true.")
    if len(named) > 1:
        yield error(
            f"rl_config.{named[0]}: only one of environment, rollout_function and agent_function can lead the "
            f"trajectories, got {' and '.join(named)}. Remove one of them."
        )
    if rl.agent_function is not None and rl.tool_config_path:
        yield error(
            f"rl_config.tool_config_path: an agent function runs its own tools, got '{rl.tool_config_path}'. Set it to "
            "null."
        )
    if named and "environment" not in rl.verifier_function:
        yield warning(
            f"rl_config.verifier_function: does not name 'environment', so rewards of {getattr(rl, named[0])} do not "
            "count. Add it, unless it gives none."
        )


def is_built_in(rl: RLConfig, key: str) -> bool:
    """Whether `environment`, `rollout_function` or `agent_function` has its default."""
    return bool(getattr(rl, key) == getattr(RLConfig(), key))


def run_problems(config: Config) -> Iterator[Problem]:
    """The run's paths and names."""
    training = config.megatron_training
    if training.eval_interval > 0 and not training.eval_data_path:
        yield warning(
            "megatron_training.eval_interval: has no effect without eval_data_path. Set that, or remove this."
        )
    if training.profile_step is not None and training.profile_step > training.train_iters:
        yield warning(
            f"megatron_training.profile_step: has no effect, the run has {training.train_iters} steps, got "
            f"{training.profile_step}. Name one of them."
        )
    yield from _half_problems(training)
    figures = {f.name for f in fields(EarlyWarning)} - {"patience", "stop"}
    for name in training.early_warning.stop.keys() - figures:
        yield error(unknown_name("megatron_training.early_warning.stop", name, figures))
    if training.resume_mode is ResumeMode.AUTO and training.run_name is None:
        yield error(
            "megatron_training.run_name: resume_mode auto finds the run to continue by its name, got none. Set a name."
        )
    if training.run_name is not None and ("/" in training.run_name or training.run_name in ("", ".", "..")):
        yield error(
            f"megatron_training.run_name: must be the name of one folder, got '{training.run_name}'. "
            "Put its place into output_dir."
        )


def _half_problems(training: MegatronTraining) -> Iterator[Problem]:
    """Runs of one half alone: sampling, or training on what was recorded."""
    if not training.rollout_only:
        return
    if training.replay:
        yield error(
            f"megatron_training.replay: rollout_only samples without training, a replay trains without sampling, got "
            f"both ('{training.replay}'). Remove one."
        )
    if training.resume:
        yield error(
            f"megatron_training.resume: rollout_only has no actor that a checkpoint restores, got '{training.resume}'. "
            "Set actor_config.load to the checkpoint instead."
        )
    if training.resume_mode is ResumeMode.AUTO:
        yield error(
            "megatron_training.resume_mode: rollout_only has no actor that a checkpoint restores, got auto. Remove it."
        )
    if training.record_tokens_every == 0:
        yield error(
            "megatron_training.record_tokens_every: must be above 0 with rollout_only, whose steps could not be "
            "replayed otherwise, got 0. Remove it: rollout_only records every step."
        )


def _reward_problems(config: Config) -> Iterator[Problem]:
    rl = config.rl_config
    names, weights = rl.verifier_function, rl.verifier_weight
    if not names:
        yield error("rl_config.verifier_function: must name at least one reward, got an empty list. Add one.")
    if len(names) != len(weights):
        yield error(
            f"rl_config.verifier_weight: must have a weight for each of {len(names)} rewards, got {len(weights)}. "
            f"Set {[1.0] * len(names)}, for example."
        )
    if len(set(names)) != len(names):
        yield error(f"rl_config.verifier_function: must name each reward once, got {names}. Remove the repetition.")


def _is_reward_metric(config: Config, metric: str) -> bool:
    """Whether it is a reward's name, or `<name>/<metric>` for a metric that a reward returns with its score."""
    return any(metric == name or metric.startswith(f"{name}/") for name in config.rl_config.verifier_function)


def _overlong_problems(config: Config) -> Iterator[Problem]:
    rl = config.rl_config
    begin = rl.rollout_max_tokens - rl.overlong_buffer
    if not rl.overlong_buffer_enable:
        return
    if not 1 <= rl.overlong_buffer <= rl.rollout_max_tokens:
        yield error(
            f"rl_config.overlong_buffer: must be from 1 to rollout_max_tokens, {rl.rollout_max_tokens}, got "
            f"{rl.overlong_buffer}. Set the tokens before the limit where the penalty begins."
        )
    elif begin >= longest_response(config):
        yield warning(
            f"rl_config.overlong_buffer: has no effect: it begins at {begin} tokens, but responses end at "
            f"{longest_response(config)}. Lower rollout_max_tokens."
        )


def _correction_problems(config: Config) -> Iterator[Problem]:
    rl, where = config.rl_config, "rl_config.rollout_correction"
    correction = rl.rollout_correction
    kinds = {"is": correction.rollout_is, "rs": correction.rollout_rs}
    for kind in (kind for kind, choice in kinds.items() if choice is not None):
        upper = getattr(correction, f"rollout_{kind}_threshold")
        lower = getattr(correction, f"rollout_{kind}_threshold_lower")
        if upper is not None and lower is not None and lower > upper:
            yield error(
                f"{where}.rollout_{kind}_threshold_lower: must be at most rollout_{kind}_threshold, {upper:g}, got "
                f"{lower:g}. Lower it, or remove it."
            )
    if correction.rollout_rs is not None and correction.rollout_rs_threshold is None:
        yield error(
            f"{where}.rollout_rs_threshold: must be given with rollout_rs {correction.rollout_rs}, got null. Set 2.0 "
            "for a ratio (seq_*_k1), 0.1 for a divergence, for example."
        )
    is_ratio = correction.rollout_rs is not None and correction.rollout_rs.endswith("_k1")
    if correction.rollout_rs is not None and not is_ratio and correction.rollout_rs_threshold_lower is not None:
        yield error(
            f"{where}.rollout_rs_threshold_lower: a divergence such as {correction.rollout_rs} has no lower bound, got "
            f"{correction.rollout_rs_threshold_lower:g}. Remove it, or set rollout_rs to seq_mean_k1."
        )
    if correction.bypass_mode and correction.rollout_is is not None and rl.policy_loss != "reinforce":
        yield error(
            f"{where}.bypass_mode: policy_loss {rl.policy_loss} then already has the ratio to the engine's policy, got "
            f"rollout_is {correction.rollout_is} to weigh by it again. Set rollout_is to null, or bypass_mode to false."
        )
