"""Settings of Arbor's clients are honoured or refused by name."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from rl.config.changes import with_changes
from rl.serving.arbor.train_kwargs import TrainKwargs, read_train_kwargs
from rl.serving.arbor.wire import read_initialize
from rl.serving.errors import ApiError
from tests.unit.serving.arbor.parts import make_config

DOCS = Path(__file__).resolve().parents[4] / "docs/dspy.md"
DSPY_2_6 = {
    "model": "m", "suffix": "dspy", "num_generations": 8, "update_interval": 10, "temperature": 0.9, "beta": 0.04,
    "num_iterations": 1, "per_device_train_batch_size": 8, "learning_rate": 1e-6, "gradient_accumulation_steps": 1,
    "gradient_checkpointing": True, "lr_scheduler_type": "constant_with_warmup", "max_prompt_length": None,
    "max_completion_length": None, "bf16": False, "scale_rewards": True, "gradient_checkpointing_kwargs": None,
    "max_grad_norm": 1.0, "report_to": "none", "log_completions": True, "logging_steps": 100,
    "max_context_length": None, "lora": False,
}  # fmt: skip
ARBOR_0_2_17 = {
    "model": "m",
    "trainer_config": {
        "num_generations": 4, "temperature": 1.0, "beta": 0.0, "per_device_train_batch_size": 8, "learning_rate": 1e-6,
        "gradient_accumulation_steps": 2, "gradient_checkpointing": False, "lr_scheduler_type": "cosine",
        "warmup_steps": 10, "max_prompt_length": 512, "max_completion_length": 400,
        "soft_completion_penalty_length": 300, "mask_truncated_completions": True, "bf16": True, "scale_rewards": False,
        "gradient_checkpointing_kwargs": None, "max_grad_norm": 0.5, "report_to": "wandb", "log_completions": True,
        "logging_steps": 10, "max_seq_len": 4096, "max_steps": 500, "loss_type": "dapo", "num_training_gpus": 1,
        "lora_config": None, "weight_decay": 0.0,
    },
    "inference_config": {"model": "m", "max_seq_len": 4096},
    "gpu_config": {"type": "multi", "multi": {"num_inference_gpus": 1, "num_training_gpus": 1}},
}  # fmt: skip


def changes_of(body: dict[str, Any]) -> dict[str, Any]:
    settings = read_train_kwargs(read_initialize(body).train_kwargs, make_config())
    with_changes(make_config(), settings.changes)  # every key exists, every value is in range
    return settings.changes


def test_settings_of_dspy_2_6() -> None:
    assert changes_of(DSPY_2_6) == {
        "serve_config.batch_trigger": "client",
        "actor_config.lr": 1e-6,
        "actor_config.clip_grad": 1.0,
        "actor_config.lr_decay_style": "constant",
        "actor_config.min_lr": 0.0,
        "actor_config.recompute_granularity": "full",
        "rl_config.init_kl_coef": 0.04,
        "rl_config.epochs": 1,
        "rl_config.n_samples_per_prompt": 8,
        "rl_config.mini_batch_size": 1,
        "rl_config.norm_adv_by_std": True,
        "megatron_training.global_batch_size": 32,
        "generate_config.sampling_config.temperature": 0.9,
    }


def test_settings_of_arbor_0_2_17() -> None:
    changes = changes_of(ARBOR_0_2_17)
    expected = {
        "actor_config.lr_decay_style": "cosine",
        "actor_config.lr_warmup_fraction": 10 / 500,
        "actor_config.recompute_granularity": "none",
        "megatron_training.train_iters": 500,
        "megatron_training.bf16": True,
        "megatron_training.trackers": ["wandb"],
        "rl_config.mini_batch_size": 4,
        "rl_config.loss_agg_mode": "token-mean",
        "rl_config.norm_adv_by_std": False,
        "rl_config.overlong_filter_enable": True,
        "rl_config.overlong_buffer_enable": True,
        "rl_config.rollout_max_tokens": 400,
        "rl_config.overlong_buffer": 100,
        "generate_config.sampling_config.max_tokens": 400,
    }
    assert {key: changes.get(key) for key in expected} == expected
    settings = read_train_kwargs(read_initialize(ARBOR_0_2_17).train_kwargs, make_config())
    assert (settings.max_prompt_length, settings.max_completion_length, settings.max_context_length) == (512, 400, 4096)
    assert {note.partition(":")[0] for note in settings.notes} == {
        "log_completions", "logging_steps", "num_training_gpus", "num_inference_gpus",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("kwargs", "told"),
    [
        ({"lora": True}, "lora: LoRA is not there yet"),
        ({"lora_config": {"r": 8}}, "lora_config: LoRA is not there yet"),
        ({"fp16": True}, "fp16: training in float16"),
        ({"num_generations": 1}, "num_generations: must be at least 2"),
        ({"lr_scheduler_type": "polynomial"}, "lr_scheduler_type: unknown name 'polynomial'"),
        ({"loss_type": "sapo"}, "loss_type: unknown name 'sapo'"),
        ({"max_seq_len": 9000}, "max_seq_len: must be at most 8000, got 9000"),
        ({"soft_completion_penalty_length": 10}, "Set both"),
        ({"report_to": "comet"}, "report_to: unknown name 'comet'"),
        ({"learning_rates": 1e-6}, "unknown name 'learning_rates'. Did you mean 'learning_rate'"),
        ({"learning_rate": "1e-6"}, "train_kwargs.learning_rate: must be a valid number"),
        ({"learning_rate": 2}, "train_kwargs.learning_rate"),
        ({"temperature": 0.0}, "train_kwargs.temperature"),
        ({"num_iterations": 1.5}, "train_kwargs.num_iterations"),
        ({"num_generations": True}, "train_kwargs.num_generations"),
        ({"scale_rewards": "batch"}, "train_kwargs.scale_rewards"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(kwargs: dict[str, Any], told: str) -> None:
    with pytest.raises(ApiError, match=re.escape(told)):
        read_train_kwargs({"num_generations": 4, **kwargs}, make_config())


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ({"trainer_config": {}}, "model: must be the served model's name"),
        ({"model": "m", "trainer_config": 3}, "trainer_config: must be a JSON object"),
        ({"model": "m", "trainer_config": {}, "gpu_config": {"multi": []}}, "gpu_config.multi"),
        ({"model": "m", "trainer_config": {}, "learning_rate": 1}, "unknown name 'learning_rate'"),
        (
            {"model": "m", "trainer_config": {"max_seq_len": 1}, "inference_config": {"max_seq_len": 2}},
            "sections differ",
        ),
    ],
)
def test_malformed_sections_are_refused(body: dict[str, Any], told: str) -> None:
    with pytest.raises(ApiError, match=re.escape(told)):
        read_initialize(body)


def test_the_page_lists_every_setting() -> None:
    page = DOCS.read_text()
    for name in TrainKwargs.__dataclass_fields__:
        assert f"`{name}`" in page, name
