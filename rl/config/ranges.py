"""Ranges of single fields."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from rl.config.problems import Problem, error
from rl.config.schema import Config


@dataclass(slots=True, frozen=True)
class Range:
    """What a number may be."""

    minimum: float = -math.inf
    maximum: float = math.inf
    is_open_below: bool = False
    """The minimum itself is not allowed."""

    def problem(self, where: str, value: float) -> Problem | None:
        """Say what is wrong with a value, if anything."""
        if math.isfinite(value) and self._is_above_minimum(value) and value <= self.maximum:
            return None
        return error(f"{where}: must be {self}, got {value}. Correct the value.")

    def __str__(self) -> str:
        low = f"above {self.minimum:g}" if self.is_open_below else f"at least {self.minimum:g}"
        if not math.isfinite(self.maximum):
            return low
        return f"{low} and at most {self.maximum:g}"

    def _is_above_minimum(self, value: float) -> bool:
        return value > self.minimum if self.is_open_below else value >= self.minimum


_COUNT = Range(minimum=1)
_NOT_NEGATIVE = Range(minimum=0)
_POSITIVE = Range(minimum=0, is_open_below=True)
_SHARE = Range(minimum=0, maximum=1)
_POSITIVE_SHARE = Range(minimum=0, maximum=1, is_open_below=True)
_BETA = Range(minimum=0, maximum=0.999999)

RANGES: dict[str, Range] = {
    "megatron_training.global_batch_size": _COUNT,
    "megatron_training.train_iters": _NOT_NEGATIVE,
    "megatron_training.total_epochs": _COUNT,
    "megatron_training.seq_length": Range(minimum=2),
    "megatron_training.save_interval": _COUNT,
    "megatron_training.max_checkpoints": _COUNT,
    "megatron_training.test_freq": _NOT_NEGATIVE,
    "megatron_training.seed": _NOT_NEGATIVE,
    "actor_config.tensor_model_parallel_size": _COUNT,
    "actor_config.pipeline_model_parallel_size": _COUNT,
    "actor_config.num_layers_per_virtual_pipeline_stage": _COUNT,
    "actor_config.lr": _POSITIVE,
    "actor_config.min_lr": _NOT_NEGATIVE,
    "actor_config.lr_warmup_fraction": _SHARE,
    "actor_config.weight_decay": _NOT_NEGATIVE,
    "actor_config.clip_grad": _NOT_NEGATIVE,
    "actor_config.adam_beta1": _BETA,
    "actor_config.adam_beta2": _BETA,
    "actor_config.adam_eps": _POSITIVE,
    "rl_config.n_samples_per_prompt": _COUNT,
    "rl_config.mini_batch_size": _COUNT,
    "rl_config.epochs": _COUNT,
    "rl_config.max_prompt_length": _COUNT,
    "rl_config.max_packing_token_size": Range(minimum=2),
    "rl_config.clip_ratio": _POSITIVE_SHARE,
    "rl_config.clip_ratio_low": _POSITIVE_SHARE,
    "rl_config.clip_ratio_high": _POSITIVE,
    "rl_config.clip_ratio_c": Range(minimum=1),
    "rl_config.turn_credit_coef": _NOT_NEGATIVE,
    "rl_config.turn_reward_discount": _SHARE,
    "rl_config.loss_scale_factor": _POSITIVE,
    "rl_config.kl_target": _POSITIVE,
    "rl_config.kl_horizon": _POSITIVE,
    "rl_config.entropy_coeff": _NOT_NEGATIVE,
    "rl_config.init_kl_coef": _NOT_NEGATIVE,
    "rl_config.rollout_correction.rollout_is_threshold": _POSITIVE,
    "rl_config.rollout_correction.rollout_is_threshold_lower": _POSITIVE,
    "rl_config.rollout_correction.rollout_rs_threshold": _POSITIVE,
    "rl_config.rollout_correction.rollout_rs_threshold_lower": _POSITIVE,
    "rl_config.max_skipped_steps": _COUNT,
    "rl_config.overlong_buffer": _NOT_NEGATIVE,
    "rl_config.overlong_buffer_penalty_factor": _NOT_NEGATIVE,
    "rl_config.verifier_timeout": _POSITIVE,
    "rl_config.verifier_parallel": _COUNT,
    "rl_config.max_tool_calls": _NOT_NEGATIVE,
    "rl_config.max_parallel_calls": _COUNT,
    "rl_config.max_total_response_length": _COUNT,
    "rl_config.max_tool_response_length": _COUNT,
    "rl_config.final_answer_reserve": _NOT_NEGATIVE,
    "rl_config.trajectory_timeout": _POSITIVE,
    "rl_config.max_tool_unavailable_share": _SHARE,
    "rl_config.actor_resource.num_devices": _COUNT,
    "rl_config.actor_resource.num_cpus": _COUNT,
    "rl_config.rollout_resource.num_devices": _COUNT,
    "rl_config.rollout_resource.num_cpus": _COUNT,
    "generate_config.infer_tensor_parallel_size": _COUNT,
    "generate_config.max_model_len": Range(minimum=2),
    "generate_config.max_num_seqs": _COUNT,
    "generate_config.max_num_batched_tokens": _COUNT,
    "generate_config.gpu_memory_utilization": _POSITIVE_SHARE,
    "generate_config.kv_cache_memory_gb": _POSITIVE,
    "generate_config.sampling_config.temperature": _POSITIVE,
    "generate_config.sampling_config.max_tokens": _COUNT,
    "generate_config.eval_sampling_config.temperature": _NOT_NEGATIVE,
    "generate_config.eval_sampling_config.top_p": _POSITIVE_SHARE,
    "generate_config.eval_sampling_config.num_samples": _COUNT,
}
"""By dotted path; a field that may be null is then not checked."""

CHOICES: dict[str, tuple[str, ...]] = {
    "actor_config.recompute_granularity": ("none", "full"),
    "generate_config.dtype": ("bfloat16", "float32"),
}
"""Text fields with few values."""


def range_problems(config: Config) -> Iterator[Problem]:
    """Check each field by itself."""
    for path, allowed in RANGES.items():
        value = value_at(config, path)
        if value is not None and (problem := allowed.problem(path, value)):
            yield problem
    for path, choices in CHOICES.items():
        if (value := value_at(config, path)) not in choices:
            yield error(f"{path}: must be one of {', '.join(choices)}, got '{value}'. Choose one of them.")


def value_at(config: Config, path: str) -> Any:
    """The value of a dotted path."""
    node: Any = config
    for part in path.split("."):
        node = getattr(node, part)
    return node
