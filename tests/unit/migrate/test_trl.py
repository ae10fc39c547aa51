"""TRL's GRPOConfig by facts of its arguments; numbers are worked out by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.unit.migrate.conversion import Conversion, convert


@pytest.fixture
def nothing_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder without models, data and configurations."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def convert_arguments(folder: Path, **arguments: Any) -> Conversion:
    shared = {"model_name_or_path": "Qwen/Qwen2.5-1.5B-Instruct", "dataset_name": "trl-lib/DeepMath-103K"}
    return convert(folder, "grpo.json", json.dumps(shared | {"num_generations": 8} | arguments))


def test_defaults_of_trl_are_written_out(nothing_here: Path) -> None:
    found = convert_arguments(nothing_here, num_processes=1)
    assert found.errors == []
    assert found.has(
        {
            "megatron_training.global_batch_size": 1,  # 8 completions / 8 of a prompt
            "rl_config.mini_batch_size": 1,
            "rl_config.n_samples_per_prompt": 8,
            "megatron_training.total_epochs": 3,
            "megatron_training.seed": 42,
            "megatron_training.trackers": [],
            "megatron_training.save_interval": 500,
            "actor_config.lr": 1e-6,
            "actor_config.lr_decay_style": "linear",
            "actor_config.weight_decay": 0.0,
            "actor_config.adam_beta2": 0.999,
            "actor_config.recompute_granularity": "full",
            "rl_config.init_kl_coef": 0.0,
            "rl_config.clip_ratio": 0.2,
            "rl_config.token_level_loss": True,
            "rl_config.norm_adv_by_std": True,
            "rl_config.rollout_correction.rollout_is": "sequence",
            "rl_config.rollout_correction.rollout_is_threshold": 3.0,
            "rl_config.rollout_correction.rollout_is_threshold_lower": 1e-9,
            "generate_config.sampling_config.temperature": 1.0,
            "generate_config.sampling_config.max_tokens": 512,
            "generate_config.gpu_memory_utilization": 0.3,
        }
    )


def test_recipe_with_vllm_and_cosine_schedule(nothing_here: Path) -> None:
    """The arguments of a recipe of open-r1, as `trl grpo --config` reads them."""
    recipe = {
        "model_name_or_path": "Qwen/Qwen2.5-1.5B-Instruct",
        "model_revision": "main",
        "torch_dtype": "bfloat16",
        "attn_implementation": "flash_attention_2",
        "dataset_name": "open-r1/OpenR1-Math-220k",
        "bf16": True,
        "use_vllm": True,
        "do_eval": False,
        "gradient_accumulation_steps": 4,
        "gradient_checkpointing": True,
        "gradient_checkpointing_kwargs": {"use_reentrant": False},
        "learning_rate": 2e-5,
        "log_completions": True,
        "logging_steps": 1,
        "logging_strategy": "steps",
        "lr_scheduler_type": "cosine_with_min_lr",
        "lr_scheduler_kwargs": {"min_lr_rate": 0.1},
        "max_prompt_length": 512,
        "max_completion_length": 2048,
        "max_steps": -1,
        "num_generations": 16,
        "num_train_epochs": 1,
        "num_processes": 7,
        "output_dir": "data/grpo",
        "per_device_eval_batch_size": 16,
        "per_device_train_batch_size": 16,
        "report_to": ["wandb"],
        "reward_funcs": ["accuracy_reward", "my_rewards.tags.count_tags"],
        "reward_weights": [1.0, 0.2],
        "save_strategy": "no",
        "save_total_limit": 1,
        "seed": 7,
        "warmup_ratio": 0.1,
    }
    (nothing_here / "my_rewards").mkdir()
    (nothing_here / "my_rewards/tags.py").write_text(
        "def count_tags(completions, **kwargs):\n    return [1.0 for _ in completions]\n"
    )
    found = convert(nothing_here, "recipe.yaml", yaml.safe_dump(recipe))
    assert found.has(
        {
            "megatron_training.global_batch_size": 28,  # 16 x 4 x 7 = 448 completions / 16
            "rl_config.mini_batch_size": 28,
            "rl_config.actor_resource.num_devices": 7,
            "rl_config.max_prompt_length": 512,
            "generate_config.sampling_config.max_tokens": 2048,
            "actor_config.lr": 2e-5,
            "actor_config.min_lr": pytest.approx(2e-6),
            "actor_config.lr_decay_style": "cosine",
            "actor_config.lr_warmup_fraction": 0.1,
            "megatron_training.total_epochs": 1,
            "megatron_training.save_interval": 100_000_000,
            "megatron_training.max_checkpoints": 1,
            "megatron_training.trackers": ["wandb"],
            "megatron_training.seed": 7,
            "rl_config.verifier_weight": [1.0, 0.2],
        }
    )
    assert found.config.rl_config.verifier_function == ["math_acc", "my_rewards.tags:count_tags"]
    assert "./dataset/OpenR1-Math-220k.parquet  # open-r1/OpenR1-Math-220k, written by `rl preprocess`" in found.text
    assert found.part("needs a hand") == ""


def test_dr_grpo_off_policy_steps(nothing_here: Path) -> None:
    found = convert_arguments(
        nothing_here,
        num_processes=4,
        per_device_train_batch_size=8,
        gradient_accumulation_steps=2,
        steps_per_generation=8,
        num_iterations=2,
        max_steps=800,
        save_steps=80,
        warmup_steps=40,
        loss_type="dr_grpo",
        scale_rewards=False,
        beta=0.04,
        epsilon_high=0.28,
        delta=4.0,
        max_completion_length=1024,
        mask_truncated_completions=True,
    )
    assert found.errors == []
    assert found.has(
        {
            "megatron_training.global_batch_size": 32,  # 8 x 4 x 8 = 256 completions / 8
            "rl_config.mini_batch_size": 8,  # 8 x 2 x 4 = 64 completions / 8
            "rl_config.epochs": 2,
            "megatron_training.train_iters": 100,  # 800 optimizer steps / (4 x 2)
            "megatron_training.save_interval": 10,
            "actor_config.lr_warmup_fraction": 0.05,
            "rl_config.loss_agg_mode": "seq-mean-token-sum-norm",
            "rl_config.loss_scale_factor": 1024.0,
            "rl_config.norm_adv_by_std": False,
            "rl_config.init_kl_coef": 0.04,
            "rl_config.clip_higher_enable": True,
            "rl_config.clip_ratio_low": 0.2,
            "rl_config.clip_ratio_high": 0.28,
            "rl_config.clip_ratio_c": 4.0,
            "rl_config.overlong_filter_enable": True,
        }
    )


def test_cispo_bounds_the_ratio_itself(nothing_here: Path) -> None:
    found = convert_arguments(
        nothing_here, loss_type="cispo", epsilon_high=5.0, vllm_importance_sampling_mode="token_truncate"
    )
    assert found.has(
        {
            "rl_config.policy_loss": "cispo",
            "rl_config.clip_ratio_low": 1.0,
            "rl_config.clip_ratio_high": 4.0,  # the ratio is at most 1 + 4
            "rl_config.rollout_correction.rollout_is": "token",
            "rl_config.rollout_correction.rollout_is_threshold_lower": None,
        }
    )


def test_gspo_with_lora_names_lora_alone(nothing_here: Path) -> None:
    found = convert_arguments(
        nothing_here,
        importance_sampling_level="sequence",
        loss_type="grpo",
        epsilon=3e-4,
        epsilon_high=4e-4,
        use_peft=True,
        lora_r=32,
        lora_alpha=64,
        lora_target_modules=["q_proj"],
    )
    assert found.has(
        {
            "rl_config.policy_loss": "gspo",
            "rl_config.loss_agg_mode": "seq-mean-token-mean",
            "rl_config.clip_ratio_low": 3e-4,
            "rl_config.clip_ratio_high": 4e-4,
        }
    )
    assert found.part("missing here") == "  LoRA: use_peft, lora_r, lora_alpha, lora_target_modules"
    assert [error.split(":")[0] for error in found.errors] == ["megatron_training.lora_r"]


def test_evaluation_and_soft_length_penalty(nothing_here: Path) -> None:
    found = convert_arguments(
        nothing_here,
        eval_strategy="steps",
        eval_steps=50,
        num_generations_eval=4,
        temperature=0.7,
        reward_funcs=["accuracy_reward", "get_soft_overlong_punishment"],
        max_completion_length=1500,
    )
    assert found.has(
        {
            "generate_config.sampling_config.temperature": 0.7,
            "generate_config.eval_sampling_config.temperature": 0.7,
            "generate_config.eval_sampling_config.num_samples": 4,
            "megatron_training.eval_interval": 50,
            "rl_config.overlong_buffer_enable": True,
            "rl_config.rollout_max_tokens": 1280,
            "rl_config.overlong_buffer": 256,
            "rl_config.verifier_function": ["math_acc"],
        }
    )
    assert "eval_strategy: Name the evaluation's rows" in found.part("needs a hand")


def test_what_has_no_counterpart_is_asked_about(nothing_here: Path) -> None:
    found = convert_arguments(
        nothing_here,
        loss_type="sapo",
        scale_rewards="batch",
        top_p=0.9,
        min_p=0.05,
        repetition_penalty=1.1,
        top_entropy_quantile=0.2,
        lr_scheduler_type="polynomial",
        optim="adafactor",
        sync_ref_model=True,
        reward_funcs=["think_format_reward"],
        no_such_argument=1,
    )
    asked = {line.strip().split(":")[0] for line in found.part("needs a hand").splitlines()}
    assert asked >= {
        *("loss_type", "scale_rewards", "top_p", "min_p", "repetition_penalty", "top_entropy_quantile"),
        *("lr_scheduler_type", "optim", "sync_ref_model", "reward_funcs", "no_such_argument", "num_processes"),
    }
    assert found.errors == []
