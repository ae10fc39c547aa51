"""verl's configurations, as scripts and YAML, by facts of their keys; numbers are worked out by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.unit.migrate.conversion import convert

A, R, M = "actor_rollout_ref.actor", "actor_rollout_ref.rollout", "actor_rollout_ref.model"


@pytest.fixture
def nothing_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder without models, data and configurations."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


GRPO_GSM8K = f"""
set -x
gsm8k=$HOME/data/gsm8k/train.parquet
python3 -m verl.trainer.main_ppo \\
    algorithm.adv_estimator=grpo \\
    data.train_files=$gsm8k \\
    data.val_files="['$HOME/data/gsm8k/test.parquet','$HOME/data/math/test.parquet']" \\
    data.train_batch_size=1024 \\
    data.max_prompt_length=512 \\
    data.max_response_length=1024 \\
    data.filter_overlong_prompts=True \\
    data.truncation='error' \\
    {M}.path=Qwen/Qwen2-7B-Instruct \\
    {A}.optim.lr=1e-6 \\
    {M}.use_remove_padding=True \\
    {A}.ppo_mini_batch_size=256 \\
    {A}.ppo_micro_batch_size_per_gpu=40 \\
    {A}.use_kl_loss=True \\
    {A}.kl_loss_coef=0.001 \\
    {A}.kl_loss_type=low_var_kl \\
    {A}.entropy_coeff=0 \\
    {M}.enable_gradient_checkpointing=True \\
    {A}.fsdp_config.param_offload=False \\
    {R}.tensor_model_parallel_size=2 \\
    {R}.name=vllm \\
    {R}.gpu_memory_utilization=0.6 \\
    {R}.n=5 \\
    actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu=40 \\
    algorithm.use_kl_in_reward=False \\
    trainer.critic_warmup=0 \\
    trainer.logger='["console","wandb"]' \\
    trainer.project_name='verl_grpo' \\
    trainer.experiment_name='qwen2_7b' \\
    trainer.n_gpus_per_node=8 \\
    trainer.nnodes=2 \\
    trainer.save_freq=20 \\
    trainer.test_freq=5 \\
    trainer.total_epochs=15 $@
"""

DAPO = f"""
#!/usr/bin/env bash
use_kl_in_reward=False
clip_ratio_low=0.2   # as in the paper
clip_ratio_high=0.28
max_prompt_length=$((1024 * 2))
max_response_length=$((1024 * 20))
enable_overlong_buffer=True
overlong_buffer_len=$((1024 * 4))
train_prompt_bsz=512
gen_prompt_bsz=$((train_prompt_bsz * 3))
n_resp_per_prompt=16
NNODES=${{NNODES:-16}}
MODEL_PATH=${{MODEL_PATH:-"${{HOME}}/verl/models/Qwen2.5-32B"}}
use_dynamic_bsz=True
actor_ppo_max_token_len=$(((max_prompt_length + max_response_length) * 10 / 10))
ray job submit --working-dir "${{PWD}}" -- python3 -m recipe.dapo.main_dapo \\
    data.train_files="/data/dapo-math-17k.parquet" \\
    data.val_files="/data/aime-2024.parquet" \\
    data.prompt_key=prompt \\
    data.max_prompt_length=${{max_prompt_length}} \\
    data.max_response_length=${{max_response_length}} \\
    data.gen_batch_size=${{gen_prompt_bsz}} \\
    data.train_batch_size=${{train_prompt_bsz}} \\
    {R}.n=${{n_resp_per_prompt}} \\
    {R}.tensor_model_parallel_size=4 \\
    {R}.val_kwargs.temperature=1.0 \\
    {R}.val_kwargs.top_p=0.7 \\
    {R}.val_kwargs.do_sample=True \\
    {R}.val_kwargs.n=1 \\
    algorithm.adv_estimator=grpo \\
    algorithm.use_kl_in_reward=${{use_kl_in_reward}} \\
    algorithm.kl_ctrl.kl_coef=0.0 \\
    {A}.use_kl_loss=False \\
    {A}.clip_ratio_low=${{clip_ratio_low}} \\
    {A}.clip_ratio_high=${{clip_ratio_high}} \\
    {A}.clip_ratio_c=10.0 \\
    {A}.loss_agg_mode="token-mean" \\
    {A}.use_dynamic_bsz=${{use_dynamic_bsz}} \\
    {A}.ppo_max_token_len_per_gpu=${{actor_ppo_max_token_len}} \\
    {A}.ppo_mini_batch_size=32 \\
    {A}.optim.lr=1e-6 \\
    {A}.optim.lr_warmup_steps=10 \\
    {A}.optim.weight_decay=0.1 \\
    {A}.grad_clip=1.0 \\
    {M}.path="${{MODEL_PATH}}" \\
    algorithm.filter_groups.enable=True \\
    algorithm.filter_groups.max_num_gen_batches=10 \\
    algorithm.filter_groups.metric=acc \\
    reward_model.reward_manager=dapo \\
    +reward_model.reward_kwargs.overlong_buffer_cfg.enable=${{enable_overlong_buffer}} \\
    +reward_model.reward_kwargs.overlong_buffer_cfg.len=${{overlong_buffer_len}} \\
    +reward_model.reward_kwargs.overlong_buffer_cfg.penalty_factor=0.5 \\
    +reward_model.reward_kwargs.max_resp_len=${{max_response_length}} \\
    trainer.n_gpus_per_node=8 \\
    trainer.nnodes="${{NNODES}}" \\
    trainer.val_before_train=True \\
    trainer.test_freq=5 \\
    trainer.save_freq=-1 \\
    trainer.total_epochs=1 \\
    trainer.total_training_steps=200
"""

PPO = f"""
python3 -m verl.trainer.main_ppo \\
    algorithm.adv_estimator=gae \\
    data.train_files=$HOME/data/gsm8k/train.parquet data.val_files=$HOME/data/gsm8k/test.parquet \\
    data.train_batch_size=1024 data.max_prompt_length=512 data.max_response_length=512 \\
    {M}.path=deepseek-ai/deepseek-llm-7b-chat {A}.optim.lr=1e-6 {A}.ppo_mini_batch_size=256 \\
    {R}.tensor_model_parallel_size=4 \\
    critic.optim.lr=1e-5 critic.model.path=deepseek-ai/deepseek-llm-7b-chat \\
    algorithm.kl_ctrl.kl_coef=0.001 trainer.nnodes=1 trainer.total_epochs=15
"""

RLOO = f"""
rollout_is="sequence"                     # self-normalized
bypass_mode="true"
TRAIN_FILE=${{TRAIN_FILE:-"data/train.parquet"}}
python3 -m verl.trainer.main_ppo \\
    data.train_files="${{TRAIN_FILE}}" data.val_files=data/test.parquet \\
    data.max_prompt_length=2048 data.max_response_length=4096 data.train_batch_size=128 data.truncation='left' \\
    algorithm.adv_estimator=rloo \\
    algorithm.rollout_correction.rollout_is=${{rollout_is}} \\
    algorithm.rollout_correction.rollout_is_threshold=2.5 \\
    algorithm.rollout_correction.rollout_is_batch_normalize=true \\
    algorithm.rollout_correction.rollout_rs=null \\
    algorithm.rollout_correction.bypass_mode=${{bypass_mode}} \\
    algorithm.rollout_correction.loss_type=reinforce \\
    {M}.path=Qwen/Qwen2.5-7B {A}.optim.lr=5e-7 {A}.ppo_mini_batch_size=32 {R}.n=4 trainer.total_epochs=10
"""

MEGATRON_EXPERTS = f"""
ACTOR=(
    {A}.strategy=megatron   # with a comment
    {A}.megatron.tensor_model_parallel_size=4
    {A}.megatron.pipeline_model_parallel_size=8
    {A}.megatron.expert_model_parallel_size=4
    +{A}.megatron.override_transformer_config.recompute_granularity=full
    +{A}.megatron.override_transformer_config.moe_permute_fusion=True
    {A}.ppo_mini_batch_size=16
    {A}.optim.lr_warmup_steps=10
)
ACTOR+=({A}.megatron.param_offload=True)
DATA="
    data.train_files=/d/train.parquet data.val_files=/d/test.parquet
    data.train_batch_size=32 data.max_prompt_length=2048 data.max_response_length=8192
"
python3 -m verl.trainer.main_ppo --config-path=config --config-name='ppo_megatron_trainer.yaml' $DATA \\
    "${{ACTOR[@]}}" algorithm.adv_estimator=grpo {R}.n=8 {R}.tensor_model_parallel_size=8 \\
    {M}.path=/m/Qwen3-235B-A22B trainer.nnodes=4 trainer.n_gpus_per_node=8 trainer.total_training_steps=100
"""

ASYNCHRONOUS = f"""
python3 -m verl.experimental.fully_async_policy.fully_async_main algorithm.adv_estimator=grpo \\
    data.train_files=a.parquet data.val_files=b.parquet data.train_batch_size=0 data.gen_batch_size=1 \\
    {M}.path=/m/Qwen2.5-7B {R}.n=16 {A}.ppo_mini_batch_size=32 async_training.require_batches=4 \\
    async_training.staleness_threshold=0.5 rollout.total_rollout_steps=51200 rollout.nnodes=2 \\
    algorithm.rollout_correction.rollout_rs=seq_mean_k1 \\
    algorithm.rollout_correction.rollout_rs_threshold="0.999_1.001"
"""

LORA = f"""
python3 -m verl.trainer.main_ppo algorithm.adv_estimator=grpo data.train_batch_size=16 data.train_files=a.parquet \\
    data.val_files=b.parquet {M}.path=/m/Qwen2.5-3B {M}.lora_rank=64 {M}.lora_alpha=32 {M}.target_modules=all-linear \\
    {A}.ppo_mini_batch_size=16 {R}.n=5 {R}.load_format=safetensors
"""

SEQUENCE_PARALLEL = f"""
python3 -m verl.trainer.main_ppo algorithm.adv_estimator=reinforce_plus_plus data.train_batch_size=64 \\
    data.train_files=a.parquet data.val_files=b.parquet {M}.path=/m/Qwen2-7B {A}.ulysses_sequence_parallel_size=2 \\
    {A}.ppo_mini_batch_size=64 {A}.use_kl_loss=False algorithm.use_kl_in_reward=True algorithm.kl_penalty=kl \\
    algorithm.kl_ctrl.kl_coef=0.002 algorithm.kl_ctrl.type=adaptive algorithm.kl_ctrl.target_kl=0.05
"""

VISION = f"""
python3 -m verl.trainer.main_ppo algorithm.adv_estimator=grpo data.train_files=a.parquet data.val_files=b.parquet \\
    data.image_key=images {M}.path=Qwen/Qwen2.5-VL-7B-Instruct {R}.n=5 data.train_batch_size=512 \\
    {A}.ppo_mini_batch_size=128
"""

SCRIPTS: dict[str, tuple[str, dict[str, Any], str]] = {
    "grpo_gsm8k": (
        GRPO_GSM8K,
        {
            "actor_config.load": "Qwen/Qwen2-7B-Instruct",
            "megatron_training.global_batch_size": 1024,
            "rl_config.mini_batch_size": 256,
            "rl_config.n_samples_per_prompt": 5,
            "rl_config.init_kl_coef": 0.001,
            "rl_config.actor_resource.num_devices": 16,  # 2 x 8
            "rl_config.max_packing_token_size": 61440,  # 40 x (512 + 1024)
            "generate_config.sampling_config.max_tokens": 1024,
            "generate_config.infer_tensor_parallel_size": 2,
            "actor_config.recompute_granularity": "full",
            "actor_config.adam_beta2": 0.999,
            "rl_config.clip_ratio_c": 3.0,
            "rl_config.rollout_correction.rollout_is": None,
            "megatron_training.total_epochs": 15,
            "megatron_training.train_iters": 100_000_000,
            "megatron_training.eval_interval": 5,
            "megatron_training.save_interval": 20,
            "megatron_training.trackers": ["wandb"],
        },
        "",
    ),
    "dapo_32b": (
        DAPO,
        {
            "rl_config.max_prompt_length": 2048,
            "generate_config.sampling_config.max_tokens": 20480,
            "generate_config.max_model_len": 22528,  # 2048 + 20480
            "rl_config.max_packing_token_size": 22528,
            "megatron_training.global_batch_size": 512,
            "rl_config.filter_groups_enable": True,
            "rl_config.filter_groups_metric": "score",
            "rl_config.filter_groups_max_batches": 30,  # 10 x 1536 / 512
            "rl_config.clip_higher_enable": True,
            "rl_config.clip_ratio_low": 0.2,
            "rl_config.clip_ratio_high": 0.28,
            "rl_config.clip_ratio_c": 10.0,
            "rl_config.overlong_buffer": 4096,
            "rl_config.rollout_max_tokens": 20480,
            "rl_config.overlong_buffer_penalty_factor": 0.5,
            "rl_config.actor_resource.num_devices": 128,
            "actor_config.lr_warmup_fraction": 0.05,  # 10 of 200 steps
            "actor_config.weight_decay": 0.1,
            "megatron_training.train_iters": 200,
            "megatron_training.save_interval": 100_000_000,
            "generate_config.eval_sampling_config.temperature": 1.0,
            "generate_config.eval_sampling_config.top_p": 0.7,
        },
        "",
    ),
    "ppo_critic": (
        PPO,
        {"generate_config.infer_tensor_parallel_size": 4, "rl_config.mini_batch_size": 256},
        "a critic",
    ),
    "rloo_correction": (
        RLOO,
        {
            "rl_config.adv_estimator": "rloo",
            "rl_config.policy_loss": "reinforce",
            "rl_config.rollout_correction.rollout_is": "sequence",
            "rl_config.rollout_correction.rollout_is_threshold": 2.5,
            "rl_config.rollout_correction.bypass_mode": True,
            "megatron_training.data_path": "data/train.parquet",
            "actor_config.lr": 5e-7,
            "generate_config.max_model_len": 6144,
        },
        "",
    ),
    "grpo_235b_experts": (
        MEGATRON_EXPERTS,
        {
            "actor_config.tensor_model_parallel_size": 4,
            "actor_config.pipeline_model_parallel_size": 8,
            "megatron_training.sequence_parallel": True,
            "actor_config.recompute_granularity": "full",
            "generate_config.offload_train_param": True,
            "rl_config.actor_resource.num_devices": 32,
            "actor_config.lr_warmup_fraction": 0.1,
            "generate_config.max_model_len": 10240,
        },
        "mixture of experts",
    ),
    "asynchronous": (
        ASYNCHRONOUS,
        {
            "megatron_training.global_batch_size": 128,  # 4 x 32
            "rl_config.mini_batch_size": 32,
            "rl_config.rollout_correction.rollout_rs": "seq_mean_k1",
            "rl_config.rollout_correction.rollout_rs_threshold": 1.001,
            "rl_config.rollout_correction.rollout_rs_threshold_lower": 0.999,
        },
        "",
    ),
    "grpo_lora": (LORA, {"rl_config.n_samples_per_prompt": 5, "rl_config.mini_batch_size": 16}, "LoRA"),
    "reinforce_plus_plus_sequence_parallel": (
        SEQUENCE_PARALLEL,
        {
            "rl_config.adv_estimator": "reinforce_plus_plus",
            "rl_config.use_kl_in_reward": True,
            "rl_config.init_kl_coef": 0.002,
            "rl_config.kl_penalty": "k1",
            "rl_config.kl_ctrl_type": "adaptive",
            "rl_config.kl_target": 0.05,
            "rl_config.kl_horizon": 10000.0,
        },
        "context parallelism",
    ),
    "grpo_images": (VISION, {"megatron_training.global_batch_size": 512}, "images"),
}


@pytest.mark.parametrize("name", SCRIPTS)
def test_script_converts_all_but_the_missing_part(name: str, nothing_here: Path) -> None:
    script, expected, missing = SCRIPTS[name]
    found = convert(nothing_here, f"{name}.sh", script)
    assert found.has(expected)
    assert [line.strip().split(": ")[0] for line in found.part("missing here").splitlines()] == (
        [missing] if missing else []
    )
    assert len(found.errors) == bool(missing), found.errors
    assert "Unknown key" not in found.summary


def test_home_is_the_home_folder_and_equal_file_names_get_their_folders(nothing_here: Path) -> None:
    found = convert(nothing_here, "grpo.sh", GRPO_GSM8K)
    assert "data_path: ~/data/gsm8k/train.parquet" in found.text
    assert list(found.config.megatron_training.eval_data_path) == ["gsm8k_test", "math_test"]


MULTI_TURN: dict[str, Any] = {
    "hydra": {"searchpath": ["file://verl/trainer/config"]},
    "defaults": ["ppo_trainer", "_self_"],
    "data": {
        "train_files": "/d/train.parquet",
        "val_files": "/d/test.parquet",
        "max_prompt_length": 1024,
        "max_response_length": 2048,
        "train_batch_size": 64,
        "return_raw_chat": True,
    },
    "actor_rollout_ref": {
        "hybrid_engine": True,
        "model": {"path": "/m/Qwen2.5-3B-Instruct"},
        "actor": {
            "ppo_mini_batch_size": 512,
            "policy_loss": {"loss_mode": "gspo"},
            "loss_agg_mode": "seq-mean-token-mean",
            "clip_ratio_low": 0.0003,
            "clip_ratio_high": 0.0004,
            "optim": {"lr": 2e-6, "lr_scheduler_type": "cosine", "min_lr_ratio": 0.1, "lr_warmup_steps_ratio": 0.05},
        },
        "rollout": {
            "name": "sglang",
            "n": 16,
            "temperature": 0.9,
            "response_length": "${data.max_response_length}",
            "multi_turn": {
                "enable": True,
                "max_assistant_turns": 5,
                "max_parallel_calls": 2,
                "tool_config_path": "./tools.yaml",
                "max_tool_response_length": 1000,
                "tool_response_truncate_side": "left",
                "format": "hermes",
            },
        },
    },
    "algorithm": {"adv_estimator": "grpo", "norm_adv_by_std_in_grpo": False},
    "custom_reward_function": {"path": "reward.py", "name": "score", "reward_kwargs": {"scale": 2}},
    "trainer": {"total_epochs": 3, "n_gpus_per_node": 4, "logger": ["console", "swanlab"], "test_freq": -1},
}
TOOLS = {
    "tools": [
        {
            "class_name": "verl.tools.search_tool.SearchTool",
            "config": {
                "retrieval_service_url": "http://127.0.0.1:9/retrieve",
                "num_workers": 120,
                "rate_limit": 120,
                "timeout": 30,
                "type": "native",
            },
            "tool_schema": {
                "type": "function",
                "function": {
                    "name": "search",
                    "description": "Searches.",
                    "parameters": {
                        "type": "object",
                        "properties": {"query_list": {"type": "array", "item": {"type": "string"}}},
                        "required": ["query_list"],
                    },
                },
            },
        }
    ]
}


def test_multi_turn_yaml(nothing_here: Path) -> None:
    (nothing_here / "tools.yaml").write_text(yaml.safe_dump(TOOLS))
    (nothing_here / "reward.py").write_text(
        "def score(data_source, solution_str, ground_truth, extra_info=None, scale=1):\n    return 1.0\n"
    )
    found = convert(nothing_here, "multi_turn.yaml", yaml.safe_dump(MULTI_TURN))
    assert found.errors == []
    assert found.has(
        {
            "rl_config.multi_turn_enable": True,
            "rl_config.max_tool_calls": 8,  # (5 turns - 1) x 2 calls
            "rl_config.max_parallel_calls": 2,
            "rl_config.max_total_response_length": 2048,
            "rl_config.max_tool_response_length": 1000,
            "rl_config.mini_batch_size": 64,  # 512 prompts are more than the batch
            "rl_config.norm_adv_by_std": False,
            "rl_config.policy_loss": "gspo",
            "rl_config.clip_ratio_low": 0.0003,
            "rl_config.clip_ratio_high": 0.0004,
            "rl_config.clip_ratio_c": None,
            "generate_config.sampling_config.temperature": 0.9,
            "actor_config.lr_decay_style": "cosine",
            "actor_config.min_lr": pytest.approx(2e-7),
            "actor_config.lr_warmup_fraction": 0.05,
            "rl_config.actor_resource.num_devices": 4,
            "megatron_training.trackers": ["swanlab"],
            "megatron_training.eval_interval": 0,
            "megatron_training.eval_after_train": False,
        }
    )
    (function,) = found.config.rl_config.verifier_function
    assert function.endswith("reward.py:score")
    assert found.config.rl_config.verifier_kwargs == {function: {"scale": 2}}
    tools = yaml.safe_load((nothing_here / "out/tools/mine.yaml").read_text())
    (query_list,) = tools["tools"][0]["tool_schema"]["function"]["parameters"]["properties"].values()
    assert query_list == {"type": "array", "items": {"type": "string"}}
    assert "max_tool_response_length: 1000  # tokens here; there 1000 characters, about 250 tokens" in found.text


def test_foreign_tool_class_needs_a_hand(nothing_here: Path) -> None:
    tools = {"tools": [{"class_name": "verl.tools.gsm8k_tool.Gsm8kTool", "config": {"type": "native"}}]}
    (nothing_here / "tools.yaml").write_text(yaml.safe_dump(tools))
    found = convert(nothing_here, "multi_turn.yaml", yaml.safe_dump(MULTI_TURN))
    assert (
        "tools[1].class_name: 'verl.tools.gsm8k_tool.Gsm8kTool' needs the package verl, which is not installed"
        in found.summary
    )


def test_cispo_yaml_with_length_normalization(nothing_here: Path) -> None:
    tree = {
        "data": {"train_files": "a.parquet", "val_files": "b.parquet", "train_batch_size": 128},
        "actor_rollout_ref": {
            "model": {"path": "/m/q"},
            "actor": {
                "ppo_mini_batch_size": 32,
                "policy_loss": {"loss_mode": "cispo"},
                "clip_ratio_low": 10,
                "clip_ratio_high": 0.2,
                "loss_agg_mode": "seq-mean-token-sum",
                "tis_imp_ratio_cap": 2,
            },
            "rollout": {"n": 8},
        },
        "algorithm": {"adv_estimator": "grpo"},
    }
    found = convert(nothing_here, "cispo.yaml", yaml.safe_dump(tree))
    assert found.errors == []
    assert found.has(
        {
            "rl_config.policy_loss": "cispo",
            "rl_config.clip_ratio_low": 1.0,
            "rl_config.clip_ratio_high": 0.2,
            "rl_config.loss_agg_mode": "seq-mean-token-sum-norm",
            "rl_config.loss_scale_factor": 1.0,
            "rl_config.rollout_correction.rollout_is": "token",
            "rl_config.rollout_correction.rollout_is_threshold": 2,
            "rl_config.max_prompt_length": 512,
            "generate_config.sampling_config.max_tokens": 512,
            "rl_config.actor_resource.num_devices": 8,
        }
    )


def test_what_cannot_be_resolved_is_named(nothing_here: Path) -> None:
    script = (
        "python3 -m verl.trainer.main_ppo algorithm.adv_estimator=remax data.train_files=$DATA/train.parquet "
        f"data.val_files=b.parquet trainer.experiment_name=run_$(date +%s) {R}.n=8 data.no_such_key=1 "
        f"{R}.top_p=0.9 {A}.policy_loss.loss_mode=clip_cov data.train_batch_size=abc"
    )
    found = convert(nothing_here, "x.sh", script)
    asked = found.part("needs a hand")
    for name in (
        "data.train_files: $DATA is not set",
        "trainer.experiment_name: $(date +%s) is not set",
        "data.no_such_key: Unknown key of verl",
        "algorithm.adv_estimator: There is no such estimator",
        f"{R}.top_p: Training samples the whole distribution",
        f"{A}.policy_loss.loss_mode: There is no such loss",
        "data.train_batch_size: Must be a number; 1024 was taken. Got 'abc'.",
    ):
        assert name in asked


def test_references_within_the_file_are_replaced_and_others_named(nothing_here: Path) -> None:
    tree = {
        "data": {"max_prompt_length": 700, "max_response_length": 300},
        "actor_rollout_ref": {
            "rollout": {"n": 4, "max_model_len": "${oc.select:data.max_prompt_length,512}"},
            "model": {"path": "${nowhere.path}"},
        },
        "algorithm": {"adv_estimator": "grpo"},
    }
    found = convert(nothing_here, "refs.yaml", yaml.safe_dump(tree))
    assert f"{M}.path: Refers to what the file does not hold" in found.part("needs a hand")
    assert found.has({"generate_config.max_model_len": 1000})  # 700 is too short for 700 + 300
    assert "was 700" in found.text


@pytest.mark.parametrize(
    ("actor", "expected"),
    [
        ({}, {"clip_ratio": 0.2, "clip_higher_enable": False}),
        ({"clip_ratio": 0.1}, {"clip_ratio": 0.1, "clip_higher_enable": False}),
        ({"clip_ratio": 0.1, "clip_ratio_low": None, "clip_ratio_high": None}, {"clip_ratio": 0.1}),
        (
            {"clip_ratio": 0.1, "clip_ratio_low": None, "clip_ratio_high": 0.3},
            {"clip_higher_enable": True, "clip_ratio_low": 0.1, "clip_ratio_high": 0.3},
        ),
        (
            {"clip_ratio_low": 0.15},
            {"clip_higher_enable": True, "clip_ratio_low": 0.15, "clip_ratio_high": 0.2},
        ),
    ],
)
def test_clip_range(actor: dict[str, Any], expected: dict[str, Any], nothing_here: Path) -> None:
    tree = {"actor_rollout_ref": {"actor": actor, "rollout": {"n": 4}}, "algorithm": {"adv_estimator": "grpo"}}
    found = convert(nothing_here, "clip.yaml", yaml.safe_dump(tree))
    assert found.has({f"rl_config.{key}": value for key, value in expected.items()})
