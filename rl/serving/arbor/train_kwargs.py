"""`train_kwargs` of Arbor's clients as changes of the configuration. None is dropped in silence.

docs/dspy.md lists what becomes of each.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from rl.config.schema import Config
from rl.errors import first_problem, unknown_name
from rl.serving.errors import ApiError, bad_request

_Count = Annotated[int, Field(ge=1, le=1_000_000)]
_Tokens = Annotated[int, Field(ge=1, le=10_000_000)]
_TRACKERS = ("tensorboard", "wandb", "mlflow", "swanlab", "trackio")
_SCHEDULES = {"constant": "constant", "constant_with_warmup": "constant", "linear": "linear", "cosine": "cosine"}
_AGGREGATIONS = {
    "grpo": "seq-mean-token-mean",
    "bnpo": "token-mean",
    "dapo": "token-mean",
    "dr_grpo": "seq-mean-token-sum-norm",
}
_WITHOUT_EFFECT = {
    "log_completions": "every trajectory is recorded",
    "logging_steps": "every step is logged",
    "gradient_checkpointing_kwargs": "there is one way of recomputation",
    "update_interval": "new weights are served after every update",
    "num_training_gpus": "the service's configuration places the actor",
    "num_inference_gpus": "the service's configuration places the engines",
}
"""What has no effect here, and why."""
_RENAMED = {
    "learning_rate": "actor_config.lr",
    "max_grad_norm": "actor_config.clip_grad",
    "weight_decay": "actor_config.weight_decay",
    "beta": "rl_config.init_kl_coef",
    "num_iterations": "rl_config.epochs",
    "num_generations": "rl_config.n_samples_per_prompt",
    "temperature": "generate_config.sampling_config.temperature",
    "max_steps": "megatron_training.train_iters",
    "max_completion_length": "generate_config.sampling_config.max_tokens",
    "mask_truncated_completions": "rl_config.overlong_filter_enable",
}
"""What is a key of the configuration under another name."""


@dataclass(slots=True)
class TrainKwargs:
    """Everything that clients can send. A field that is None was not given."""

    num_generations: Annotated[int, Field(ge=1, le=1024)]
    learning_rate: Annotated[float, Field(gt=0, le=1)] | None = None
    lr_scheduler_type: str | None = None
    warmup_steps: Annotated[int, Field(ge=0, le=100_000_000)] | None = None
    max_steps: Annotated[int, Field(ge=1, le=100_000_000)] | None = None
    max_grad_norm: Annotated[float, Field(ge=0, le=1_000_000)] | None = None
    weight_decay: Annotated[float, Field(ge=0, le=10)] | None = None
    temperature: Annotated[float, Field(gt=0, le=100)] | None = None
    beta: Annotated[float, Field(ge=0, le=1000)] | None = None
    num_iterations: _Count | None = None
    loss_type: str | None = None
    scale_rewards: bool | Literal["group", "none"] | None = None
    per_device_train_batch_size: _Count | None = None
    gradient_accumulation_steps: _Count | None = None
    max_prompt_length: _Tokens | None = None
    max_completion_length: _Tokens | None = None
    max_context_length: _Tokens | None = None
    max_seq_len: _Tokens | None = None
    soft_completion_penalty_length: _Tokens | None = None
    mask_truncated_completions: bool | None = None
    gradient_checkpointing: bool | None = None
    bf16: bool | None = None
    fp16: bool | None = None
    lora: bool | None = None
    lora_config: Any = None
    report_to: str | list[str] | None = None
    log_completions: bool | None = None
    logging_steps: _Count | None = None
    gradient_checkpointing_kwargs: dict[str, Any] | None = None
    update_interval: _Count | None = None
    num_training_gpus: _Count | None = None
    num_inference_gpus: _Count | None = None
    __pydantic_config__ = ConfigDict(strict=True, allow_inf_nan=False)


@dataclass(slots=True, frozen=True)
class Settings:
    """What a client's settings become."""

    changes: dict[str, Any]
    """Values by dotted key of the configuration."""
    notes: list[str]
    """What has no effect, and why."""
    num_generations: int
    max_prompt_length: int | None = None
    """Samples with longer prompts are not trained on, tokens."""
    max_completion_length: int | None = None
    """The same for completions."""
    max_context_length: int | None = None
    """The same for both together."""


def read_train_kwargs(given: Mapping[str, Any], config: Config) -> Settings:
    """Turn a client's settings into changes of the configuration.

    Args:
        given: By their names in Arbor's protocol.
        config: The service's.

    Raises:
        ApiError: One is unknown, wrong, or cannot be honoured. Names it, and says what to do.
    """
    kwargs = _checked(given)
    _refuse(kwargs, config)
    changes: dict[str, Any] = {"serve_config.batch_trigger": "client"}
    for name, key in _RENAMED.items():
        if (value := getattr(kwargs, name)) is not None:
            changes[key] = value
    changes |= _schedule(kwargs, config) | _batch(kwargs, config) | _objective(kwargs) | _memory(kwargs)
    limits = [n for n in (kwargs.max_context_length, kwargs.max_seq_len) if n is not None]
    return Settings(
        changes,
        _notes(kwargs, config),
        kwargs.num_generations,
        kwargs.max_prompt_length,
        kwargs.max_completion_length,
        min(limits, default=None),
    )


_KWARGS = TypeAdapter(TrainKwargs)


def _checked(given: Mapping[str, Any]) -> TrainKwargs:
    known = list(TrainKwargs.__dataclass_fields__)
    for key in given:
        if key not in known:
            raise ApiError(400, unknown_name("train_kwargs", key, known), param=key)
    try:
        return _KWARGS.validate_json(json.dumps({key: value for key, value in given.items() if value is not None}))
    except ValidationError as error:
        place = error.errors()[0]["loc"]
        raise ApiError(400, f"train_kwargs.{first_problem(error)}.", param=str(place[0]) if place else None) from None


def _refuse(kwargs: TrainKwargs, config: Config) -> None:
    """Refuse what cannot be honoured."""
    if kwargs.num_generations < 2:
        raise bad_request(
            "num_generations",
            "must be at least 2, got 1: the samples of a group are compared with each other. Raise "
            "num_rollouts_per_grpo_step.",
        )
    if kwargs.lora or kwargs.lora_config:
        name = "lora" if kwargs.lora else "lora_config"
        raise bad_request(name, "LoRA is not there yet. Remove it: the whole model is trained.")
    if kwargs.fp16:
        raise bad_request("fp16", "training in float16 is not there. Remove it, or set bf16.")
    if kwargs.lr_scheduler_type not in (None, *_SCHEDULES):
        raise ApiError(
            400,
            unknown_name("lr_scheduler_type", kwargs.lr_scheduler_type or "", _SCHEDULES),
            param="lr_scheduler_type",
        )
    if kwargs.loss_type not in (None, *_AGGREGATIONS):
        raise ApiError(400, unknown_name("loss_type", kwargs.loss_type or "", _AGGREGATIONS), param="loss_type")
    longest = config.generate_config.max_model_len
    for name in ("max_context_length", "max_seq_len", "max_completion_length"):
        value = getattr(kwargs, name)
        if value is not None and value > longest:
            raise bad_request(
                name,
                f"must be at most {longest}, got {value}. Lower it, or start the service with a larger "
                "generate_config.max_model_len.",
            )
    _check_penalty(kwargs)


def _check_penalty(kwargs: TrainKwargs) -> None:
    begin, end = kwargs.soft_completion_penalty_length, kwargs.max_completion_length
    if begin is not None and (end is None or begin >= end):
        raise bad_request(
            "soft_completion_penalty_length",
            f"must be less than max_completion_length, where the penalty is full, got {begin} and {end}. Set both.",
        )


def _schedule(kwargs: TrainKwargs, config: Config) -> dict[str, Any]:
    changes: dict[str, Any] = {}
    if kwargs.lr_scheduler_type is not None:
        changes["actor_config.lr_decay_style"] = _SCHEDULES[kwargs.lr_scheduler_type]
        changes["actor_config.min_lr"] = 0.0
    if kwargs.warmup_steps is not None:
        num_steps = kwargs.max_steps or config.megatron_training.train_iters
        share = kwargs.warmup_steps / max(1, num_steps)
        changes["actor_config.lr_warmup_fraction"] = min(1.0, share) if kwargs.lr_scheduler_type != "constant" else 0.0
    return changes


def _batch(kwargs: TrainKwargs, config: Config) -> dict[str, Any]:
    """An optimizer step has per_device_train_batch_size x gradient_accumulation_steps samples, in whole groups."""
    if kwargs.per_device_train_batch_size is None:
        return {}
    samples = kwargs.per_device_train_batch_size * (kwargs.gradient_accumulation_steps or 1)
    groups = max(1, samples // kwargs.num_generations)
    largest = max(groups, config.megatron_training.global_batch_size)
    return {"rl_config.mini_batch_size": groups, "megatron_training.global_batch_size": largest}


def _objective(kwargs: TrainKwargs) -> dict[str, Any]:
    changes: dict[str, Any] = {}
    if kwargs.loss_type is not None:
        changes["rl_config.loss_agg_mode"] = _AGGREGATIONS[kwargs.loss_type]
    if kwargs.scale_rewards is not None:
        changes["rl_config.norm_adv_by_std"] = kwargs.scale_rewards in (True, "group")
    if kwargs.soft_completion_penalty_length is not None and kwargs.max_completion_length is not None:
        changes |= {
            "rl_config.overlong_buffer_enable": True,
            "rl_config.rollout_max_tokens": kwargs.max_completion_length,
            "rl_config.overlong_buffer": kwargs.max_completion_length - kwargs.soft_completion_penalty_length,
            "rl_config.overlong_buffer_penalty_factor": 1.0,
        }
    return changes


def _memory(kwargs: TrainKwargs) -> dict[str, Any]:
    changes: dict[str, Any] = {}
    if kwargs.gradient_checkpointing is not None:
        changes["actor_config.recompute_granularity"] = "full" if kwargs.gradient_checkpointing else "none"
    if kwargs.bf16:
        changes["megatron_training.bf16"] = True
    if trackers := _trackers(kwargs.report_to):
        changes["megatron_training.trackers"] = trackers
    return changes


def _trackers(given: str | list[str] | None) -> list[str]:
    names = [given] if isinstance(given, str) else given or []
    names = [name for name in names if name != "none"]
    for name in names:
        if name not in _TRACKERS:
            raise ApiError(400, unknown_name("report_to", name, [*_TRACKERS, "none"]), param="report_to")
    return names


def _notes(kwargs: TrainKwargs, config: Config) -> list[str]:
    notes = [f"{name}: {why}" for name, why in _WITHOUT_EFFECT.items() if getattr(kwargs, name) is not None]
    if kwargs.gradient_accumulation_steps is not None and kwargs.per_device_train_batch_size is None:
        notes.append(
            "gradient_accumulation_steps: without per_device_train_batch_size all groups are one optimizer step"
        )
    if kwargs.bf16 is False and config.megatron_training.bf16:
        notes.append("bf16: false is the clients' default, so the service's megatron_training.bf16 stays true")
    if kwargs.report_to == "none":
        notes.append("report_to: the service's trackers stay")
    if kwargs.lr_scheduler_type == "constant" and kwargs.warmup_steps:
        notes.append("warmup_steps: the schedule 'constant' has none; 'constant_with_warmup' has")
    return notes
