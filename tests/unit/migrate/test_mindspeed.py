"""MindSpeed-RL's configurations by facts of their keys; numbers are worked out by hand."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.unit.migrate.conversion import Conversion, convert

# What nearly all of its published configurations have.
SHARED: dict[str, dict[str, Any]] = {
    "megatron_training": {
        **dict.fromkeys(("use_fused_rmsnorm", "use_mcore_models", "sequence_parallel", "use_flash_attn"), True),
        **dict.fromkeys(("no_masked_softmax_fusion", "attention_softmax_in_fp32", "use_fused_swiglu"), True),
        **dict.fromkeys(("no_gradient_accumulation_fusion", "use_fused_rotary_pos_emb", "bf16"), True),
        **dict.fromkeys(("use_distributed_optimizer", "no_shared_storage", "no_pad_to_seq_lengths"), True),
        "tokenizer_type": "PretrainedFromHF",
        "attention_dropout": 0.0,
        "hidden_dropout": 0.0,
        "init_method_std": 0.01,
        "distributed_backend": "nccl",
        "dataset_additional_keys": ["labels"],
        "data_path": "./data",
        "split": "100,0,0",
        "no_shuffle": False,
        "full_shuffle_instruction_dataset": False,
        "seq_length": 2048,
    },
    "actor_config": {
        "micro_batch_size": 1,
        "lr": 1e-6,
        "lr_decay_style": "constant",
        "min_lr": 0,
        "lr_warmup_fraction": 0.0,
        "clip_grad": 1.0,
        "adam_beta1": 0.9,
        "adam_beta2": 0.95,
        "weight_decay": 0.01,
        "finetune": True,
        "load": "./ckpt",
        "save": "./ckpt",
        "no_load_optim": True,
        "no_load_rng": True,
    },
    "rl_config": {
        "blocking": True,
        "use_integrated_worker": True,
        "actor_forward_micro_batch_size": 1,
        "ref_forward_micro_batch_size": 1,
        "gamma": 1.0,
        "lam": 0.95,
        "adv_estimator": "group_norm",
        "epochs": 1,
        "clip_ratio": 0.2,
        "entropy_coeff": 0.0,
        "shuffle_mini_batch": False,
        "rule_reward": True,
        "verifier_weight": [1.0],
        "max_prompt_length": 2048,
        "num_cpus_for_local_task": 1.0,
        "use_tensorboard": True,
    },
    "generate_config": {
        "trust_remote_code": True,
        "offload_train_optimizer": True,
        "offload_train_grad": True,
        "offload_train_param": True,
        "infer_pipeline_parallel_size": 1,
        "infer_expert_parallel_size": 1,
        "max_model_len": 4096,
        "max_num_batched_tokens": 8192,
        "dtype": "bfloat16",
        "sampling_config": {
            "logprobs": 1,
            "max_tokens": 2048,
            "top_p": 1.0,
            "top_k": -1,
            "min_p": 0.0,
            "temperature": 1.0,
            "detokenize": False,
        },
    },
}
DAPO = {
    "rl_config.verifier_function": ["acc_for_dapo"],
    "rl_config.token_level_loss": True,
    "rl_config.clip_higher_enable": True,
    "rl_config.clip_ratio_low": 0.2,
    "rl_config.clip_ratio_high": 0.28,
    "rl_config.overlong_buffer_enable": True,
    "rl_config.overlong_buffer": 512,
    "rl_config.rollout_max_tokens": 2048,
    "rl_config.overlong_buffer_penalty_factor": 1.0,
    "rl_config.filter_groups_enable": True,
    "rl_config.filter_groups_metric": "acc_for_dapo",
    "rl_config.filter_groups_max_batches": -1,
    "rl_config.filter_groups_train_batch_size": 32,
}


def sizes(model: str, *, batch: int, mini: int, group: int, devices: int, tp: int, pp: int = 1) -> dict[str, Any]:
    return {
        "megatron_training.model": model,
        "actor_config.model": model,
        "megatron_training.tokenizer_name_or_path": f"./{model}-hf",
        "megatron_training.global_batch_size": batch,
        "rl_config.mini_batch_size": mini,
        "rl_config.n_samples_per_prompt": group,
        "rl_config.actor_resource.num_npus": devices,
        "actor_config.tensor_model_parallel_size": tp,
        "actor_config.pipeline_model_parallel_size": pp,
    }


def yaml_of(model: str, changes: dict[str, Any]) -> str:
    tree: dict[str, Any] = {"defaults": [{"model": [model]}], **copy.deepcopy(SHARED)}
    for path, value in changes.items():
        *sections, key = path.split(".")
        node = tree
        for name in sections:
            node = node.setdefault(name, {})
        node[key] = value
    return yaml.safe_dump(tree, sort_keys=False)


EXPERTS = {
    "actor_config.expert_model_parallel_size": 4,
    "actor_config.moe_tp_extend_ep": True,
    "generate_config.enable_expert_parallel": True,
    "generate_config.infer_expert_parallel_size": 8,
    "megatron_training.moe_alltoall_overlap_comm": True,
}
LONG = {
    "actor_config.context_parallel_size": 2,
    "actor_config.context_parallel_algo": "megatron_cp_algo",
    "actor_config.attention_mask_type": "causal",
    "rl_config.use_dynamic_bsz": True,
    "rl_config.actor_max_packing_token_size": 45056,
    "rl_config.update_max_packing_token_size": 22528,
    "rl_config.rollout_max_tokens": 20480,
    "rl_config.overlong_buffer": 4096,
    "generate_config.max_model_len": 22528,
    "generate_config.sampling_config.max_tokens": 20480,
}
LORA = {
    "megatron_training.lora_r": 8,
    "megatron_training.lora_alpha": 16,
    "megatron_training.lora_fusion": True,
    "megatron_training.lora_target_modules": ["linear_qkv", "linear_proj"],
    "rl_config.share_backbone": True,
}
GRPO = {"megatron_training.stage": "ray_grpo", "rl_config.init_kl_coef": 0.001, "rl_config.kl_penalty": "low_var_kl"}
IS_DAPO = {"megatron_training.stage": "ray_dapo", "rl_config.init_kl_coef": 0.0, **DAPO}

CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any], str]] = {
    "grpo_7b": (
        "qwen25_7b",
        {
            **sizes("qwen25_7b", batch=32, mini=32, group=8, devices=16, tp=2, pp=2),
            **GRPO,
            "rl_config.verifier_function": ["math_17k_acc"],
            "generate_config.infer_tensor_parallel_size": 1,
        },
        {"rl_config.verifier_function": ["math_acc"], "rl_config.actor_resource.num_devices": 16},
        "",
    ),
    "grpo_8b_long_answers": (
        "qwen3_8b",
        {
            **sizes("qwen3_8b", batch=32, mini=32, group=8, devices=16, tp=2, pp=2),
            **GRPO,
            "rl_config.verifier_function": ["base_acc"],
            "generate_config.sampling_config.max_tokens": 8192,
            "generate_config.infer_tensor_parallel_size": 1,
        },
        {"generate_config.max_model_len": 10240, "rl_config.verifier_function": ["base_acc"]},  # 2048 + 8192
        "",
    ),
    "grpo_32b": (
        "qwen25_32b",
        {
            **sizes("qwen25_32b", batch=64, mini=64, group=16, devices=16, tp=4, pp=4),
            **GRPO,
            "actor_config.num_layer_list": "16,17,16,15",
            "rl_config.max_prompt_length": 1024,
            "rl_config.verifier_function": ["math_verify_reward"],
            "generate_config.max_model_len": 3072,
            "generate_config.infer_tensor_parallel_size": 2,
        },
        {"generate_config.max_model_len": 3072, "generate_config.infer_tensor_parallel_size": 2},  # 1024 + 2048 fit
        "",
    ),
    "grpo_lora_32b": (
        "qwen25_32b",
        {
            **sizes("qwen25_32b", batch=64, mini=64, group=16, devices=8, tp=8),
            **GRPO,
            **LORA,
            "rl_config.verifier_function": ["math_verify_reward"],
            "generate_config.infer_tensor_parallel_size": 2,
        },
        {"megatron_training.global_batch_size": 64},
        "LoRA",
    ),
    "grpo_671b": (
        "deepseekv3_671b",
        {
            **sizes("deepseekv3_671b", batch=384, mini=384, group=8, devices=256, tp=2, pp=16),
            **GRPO,
            **EXPERTS,
            "rl_config.verifier_function": ["math_verify_reward"],
            "generate_config.infer_tensor_parallel_size": 2,
        },
        {"megatron_training.global_batch_size": 384, "rl_config.actor_resource.num_devices": 256},
        "mixture of experts",
    ),
    "grpo_235b_cut_tail": (
        "qwen3_235b_a22b",
        {
            **sizes("qwen3_235b_a22b", batch=256, mini=256, group=8, devices=128, tp=2, pp=16),
            **GRPO,
            **EXPERTS,
            "rl_config.verifier_function": ["acc_for_dapo"],
            "generate_config.infer_tensor_parallel_size": 4,
            "generate_config.sampling_config.top_p": 0.9,
            "generate_config.sampling_config.top_k": 50,
            "generate_config.sampling_config.min_p": 0.01,
            "generate_config.sampling_config.temperature": 0.9,
        },
        {
            "generate_config.sampling_config.temperature": 0.9,
            "generate_config.sampling_config.top_p": 1.0,
            "generate_config.sampling_config.top_k": -1,
        },
        "mixture of experts",
    ),
    "dapo_32b": (
        "qwen25_32b",
        {
            **sizes("qwen25_32b", batch=32, mini=32, group=8, devices=16, tp=8),
            **IS_DAPO,
            "generate_config.infer_tensor_parallel_size": 8,
        },
        {
            "rl_config.filter_groups_metric": "math_acc",
            "rl_config.filter_groups_max_batches": -1,
            "rl_config.clip_ratio_high": 0.28,
            "rl_config.overlong_buffer": 512,
        },
        "",
    ),
    "dapo_32b_20k_context_parallel": (
        "qwen25_32b",
        {
            **sizes("qwen25_32b", batch=256, mini=32, group=16, devices=64, tp=8, pp=2),
            **IS_DAPO,
            **LONG,
            "generate_config.infer_tensor_parallel_size": 4,
        },
        {
            "rl_config.max_packing_token_size": 22528,
            "rl_config.mini_batch_size": 32,
            "generate_config.max_model_len": 22528,  # 2048 + 20480 fit
        },
        "context parallelism",
    ),
    "dapo_30b_experts": (
        "qwen3_30b_a3b",
        {
            **sizes("qwen3_30b_a3b", batch=32, mini=32, group=8, devices=16, tp=4),
            **IS_DAPO,
            **EXPERTS,
            "generate_config.infer_tensor_parallel_size": 1,
        },
        {"rl_config.overlong_buffer_penalty_factor": 1.0},
        "mixture of experts",
    ),
    "ppo_32b_critic": (
        "qwen25_32b",
        {
            **sizes("qwen25_32b", batch=128, mini=128, group=8, devices=32, tp=8),
            "megatron_training.stage": "ray_ppo",
            "rl_config.adv_estimator": "gae",
            "rl_config.kl_penalty": "kl",
            "rl_config.init_kl_coef": 0.01,
            "rl_config.cliprange_value": 0.5,
            "rl_config.verifier_function": ["acc_for_ppo"],
            "rl_config.critic_resource.num_npus": 32,
            "critic_config": {"model": "qwen25_32b", "lr": 5e-6, "load": "./ckpt", "tensor_model_parallel_size": 8},
            "generate_config.infer_tensor_parallel_size": 8,
        },
        {"rl_config.kl_penalty": "k1", "rl_config.init_kl_coef": 0.01, "rl_config.verifier_function": ["math_acc"]},
        "a critic",
    ),
}


@pytest.fixture
def nothing_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder without models, data and configurations."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", CASES)
def test_published_configuration_converts_all_but_the_missing_part(name: str, nothing_here: Path) -> None:
    model, changes, expected, missing = CASES[name]
    found = convert(nothing_here, f"{name}.yaml", yaml_of(model, changes))
    assert found.has(expected)
    assert found.has(
        {
            "actor_config.load": f"./{model}-hf",
            "megatron_training.data_path": "./data.parquet",
            "rl_config.n_samples_per_prompt": changes["rl_config.n_samples_per_prompt"],
            "rl_config.rollout_correction.rollout_is": None,
        }
    )
    assert [line.strip().split(": ")[0] for line in found.part("missing here").splitlines()] == (
        [missing] if missing else []
    )
    assert len(found.errors) == bool(missing)
    assert found.warnings == []
    assert "Unknown key" not in found.summary


def test_every_key_has_exactly_one_answer(nothing_here: Path) -> None:
    model, changes, _, _ = CASES["ppo_32b_critic"]
    found = convert(nothing_here, "ppo.yaml", yaml_of(model, {**changes, "rl_config.no_such_key": 3}))
    assert "rl_config.no_such_key: Unknown key of MindSpeed-RL" in found.part("needs a hand")
    assert "critic_config.lr" in found.part("missing here")
    assert "no_such_key" not in found.text.split("\n\n", 1)[1]


def test_multi_turn_configuration_has_comments_where_the_meaning_changed(nothing_here: Path) -> None:
    found = multi_turn(nothing_here, max_tool_calls=3, max_parallel_calls=2)
    assert found.errors == []
    assert found.has(
        {
            "rl_config.max_tool_calls": 6,  # 3 rounds x 2 calls
            "rl_config.max_tool_response_length": 256,
            "rl_config.verifier_function": ["retool_reward"],
            "generate_config.sampling_config.max_tokens": 2048,
        }
    )
    (line,) = [line for line in found.text.splitlines() if "max_tool_response_length" in line]
    assert line == "  max_tool_response_length: 256  # tokens here; there 256 characters, about 64 tokens"
    assert "executed calls here; there rounds with calls" in found.part("kept, with another meaning")
    assert "defaults:\n  - model: qwen25_7b\n" in found.text


def multi_turn(folder: Path, **changes: Any) -> Conversion:
    (folder / "tools").mkdir()
    tools = {
        "tools": [
            {
                "class_name": "mindspeed_rl.tools.retool.ReTool",
                "config": {"sandbox_fusion_url": "embedded", "num_workers": 128, "type": "native"},
                "tool_schema": {
                    "type": "function",
                    "function": {
                        "name": "code_interpreter",
                        "description": "Runs code.",
                        "parameters": {
                            "type": "object",
                            "properties": {"code": {"type": "string", "description": "The code."}},
                            "required": ["code"],
                        },
                    },
                },
            }
        ]
    }
    (folder / "tools/retool_config.yaml").write_text(yaml.safe_dump(tools))
    keys = {
        **sizes("qwen25_7b", batch=32, mini=32, group=8, devices=8, tp=4),
        **IS_DAPO,
        "rl_config.verifier_function": ["retool_reward"],
        "rl_config.filter_groups_metric": "retool_reward",
        "rl_config.multi_turn_enable": True,
        "rl_config.tool_config_path": "./tools/retool_config.yaml",
        "rl_config.max_tool_calls": 1,
        "rl_config.max_parallel_calls": 1,
        "rl_config.max_total_response_length": 2048,
        "rl_config.max_tool_response_length": 256,
        "rl_config.tool_response_truncate_side": "middle",
        "rl_config.tool_parser_format": "hermes",
        "rl_config.async_engine": True,
        "generate_config.infer_tensor_parallel_size": 1,
        **{f"rl_config.{key}": value for key, value in changes.items()},
    }
    return convert(folder, "multi_turn.yaml", yaml_of("qwen25_7b", keys))


def test_tool_yaml_of_the_run_is_converted_beside_it(nothing_here: Path) -> None:
    found = multi_turn(nothing_here)
    written = yaml.safe_load((nothing_here / "out/tools/mine.yaml").read_text())
    assert written["tools"][0]["class_name"] == "rl.tools.retool.ReTool"
    assert written["tools"][0]["config"] == {"sandbox_fusion_url": "embedded", "type": "native"}
    assert str(found.config.rl_config.tool_config_path).endswith("out/tools/mine.yaml")
    assert "changed: 2" in found.summary


def test_defaults_that_differ_are_written_out(nothing_here: Path) -> None:
    content = yaml.safe_dump(
        {
            "megatron_training": {"tokenizer_name_or_path": "./m", "data_path": "./d", "global_batch_size": 8},
            "actor_config": {"lr": 1e-6},
            "rl_config": {"n_samples_per_prompt": 4, "clip_higher_enable": True},
            "generate_config": {"max_num_seqs": 16},
        }
    )
    found = convert(nothing_here, "short.yaml", content)
    assert found.has(
        {
            "actor_config.adam_beta2": 0.999,
            "actor_config.lr_decay_style": "linear",
            "rl_config.mini_batch_size": 1,
            "rl_config.max_prompt_length": 512,
            "rl_config.init_kl_coef": 0.01,
            "rl_config.clip_ratio_low": 0.1,
            "rl_config.clip_ratio_high": 0.1,
            "generate_config.infer_tensor_parallel_size": 8,
            "generate_config.max_model_len": 2048,
            "generate_config.sampling_config.temperature": 0.2,
            "generate_config.sampling_config.max_tokens": 128,
        }
    )
    assert "generate_config.sampling_config.top_k" in found.part("needs a hand")  # 50 by default there
    assert found.errors == []


def test_dpo_is_named_as_another_task(nothing_here: Path) -> None:
    keys = {
        "megatron_training": {
            "stage": "dpo",
            "dpo_loss_type": "sigmoid",
            "is_pairwise_dataset": True,
            "refer_model_iter": 1,
            "ref_model": "./ckpt",
            "lr": 1.25e-6,
            "min-lr": 0,
            "load": "./ckpt",
            "save": "./ckpt",
            "tokenizer_name_or_path": "./Qwen3-30B-A3B",
            "tensor_model_parallel_size": 2,
            "pipeline_model_parallel_size": 8,
            "micro_batch_size": 1,
            "global_batch_size": 128,
            "data_path": "./data",
            "eval_interval": 1000,
            "eval_iters": 10,
        }
    }
    found = convert(nothing_here, "dpo.yaml", yaml.safe_dump({"defaults": [{"model": ["qwen3_30b_a3b"]}], **keys}))
    assert found.has(
        {
            "actor_config.lr": 1.25e-6,
            "actor_config.load": "./Qwen3-30B-A3B",
            "actor_config.pipeline_model_parallel_size": 8,
            "rl_config.actor_resource.num_devices": 16,
        }
    )
    assert found.part("missing here").strip().startswith("DPO: ")
    assert [error.split(":")[0] for error in found.errors] == ["megatron_training.stage"]


def test_file_builds_on_another_beside_it(nothing_here: Path) -> None:
    (nothing_here / "base.yaml").write_text("rl_config: {n_samples_per_prompt: 16, max_prompt_length: 1000}\n")
    content = "defaults: [base, _self_]\nrl_config: {max_prompt_length: 900}\nmegatron_training: {data_path: ./d}\n"
    found = convert(nothing_here, "mine.yaml", content)
    assert found.has({"rl_config.n_samples_per_prompt": 16, "rl_config.max_prompt_length": 900})


def test_rewards_that_do_not_exist_are_named_and_others_keep_their_weights(nothing_here: Path) -> None:
    content = "rl_config: {verifier_function: [step, strict_format, acc], verifier_weight: [0.1, 0.2, 0.7]}"
    found = convert(nothing_here, "rewards.yaml", content)
    assert found.has({"rl_config.verifier_function": ["format", "math_acc"], "rl_config.verifier_weight": [0.2, 0.7]})
    assert "rewards: There is no reward step: write it" in found.part("needs a hand")


def test_a_placeholder_for_the_model_needs_a_hand(nothing_here: Path) -> None:
    content = "megatron_training: {tokenizer_name_or_path: ./, data_path: ./data}\nactor_config: {load: ./}\n"
    found = convert(nothing_here, "placeholder.yaml", content)
    assert found.has({"actor_config.load": "./model", "megatron_training.tokenizer_name_or_path": None})
    assert "Name the Hugging Face folder in actor_config.load" in found.part("needs a hand")
    assert [error for error in found.errors if "actor_config.load" in error] == []
