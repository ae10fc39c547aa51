"""Warns of keys that are given but have no effect in this combination."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from rl.config.keys import value_at
from rl.config.kinds import TrackerName
from rl.config.problems import Problem, warning
from rl.config.rules import is_built_in
from rl.config.schema import Config, Device, KlControl, LossAggregation, LrDecayStyle, MegatronTraining, RLConfig


@dataclass(slots=True, frozen=True)
class Condition:
    """Keys that have an effect only under a condition."""

    keys: tuple[str, ...]
    is_met: bool
    reason: str
    """Why they have no effect if it is not met, and what to set."""


_CORRECTION = "rl_config.rollout_correction"


def no_effect_problems(config: Config, given: frozenset[str]) -> Iterator[Problem]:
    """Warn of each key that is given, differs from its default, and is not read in this combination.

    Args:
        config: The run's configuration.
        given: Dotted paths that YAML or an override sets.
    """
    defaults = Config()
    for condition in _conditions(config):
        if condition.is_met:
            continue
        for key in condition.keys:
            value = value_at(config, key)
            if key in given and value != value_at(defaults, key):
                yield warning(f"{key}: has no effect, got {value}, because {condition.reason}")


def _conditions(config: Config) -> tuple[Condition, ...]:
    rl = config.rl_config
    return (
        *_objective_conditions(rl),
        *_batch_conditions(rl),
        *_rollout_conditions(rl),
        *_placement_conditions(config),
        *_tracker_conditions(config.megatron_training),
        Condition(
            (
                "megatron_training.profile_step",
                "megatron_training.eval_data_path",
                "megatron_training.eval_interval",
            ),
            not config.megatron_training.rollout_only,
            "rollout_only has no actor to profile and evaluates nothing. Remove it.",
        ),
        Condition(
            ("rl_config.max_staleness", "rl_config.over_sample_rate"),
            not config.megatron_training.rollout_only and config.megatron_training.replay is None,
            "rollout_only and replay have no update for rollouts to run ahead of. Remove it.",
        ),
        Condition(
            ("rl_config.max_staleness", "rl_config.over_sample_rate"),
            rl.rollout_function != "service",
            "clients lead the rollouts of `rl serve`. Set serve_config.max_staleness.",
        ),
    )


def _objective_conditions(rl: RLConfig) -> tuple[Condition, ...]:
    return (
        Condition(
            ("rl_config.clip_ratio",), not rl.clip_higher_enable, "clip_higher_enable is true. Set clip_ratio_low."
        ),
        Condition(
            ("rl_config.clip_ratio_low", "rl_config.clip_ratio_high"),
            rl.clip_higher_enable,
            "clip_higher_enable is false. Set that, or clip_ratio.",
        ),
        Condition(
            (
                "rl_config.clip_ratio",
                "rl_config.clip_higher_enable",
                "rl_config.clip_ratio_low",
                "rl_config.clip_ratio_high",
            ),
            rl.policy_loss != "reinforce",
            "policy_loss is reinforce, which clips nothing. Remove it.",
        ),
        Condition(("rl_config.clip_ratio_c",), rl.policy_loss == "clip", "policy_loss is not clip. Remove it."),
        Condition(
            ("rl_config.norm_adv_by_std",),
            rl.adv_estimator == "group_norm",
            "adv_estimator is not group_norm. Remove it.",
        ),
        Condition(
            ("rl_config.turn_reward_discount",),
            rl.turn_credit_coef > 0,
            "turn_credit_coef is 0. Set that above 0.",
        ),
        Condition(
            ("rl_config.turn_credit_coef",),
            rl.multi_turn_enable,
            "multi_turn_enable is false, so a trajectory is one turn. Set that.",
        ),
        Condition(("rl_config.token_level_loss",), rl.loss_agg_mode is None, "loss_agg_mode is set. Remove it."),
        Condition(
            ("rl_config.loss_scale_factor",),
            rl.loss_agg_mode is LossAggregation.SEQ_MEAN_TOKEN_SUM_NORM,
            "loss_agg_mode is not seq-mean-token-sum-norm. Set that.",
        ),
        Condition(
            ("rl_config.kl_penalty", "rl_config.use_kl_in_reward", "rl_config.kl_ctrl_type"),
            rl.init_kl_coef > 0,
            "init_kl_coef is 0. Set that above 0.",
        ),
        Condition(
            ("rl_config.kl_target", "rl_config.kl_horizon"),
            rl.kl_ctrl_type is KlControl.ADAPTIVE,
            "kl_ctrl_type is fixed. Set adaptive.",
        ),
    )


def _batch_conditions(rl: RLConfig) -> tuple[Condition, ...]:
    return (
        Condition(
            (f"{_CORRECTION}.rollout_is_threshold", f"{_CORRECTION}.rollout_is_threshold_lower"),
            rl.rollout_correction.rollout_is is not None,
            "rollout_is is null. Set token or sequence.",
        ),
        Condition(
            (f"{_CORRECTION}.rollout_rs_threshold", f"{_CORRECTION}.rollout_rs_threshold_lower"),
            rl.rollout_correction.rollout_rs is not None,
            "rollout_rs is null. Set that.",
        ),
        Condition(
            ("rl_config.filter_groups_metric", "rl_config.filter_groups_max_batches"),
            rl.filter_groups_enable,
            "filter_groups_enable is false. Set that.",
        ),
        Condition(
            ("rl_config.staleness_strategy", "rl_config.partial_rollout"),
            rl.runs_ahead,
            "max_staleness is 0, so each step waits for all rollouts. Set that above 0.",
        ),
        Condition(
            (
                "rl_config.overlong_buffer",
                "rl_config.overlong_buffer_penalty_factor",
                "rl_config.rollout_max_tokens",
            ),
            rl.overlong_buffer_enable,
            "overlong_buffer_enable is false. Set that.",
        ),
    )


def _rollout_conditions(rl: RLConfig) -> tuple[Condition, ...]:
    return (
        Condition(
            (
                "rl_config.tool_config_path",
                "rl_config.max_tool_calls",
                "rl_config.max_parallel_calls",
                "rl_config.max_tool_response_length",
                "rl_config.tool_response_truncate_side",
                "rl_config.tool_parser_format",
                "rl_config.final_answer_reserve",
            ),
            rl.multi_turn_enable,
            "multi_turn_enable is false. Set that.",
        ),
        Condition(
            ("rl_config.environment_kwargs",), not is_built_in(rl, "environment"), "environment is tools. Set that."
        ),
        Condition(
            ("rl_config.rollout_function_kwargs",),
            not is_built_in(rl, "rollout_function"),
            "rollout_function is agent_loop. Set that.",
        ),
        Condition(
            (
                "rl_config.max_tool_calls",
                "rl_config.max_parallel_calls",
                "rl_config.max_tool_response_length",
                "rl_config.tool_response_truncate_side",
            ),
            is_built_in(rl, "agent_function"),
            "an agent_function runs its own tools. Remove it.",
        ),
        Condition(
            ("rl_config.agent_function_kwargs", "rl_config.num_agent_processes"),
            not is_built_in(rl, "agent_function"),
            "agent_function is not set. Set that.",
        ),
        Condition(
            ("rl_config.final_answer_reserve",),
            is_built_in(rl, "rollout_function") and is_built_in(rl, "agent_function"),
            "a rollout_function or an agent_function leads the trajectories. Remove it.",
        ),
    )


def _tracker_conditions(training: MegatronTraining) -> tuple[Condition, ...]:
    named = set(training.trackers)
    return (
        Condition(
            ("megatron_training.tracker_project", "megatron_training.tracker_run_name"),
            bool(named - {TrackerName.TENSORBOARD}),
            "trackers names none with projects. Add wandb, mlflow, swanlab or trackio.",
        ),
        Condition(
            ("megatron_training.trackers_offline",),
            bool(named & {TrackerName.WANDB, TrackerName.SWANLAB}),
            "trackers names neither wandb nor swanlab. Remove it.",
        ),
        Condition(("megatron_training.tracker_trajectories",), bool(named), "trackers is empty. Name one."),
        Condition(
            ("megatron_training.prometheus_host",),
            training.prometheus_port is not None,
            "prometheus_port is not set. Set that.",
        ),
    )


def _placement_conditions(config: Config) -> tuple[Condition, ...]:
    rl, training, actor = config.rl_config, config.megatron_training, config.actor_config
    return (
        Condition(
            ("rl_config.rollout_resource.num_devices",),
            training.device is not Device.CUDA or not rl.use_integrated_worker,
            "use_integrated_worker gives engines the devices of actor_resource. Set that to false.",
        ),
        Condition(
            (
                "generate_config.offload_train_param",
                "generate_config.offload_train_optimizer",
                "generate_config.offload_train_grad",
            ),
            rl.use_integrated_worker,
            "actor and engines have devices of their own. Remove it.",
        ),
        Condition(
            ("generate_config.gpu_memory_utilization",),
            training.device is not Device.CPU,
            "megatron_training.device is cpu. Set kv_cache_memory_gb.",
        ),
        Condition(
            ("generate_config.kv_cache_memory_gb",),
            training.device is not Device.CUDA,
            "megatron_training.device is cuda. Set gpu_memory_utilization.",
        ),
        Condition(
            ("generate_config.eval_sampling_config.top_p", "generate_config.eval_sampling_config.top_k"),
            config.generate_config.eval_sampling_config.temperature > 0,
            "eval_sampling_config.temperature is 0, which takes the likeliest token. Raise that.",
        ),
        Condition(
            ("actor_config.min_lr",),
            actor.lr_decay_style is not LrDecayStyle.CONSTANT,
            "lr_decay_style is constant. Set linear or cosine.",
        ),
        Condition(
            ("actor_config.num_layers_per_virtual_pipeline_stage",),
            actor.pipeline_model_parallel_size > 1,
            "pipeline_model_parallel_size is 1. Remove it.",
        ),
        Condition(
            ("megatron_training.sequence_parallel",),
            actor.tensor_model_parallel_size > 1,
            "tensor_model_parallel_size is 1. Remove it.",
        ),
    )
