"""Ranges of single fields."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from rl.config.build import key_paths
from rl.config.problems import Problem, error
from rl.config.schema import Config, DatasetConfig


@dataclass(slots=True, frozen=True)
class Range:
    """What a number may be: bounds that no sane run leaves."""

    minimum: float
    maximum: float
    is_open_below: bool = False
    """The minimum itself is not allowed."""

    def problem(self, where: str, value: float) -> Problem | None:
        """Say what is wrong with a value, if anything."""
        is_high_enough = value > self.minimum if self.is_open_below else value >= self.minimum
        if is_high_enough and value <= self.maximum:
            return None
        wanted = f"at most {_number(self.maximum)}" if value > self.maximum else self._low()
        return error(f"{where}: must be {wanted}, got {value!s:.60}. Correct the value.", where)

    def __str__(self) -> str:
        return f"{self._low()} and at most {_number(self.maximum)}"

    def _low(self) -> str:
        return f"{'above' if self.is_open_below else 'at least'} {_number(self.minimum)}"


def _number(value: float) -> str:
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:g}"


_MILLION, _TOKENS = 1_000_000, 10_000_000
_COUNT = Range(1, _MILLION)
_STEPS = Range(1, 100 * _MILLION)
_STEPS_OR_NONE = Range(0, 100 * _MILLION)
_RANKS = Range(1, 10_000)
_LENGTH = Range(1, _TOKENS)
_LENGTH_OR_NONE = Range(0, _TOKENS)
_WEIGHT = Range(0, 1000)
_BOUND = Range(0, _MILLION, is_open_below=True)
_SECONDS = Range(0, 7 * 86_400, is_open_below=True)
_SHARE = Range(0, 1)
_POSITIVE_SHARE = Range(0, 1, is_open_below=True)
_BETA = Range(0, 0.999999)
_TOP_K = Range(-1, _TOKENS)
_SEED = Range(0, 2**32 - 1)

RANGES: dict[str, Range] = {
    "model.num_hidden_layers": Range(0, 10_000),
    "model.hidden_size": Range(0, _MILLION),
    "model.intermediate_size": Range(0, _TOKENS),
    "model.num_attention_heads": Range(0, 100_000),
    "model.num_key_value_heads": Range(0, 100_000),
    "model.head_dim": Range(1, 100_000),
    "model.vocab_size": Range(0, 100 * _MILLION),
    "model.max_position_embeddings": Range(0, 1000 * _MILLION),
    "megatron_training.global_batch_size": _COUNT,
    "megatron_training.train_iters": _STEPS_OR_NONE,
    "megatron_training.total_epochs": _COUNT,
    "megatron_training.seq_length": Range(2, _TOKENS),
    "megatron_training.save_interval": _STEPS,
    "megatron_training.max_checkpoints": _COUNT,
    "megatron_training.test_freq": _STEPS_OR_NONE,
    "megatron_training.seed": _SEED,
    "actor_config.tensor_model_parallel_size": _RANKS,
    "actor_config.pipeline_model_parallel_size": _RANKS,
    "actor_config.num_layers_per_virtual_pipeline_stage": _RANKS,
    "actor_config.lr": _POSITIVE_SHARE,
    "actor_config.min_lr": _SHARE,
    "actor_config.lr_warmup_fraction": _SHARE,
    "actor_config.weight_decay": Range(0, 10),
    "actor_config.clip_grad": Range(0, _MILLION),
    "actor_config.adam_beta1": _BETA,
    "actor_config.adam_beta2": _BETA,
    "actor_config.adam_eps": _POSITIVE_SHARE,
    "rl_config.n_samples_per_prompt": _COUNT,
    "rl_config.mini_batch_size": _COUNT,
    "rl_config.epochs": _COUNT,
    "rl_config.max_prompt_length": _LENGTH,
    "rl_config.max_packing_token_size": Range(2, _TOKENS),
    "rl_config.clip_ratio": _POSITIVE_SHARE,
    "rl_config.clip_ratio_low": _POSITIVE_SHARE,
    "rl_config.clip_ratio_high": _BOUND,
    "rl_config.clip_ratio_c": Range(1, _MILLION),
    "rl_config.turn_credit_coef": _WEIGHT,
    "rl_config.turn_reward_discount": _SHARE,
    "rl_config.loss_scale_factor": Range(0, 1000 * _MILLION, is_open_below=True),
    "rl_config.kl_target": Range(0, 1000, is_open_below=True),
    "rl_config.kl_horizon": Range(0, 1000 * _MILLION, is_open_below=True),
    "rl_config.entropy_coeff": _WEIGHT,
    "rl_config.init_kl_coef": _WEIGHT,
    "rl_config.rollout_correction.rollout_is_threshold": _BOUND,
    "rl_config.rollout_correction.rollout_is_threshold_lower": _BOUND,
    "rl_config.rollout_correction.rollout_rs_threshold": _BOUND,
    "rl_config.rollout_correction.rollout_rs_threshold_lower": _BOUND,
    "rl_config.max_skipped_steps": _STEPS,
    "rl_config.filter_groups_max_batches": Range(-_MILLION, _MILLION),
    "rl_config.rollout_max_tokens": _LENGTH,
    "rl_config.overlong_buffer": _LENGTH_OR_NONE,
    "rl_config.overlong_buffer_penalty_factor": _WEIGHT,
    "rl_config.verifier_weight": Range(-_MILLION, _MILLION),
    "rl_config.verifier_timeout": _SECONDS,
    "rl_config.verifier_parallel": _RANKS,
    "rl_config.max_tool_calls": Range(0, _MILLION),
    "rl_config.max_parallel_calls": _COUNT,
    "rl_config.max_total_response_length": _LENGTH,
    "rl_config.max_tool_response_length": _LENGTH,
    "rl_config.final_answer_reserve": _LENGTH_OR_NONE,
    "rl_config.trajectory_timeout": _SECONDS,
    "rl_config.max_tool_unavailable_share": _SHARE,
    "rl_config.actor_resource.num_devices": Range(1, 100_000),
    "rl_config.actor_resource.num_cpus": _RANKS,
    "rl_config.rollout_resource.num_devices": Range(1, 100_000),
    "rl_config.rollout_resource.num_cpus": _RANKS,
    "generate_config.infer_tensor_parallel_size": _RANKS,
    "generate_config.max_model_len": Range(2, _TOKENS),
    "generate_config.max_num_seqs": _COUNT,
    "generate_config.max_num_batched_tokens": Range(1, 1000 * _MILLION),
    "generate_config.gpu_memory_utilization": _POSITIVE_SHARE,
    "generate_config.kv_cache_memory_gb": Range(0, 100_000, is_open_below=True),
    "generate_config.sampling_config.temperature": Range(0, 100, is_open_below=True),
    "generate_config.sampling_config.top_p": _POSITIVE_SHARE,
    "generate_config.sampling_config.top_k": _TOP_K,
    "generate_config.sampling_config.min_p": _SHARE,
    "generate_config.sampling_config.logprobs": Range(0, 1000),
    "generate_config.sampling_config.max_tokens": _LENGTH,
    "generate_config.eval_sampling_config.temperature": Range(0, 100),
    "generate_config.eval_sampling_config.top_p": _POSITIVE_SHARE,
    "generate_config.eval_sampling_config.top_k": _TOP_K,
    "generate_config.eval_sampling_config.num_samples": _COUNT,
    "seed": _SEED,
    "test_size": Range(0, 1000 * _MILLION),
}
"""By dotted path, of a run's configuration and of a dataset's; a field that may be null is then not checked, of a list
each number is."""

CHOICES: dict[str, tuple[str, ...]] = {
    "actor_config.recompute_granularity": ("none", "full"),
    "generate_config.dtype": ("bfloat16", "float32"),
}
"""Text fields with few values."""


def range_problems(config: Config | DatasetConfig) -> Iterator[Problem]:
    """Check each field by itself."""
    for path in key_paths(Config if isinstance(config, Config) else DatasetConfig):
        value = value_at(config, path)
        if path in RANGES:
            numbers = value if isinstance(value, list) else [value]
            found = (RANGES[path].problem(path, number) for number in numbers if number is not None)
            yield from filter(None, found)
        elif path in CHOICES and value not in CHOICES[path]:
            choices = ", ".join(CHOICES[path])
            yield error(f"{path}: must be one of {choices}, got '{value}'. Choose one of them.", path)


def value_at(config: Any, path: str) -> Any:
    """The value of a dotted path."""
    node: Any = config
    for part in path.split("."):
        node = getattr(node, part)
    return node


def set_value(config: Any, path: str, value: Any) -> None:
    """Give the key of a dotted path a value."""
    section, _, key = path.rpartition(".")
    setattr(value_at(config, section) if section else config, key, value)
