"""MindSpeed-RL's own YAML: what moves over, what is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rl.config.keys import key_paths, value_at
from rl.config.load import compose_config, load_dataset_config
from rl.config.migration import DATASET_MIGRATION, MIGRATION
from rl.config.moved import take_over
from rl.config.schema import Config, DatasetConfig

# The keys and values of its dapo_qwen25_7b_A2_multi_turn.yaml.
SHIPPED = """
defaults:
  - model:
      - qwen25_7b
  - _self_
megatron_training:
  model: qwen25_7b
  use_fused_rmsnorm: true
  use_mcore_models: true
  sequence_parallel: true
  use_flash_attn: true
  no_masked_softmax_fusion: true
  attention_softmax_in_fp32: true
  no_gradient_accumulation_fusion: true
  use_fused_swiglu: true
  use_fused_rotary_pos_emb: true
  bf16: true
  use_distributed_optimizer: true
  tokenizer_type: PretrainedFromHF
  tokenizer_name_or_path: ./multiturn-sft-qwen-2.5-7b-instruct/global_step_372_huggingface
  global_batch_size: 32
  seq_length: 2048
  save_interval: 100
  train_iters: 1000
  stage: ray_dapo
  attention_dropout: 0.0
  init_method_std: 0.01
  hidden_dropout: 0.0
  distributed_backend: nccl
  no_shared_storage: true
  dataset_additional_keys: ['labels']
  data_path: ./data
  split: 100,0,0
  no_shuffle: true
  full_shuffle_instruction_dataset: false
actor_config:
  micro_batch_size: 1
  tensor_model_parallel_size: 4
  pipeline_model_parallel_size: 1
  lr: 1e-6
  lr_decay_style: constant
  min_lr: 0
  weight_decay: 0.01
  lr_warmup_fraction: 0.0
  clip_grad: 1.0
  adam_beta1: 0.9
  adam_beta2: 0.95
  finetune: true
  load: ./multiturn-sft-qwen-2.5-7b-instruct-tp4pp1
  save: ./ckpt
  no_load_optim: true
  no_load_rng: true
  no_save_optim: false
  no_save_rng: false
rl_config:
  guarantee_order: true
  use_integrated_worker: true
  blocking: true
  actor_forward_micro_batch_size: 1
  ref_forward_micro_batch_size: 1
  gamma: 1.0
  lam: 0.95
  adv_estimator: group_norm
  mini_batch_size: 32
  max_prompt_length: 2048
  epochs: 1
  clip_ratio: 0.2
  entropy_coeff: 0.0
  shuffle_mini_batch: false
  n_samples_per_prompt: 8
  rule_reward: true
  verifier_function: ["retool_reward"]
  verifier_weight: [1.0]
  num_cpus_for_local_task: 1.0
  use_tensorboard: true
  token_level_loss: true
  clip_higher_enable: true
  clip_ratio_low: 0.2
  clip_ratio_high: 0.28
  overlong_buffer_enable: false
  rollout_max_tokens: 2048
  overlong_buffer: 512
  overlong_buffer_penalty_factor: 1.0
  filter_groups_enable: false
  filter_groups_metric: acc_for_dapo
  filter_groups_max_batches: -1
  filter_groups_train_batch_size: 32
  multi_turn_enable: true
  tool_config_path: ./configs/tools/retool_config.yaml
  max_tool_calls: 1
  max_parallel_calls: 1
  max_total_response_length: 2048
  max_tool_response_length: 256
  tool_response_truncate_side: 'middle'
  tool_parser_format: 'hermes'
  async_engine: true
  actor_resource:
    num_npus: 8
generate_config:
  enforce_eager: true
  trust_remote_code: true
  offload_train_optimizer: true
  offload_train_grad: true
  offload_train_param: true
  infer_tensor_parallel_size: 1
  infer_pipeline_parallel_size: 1
  infer_expert_parallel_size: 1
  max_num_seqs: 1024
  max_model_len: 4096
  max_num_batched_tokens: 8192
  dtype: bfloat16
  gpu_memory_utilization: 0.4
  sampling_config:
    logprobs: 1
    max_tokens: 2048
    top_p: 1.0
    top_k: -1
    min_p: 0.0
    temperature: 1.0
    detokenize: false
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "qwen25_7b.yaml").write_text("num_hidden_layers: 28\n")
    (tmp_path / "shipped.yaml").write_text(SHIPPED)
    return tmp_path


def test_shipped_yaml_of_mindspeed_moves_over(folder: Path) -> None:
    composed = compose_config("shipped", (), folder)
    errors = [problem.text for problem in composed.problems if problem.severity == "error"]
    assert errors == []
    assert composed.config.rl_config.actor_resource.num_devices == 8
    warned = {problem.text.partition(":")[0] for problem in composed.problems if problem.severity == "warning"}
    assert {"actor_config.micro_batch_size", "rl_config.lam", "megatron_training.stage"} <= warned
    assert len(warned) == 43
    assert composed.config.rl_config.clip_ratio_high == 0.28
    assert composed.config.actor_config.adam_beta2 == 0.95


def test_migration_tables_name_no_key_of_the_schema() -> None:
    assert not set(MIGRATION) & set(key_paths(Config))
    assert not set(DATASET_MIGRATION) & set(key_paths(DatasetConfig))


def test_migration_advice_is_in_sentences() -> None:
    for entry in [*MIGRATION.values(), *DATASET_MIGRATION.values()]:
        assert entry.advice.endswith("."), entry


def test_migration_advice_names_keys_that_exist() -> None:
    known = set(key_paths(Config)) | {"rl_config.actor_resource", "rl_config.rollout_resource"}
    for entry in MIGRATION.values():
        named = [word.strip("().,;") for word in entry.advice.split()]
        keys = {word for word in named if word.startswith(("rl_config.", "actor_config.", "megatron_training."))}
        assert keys <= known, entry.advice


# Its keys that are not in the schema, from its code and its published configurations, with values as they stand there.
FOREIGN = {
    "megatron_training": """
        use_fused_rmsnorm=true use_mcore_models=true use_flash_attn=true no_masked_softmax_fusion=true
        attention_softmax_in_fp32=true no_gradient_accumulation_fusion=true use_fused_swiglu=true
        use_fused_rotary_pos_emb=true no_shared_storage=true no_shuffle=true
        full_shuffle_instruction_dataset=true no_pad_to_seq_lengths=true reset_attention_mask=true
        moe_alltoall_overlap_comm=true swap_optimizer=true use_rotary_position_embeddings=true
        reuse_fp32_param=true swap_attention=true moe_permutation_async_comm=true moe_grouped_gemm=true
        qk_layernorm=true overlap_grad_reduce=true tokenizer_not_use_fast=true model=qwen25_7b
        tokenizer_type=PretrainedFromHF stage=ray_dapo attention_dropout=0 init_method_std=0.01 hidden_dropout=0
        distributed_backend=nccl split='100,0,0' shape_order=BNSD attention_mask_type=causal norm_epsilon=1e-6
        log_interval=1 eval_iters=1 initial_loss_scale=4096 lora_r=8 lora_alpha=16
        lora_fusion=true lora_target_modules=[a] lora_ckpt_filter=true dpo_loss_type=sigmoid
        is_pairwise_dataset=true ref_model=x refer_model_iter=1 lr=1e-6 load=./x save=./x micro_batch_size=1
        tensor_model_parallel_size=1 pipeline_model_parallel_size=1 adam_beta1=0.9 adam_beta2=0.95 clip_grad=1.0
        weight_decay=0.01 finetune=true no_load_optim=true no_load_rng=true no_save_optim=true no_save_rng=true
    """,
    "actor_config": """
        model=qwen micro_batch_size=1 finetune=true save=./c no_load_optim=true no_load_rng=true
        no_save_optim=false no_save_rng=false num_layer_list='1,2' moe_tp_extend_ep=true
        expert_model_parallel_size=2 recompute_method=block recompute_num_layers=2 initial_loss_scale=1
        gemm_gradient_accumulation_fusion=true context_parallel_size=2 context_parallel_algo=ulysses_cp_algo
        attention_mask_type=causal num_layers=3 noop_layers=1
    """,
    "rl_config": """
        runtime_env_path=x hccl_buffersize=256 rule_reward=true beta=0.1 actor_resource.num_npus=4
        reference_resource=null reward_resource=null critic_resource=null vit_resource=null
        num_samples_per_step=1 cliprange_value=0.5 gamma=1.0 lam=0.95 advantage_whiten=true
        integrated_mode_config=null shuffle_mini_batch=false tp_split_expert=false wandb_save_dir=
        use_swanlab=false swanlab_mode= swanlab_project= swanlab_exp_name= swanlab_save_dir= blocking=true
        guarantee_order=false num_cpus_for_local_task=1 num_cpus_for_placement_group=8
        use_dp_batch_balance=false ref_forward_micro_batch_size=null actor_forward_micro_batch_size=null
        vit_forward_micro_batch_size=null actor_rollout_dispatch_size=null actor_logprob_dispatch_size=null
        ref_dispatch_size=null reward_dispatch_size=null dynamic_sampling_dispatch_size=null
        adv_dispatch_size=null actor_update_dispatch_size=null critic_update_dispatch_size=null
        critic_value_dispatch_size=null kl_dispatch_size=null actor_image_embeds_dispatch_size=null
        is_multimodal=false use_remove_padding=false reuse_image_embeds=false colocate_actor_and_vit=false
        use_dynamic_bsz=false ref_max_packing_token_size=4096 actor_max_packing_token_size=4096
        update_max_packing_token_size=4096 dynamic_max_batch_size=null ref_dynamic_max_batch_size=null
        actor_dynamic_max_batch_size=null update_dynamic_max_batch_size=null log_max_throughput=true
        data_strategy=td transfer_queue_data_shard_num=1 transfer_queue_data_shard_port_base=null
        filter_groups_train_batch_size=1 zmq_communication=true partial_rollout_max_split=1
        require_max_age_all_finished=true share_backbone=false async_engine=false
    """,
    "generate_config": """
        limit_mm_image_per_prompt=1 limit_mm_video_per_prompt=0 data_parallel_size=null tokenizer_name_or_path=x
        eplb_token_collects=false eplb_token_save_path=./ expert_map_path=null infer_pipeline_parallel_size=1
        infer_expert_parallel_size=1 num_scheduler_steps=1 torchair_graph=false enable_expert_parallel=false
        ascend_scheduler_config_enabled=true sampling_config.seed=3 sampling_config.logprobs=1
        sampling_config.detokenize=false
    """,
}

NOT_THERE_YET = {
    "actor_config.context_parallel_size",
    "actor_config.expert_model_parallel_size",
    "actor_config.moe_tp_extend_ep",
    "megatron_training.dpo_loss_type",
    "megatron_training.is_pairwise_dataset",
    "megatron_training.lora_alpha",
    "megatron_training.lora_ckpt_filter",
    "megatron_training.lora_fusion",
    "megatron_training.lora_r",
    "megatron_training.lora_target_modules",
    "megatron_training.ref_model",
    "megatron_training.refer_model_iter",
}


def test_every_key_of_mindspeed_has_an_answer_and_no_guess(folder: Path) -> None:
    (folder / "empty.yaml").write_text("")
    overrides = [f"{section}.{item}" for section, items in FOREIGN.items() for item in items.split()]
    assert len(overrides) > 150
    problems = compose_config("empty", overrides, folder).problems
    assert [problem.text for problem in problems if "unknown" in problem.text or "mean" in problem.text] == []
    told = {problem.text.partition(":")[0] for problem in problems}
    assert {override.partition("=")[0] for override in overrides} == told
    errors = {problem.text.partition(":")[0] for problem in problems if problem.severity == "error"}
    assert errors == NOT_THERE_YET


@pytest.mark.parametrize(
    ("old", "here", "value"),
    [
        ("rl_config.actor_resource.num_npus=8", "rl_config.actor_resource.num_devices", 8),
        ("megatron_training.lr=1e-5", "actor_config.lr", 1e-5),
        ("megatron_training.save_total_limit=3", "megatron_training.max_checkpoints", 3),
        ("rl_config.verifier_function=[acc_for_dapo]", "rl_config.verifier_function", ["math_acc"]),
        ("rl_config.kl_penalty=kl", "rl_config.kl_penalty", "k1"),
    ],
)
def test_what_has_another_name_is_taken_over_with_a_note(folder: Path, old: str, here: str, value: object) -> None:
    (folder / "empty.yaml").write_text("")
    composed = compose_config("empty", [old], folder)
    (problem,) = composed.problems
    assert problem.severity == "warning"
    assert "taken over. Here it is " in problem.text
    assert here in composed.given
    assert value_at(composed.config, here) == value


@pytest.mark.parametrize(
    ("old", "here", "value"),
    [
        ("test_data_path=sub/rows.jsonl", "eval_data_path", {"rows": "sub/rows.jsonl"}),
        ("test_freq=5", "eval_interval", 5),
        ("test_before_train=false", "eval_before_train", False),
        ("test_after_train=false", "eval_after_train", False),
    ],
)
def test_an_earlier_name_is_taken_over_with_a_note(folder: Path, old: str, here: str, value: object) -> None:
    base = "eval_data_path: base.jsonl, eval_interval: 7, eval_before_train: true, eval_after_train: true"
    (folder / "base.yaml").write_text(f"megatron_training: {{{base}}}\n")
    (folder / "own.yaml").write_text(f"defaults: [base, _self_]\nmegatron_training: {{{old.replace('=', ': ')}}}\n")
    for name, overrides in (("own", []), ("base", [f"megatron_training.{old}"])):
        composed = compose_config(name, overrides, folder)
        (problem,) = composed.problems
        key = old.partition("=")[0]
        assert problem.severity == "warning"
        assert problem.text.startswith(f"megatron_training.{key}: got ")
        assert problem.text.endswith(f"taken over. It is called megatron_training.{here} now.")
        assert value_at(composed.config, f"megatron_training.{here}") == value


def test_a_later_present_name_replaces_an_earlier_one(folder: Path) -> None:
    (folder / "old.yaml").write_text("megatron_training: {test_freq: 5}\n")
    composed = compose_config("old", ["megatron_training.eval_interval=3"], folder)
    assert composed.config.megatron_training.eval_interval == 3
    (problem,) = composed.problems
    assert problem.text.startswith("megatron_training.test_freq: got 5, left out beside megatron_training.eval_interv")


@pytest.mark.parametrize("name", ["old.yaml", "new.yaml", "both.yaml"])
@pytest.mark.parametrize(
    ("old", "here", "value", "default"),
    [
        ("test_data_path", "eval_data_path", "a.parquet", {}),
        ("test_freq", "eval_interval", 7, 0),
        ("test_before_train", "eval_before_train", "false", True),
        ("test_after_train", "eval_after_train", "false", True),
    ],
)
def test_a_removal_by_either_name_removes_both(
    folder: Path, name: str, old: str, here: str, value: object, default: object
) -> None:
    (folder / "old.yaml").write_text(f"megatron_training: {{{old}: {value}}}\n")
    (folder / "new.yaml").write_text(f"megatron_training: {{{here}: {value}}}\n")
    (folder / "both.yaml").write_text(f"defaults: [new, _self_]\nmegatron_training: {{{old}: {value}}}\n")
    for key in (old, here):
        composed = compose_config(name, [f"~megatron_training.{key}"], folder)
        assert value_at(composed.config, f"megatron_training.{here}") == default
        assert composed.problems == ()
        again = compose_config(name, [f"~megatron_training.{key}", f"megatron_training.{here}={value}"], folder)
        assert f"megatron_training.{here}" in again.given
        assert value_at(again.config, f"megatron_training.{here}") != default


def test_a_part_of_an_earlier_key_is_removed(folder: Path) -> None:
    (folder / "old.yaml").write_text("megatron_training: {test_data_path: {a: /a.parquet, b: /b.parquet}}\n")
    for key in ("test_data_path", "eval_data_path"):
        composed = compose_config("old", [f"~megatron_training.{key}.a"], folder)
        assert composed.config.megatron_training.eval_data_path == {"b": "/b.parquet"}


@pytest.mark.parametrize(
    "text",
    [
        "megatron_training: {test_freq: 7, save_interval: '${megatron_training.test_freq}'}",
        "megatron_training: {test_freq: 7, save_interval: '${.test_freq}'}",
        "megatron_training: {test_freq: 7, save_interval: '${..megatron_training.test_freq}'}",
        "megatron_training: {test_freq: 7, save_interval: '${oc.select:megatron_training.test_freq,3}'}",
        "megatron_training: {eval_interval: 7, save_interval: '${.test_freq}'}",
        "megatron_training: {test_freq: 7, eval_interval: '${.test_freq}', save_interval: '${.eval_interval}'}",
        "megatron_training: {save_interval: 7, test_freq: '${.save_interval}'}",
    ],
)
def test_a_reference_to_an_earlier_name_is_followed(folder: Path, text: str) -> None:
    (folder / "own.yaml").write_text(text)
    training = compose_config("own", [], folder).config.megatron_training
    assert (training.eval_interval, training.save_interval) == (7, 7)


def test_a_reference_within_text_or_a_list_is_followed(folder: Path) -> None:
    (folder / "own.yaml").write_text(
        "megatron_training:\n"
        "  {test_data_path: {a: /d/a.parquet}, test_freq: 7, run_name: 'every-${.test_freq}-\\${.test_freq}',\n"
        "   data_path: '${.test_data_path.a}'}\n"
        "rl_config:\n"
        "  {verifier_function: ['${megatron_training.test_data_path.a}', 'n${...megatron_training.test_freq}']}\n"
    )
    config = compose_config("own", [], folder).config
    assert config.megatron_training.run_name == "every-7-${.test_freq}"
    assert config.megatron_training.data_path == "/d/a.parquet"
    assert config.rl_config.verifier_function == ["/d/a.parquet", "n7"]


def test_a_reference_to_an_earlier_key_of_trackers_is_followed(folder: Path) -> None:
    (folder / "own.yaml").write_text(
        "rl_config: {wandb_project: maths, swanlab_project: '${.wandb_project}', wandb_exp_name: '${.wandb_project}-7'}"
    )
    training = compose_config("own", [], folder).config.megatron_training
    assert (training.tracker_project, training.tracker_run_name) == ("maths", "maths-7")


def test_an_earlier_key_of_datasets_is_taken_over(folder: Path) -> None:
    (folder / "datasets").mkdir(exist_ok=True)
    (folder / "datasets" / "rows.yaml").write_text("{input: a.jsonl, output_prefix: b, test_size: 5}\n")
    assert load_dataset_config("datasets/rows", [], folder).eval_size == 5


def test_the_name_of_here_wins_over_the_old_one(folder: Path) -> None:
    (folder / "empty.yaml").write_text("")
    resource = "rl_config.actor_resource"
    composed = compose_config("empty", [f"{resource}.num_npus=8", f"{resource}.num_devices=4"], folder)
    assert composed.config.rl_config.actor_resource.num_devices == 4
    (problem,) = composed.problems
    assert problem.text.startswith(f"{resource}.num_npus: got 8, left out beside {resource}.num_devices.")


def test_an_architecture_below_the_models_name_is_told_once(folder: Path) -> None:
    (folder / "model" / "big.yaml").write_text("big: {num_layers: 64, hidden_size: 5120}\n")
    (folder / "listed.yaml").write_text("defaults: [{model: [big]}]\n")
    (problem,) = compose_config("listed", (), folder).problems
    assert problem.severity == "warning"
    assert problem.text.startswith(
        "model.big: has no effect here, got a section with num_layers, hidden_size. The arch"
    )


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("rl_config.clip_ratio_lo", "rl_config.clip_ratio_low"),
        ("rl_config.entropy_coef", "rl_config.entropy_coeff"),
        ("actor_config.loads", "actor_config.load"),
        ("actor_config.min-lr", "actor_config.min_lr"),
        ("actor_config.Lr", "actor_config.lr"),
        ("rl_config.epohcs", "rl_config.epochs"),
        ("rl_config.temperature", "generate_config.sampling_config.temperature"),
        ("rl_config.context_parallel_size", None),
        ("actor_config.expert_tensor_parallel_size", None),
        ("rl_config.num_gpus", None),
        ("rl_config.micro_batch_size_per_gpu", None),
        ("actor_config.max_lr", None),
        ("rl_config.ppo_epochs", None),
        ("rl_config.save_freq", None),
        ("rl_config.learning_rate", None),
        ("data.train_batch_size", None),
    ],
)
def test_a_key_is_suggested_for_a_slip_and_not_for_another_thing(folder: Path, typed: str, meant: str | None) -> None:
    (folder / "empty.yaml").write_text("")
    (problem,) = compose_config("empty", [f"{typed}=1"], folder).problems
    assert problem.text.partition("Did you mean ")[2] == (f"{meant}?" if meant else "")


@pytest.mark.parametrize(
    ("old", "trackers"),
    [
        ({"use_tensorboard": True, "use_wandb": False}, ["tensorboard"]),
        ({"use_wandb": True}, ["tensorboard", "wandb"]),
        ({"use_tensorboard": False, "use_swanlab": True}, ["swanlab"]),
        ({"use_tensorboard": False}, []),
        ({"use_swanlab": True, "swanlab_mode": "disabled"}, ["tensorboard"]),
    ],
)
def test_switches_of_trackers_become_the_list(old: dict[str, Any], trackers: list[str]) -> None:
    tree, _ = take_over(Config, {"rl_config": old})
    assert tree["rl_config"] == {}
    assert tree["megatron_training"].get("trackers", ["tensorboard"]) == trackers


@pytest.mark.parametrize(
    ("overrides", "trackers"),
    [
        (["rl_config.use_wandb=true"], ["mlflow", "tensorboard", "wandb"]),
        (["rl_config.use_tensorboard=false"], ["mlflow"]),
        (["rl_config.use_tensorboard=false", "megatron_training.trackers=[tensorboard]"], ["tensorboard"]),
        ([], ["mlflow", "tensorboard"]),
    ],
)
def test_a_switch_of_the_command_line_comes_before_the_list_of_a_file(
    folder: Path, overrides: list[str], trackers: list[str]
) -> None:
    text = "megatron_training: {trackers: [mlflow, tensorboard]}\nrl_config: {use_swanlab: true}\n"
    (folder / "own.yaml").write_text(text)
    composed = compose_config("own", overrides, folder)
    assert composed.config.megatron_training.trackers == trackers
    assert "rl_config.use_swanlab: got True, left out beside megatron_training.trackers. Remove it." in [
        problem.text for problem in composed.problems
    ]
    if len(overrides) == 1:
        assert f"taken over. Here it is megatron_training.trackers, a list: {trackers}." in composed.problems[0].text


def test_a_name_of_the_command_line_comes_before_that_of_a_file(folder: Path) -> None:
    (folder / "own.yaml").write_text("megatron_training: {tracker_project: a, trackers_offline: false}\n")
    overrides = ["rl_config.wandb_project=b", "rl_config.swanlab_mode=local"]
    training = compose_config("own", overrides, folder).config.megatron_training
    assert (training.tracker_project, training.trackers_offline) == ("b", True)


def test_names_and_mode_of_trackers_are_taken_over_for_all() -> None:
    old = {"wandb_project": "", "swanlab_project": "maths", "wandb_exp_name": "seven", "swanlab_mode": "local"}
    tree, problems = take_over(Config, {"rl_config": old | {"use_wandb": True, "wandb_save_dir": "/x"}})
    assert tree["rl_config"] == {"wandb_save_dir": "/x"}  # reported with the other keys that are not here
    assert tree["megatron_training"] == {
        "trackers": ["tensorboard", "wandb"],
        "tracker_project": "maths",
        "tracker_run_name": "seven",
        "trackers_offline": True,
    }
    assert problems[0].text == (
        "rl_config.use_wandb: got True, taken over. Here it is megatron_training.trackers, a list: "
        "['tensorboard', 'wandb']."
    )


def test_switch_beside_the_list_is_left_out() -> None:
    tree, problems = take_over(
        Config, {"megatron_training": {"trackers": ["mlflow"]}, "rl_config": {"use_wandb": True}}
    )
    assert tree["megatron_training"]["trackers"] == ["mlflow"]
    assert [p.text for p in problems] == [
        "rl_config.use_wandb: got True, left out beside megatron_training.trackers. Remove it."
    ]
