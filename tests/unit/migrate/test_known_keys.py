"""Every key of MindSpeed-RL, TRL and verl is known by name; the lists are typed from their sources."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from rl.migrate.command import migrate
from rl.migrate.draft import nested

MINDSPEED = {
    "rl_config": """
    runtime_env_path hccl_buffersize rule_reward beta num_samples_per_step max_prompt_length epochs clip_ratio
    cliprange_value entropy_coeff gamma lam advantage_whiten kl_penalty kl_ctrl_type init_kl_coef kl_horizon
    kl_target adv_estimator verifier_function verifier_weight verifier_parallel verifier_timeout
    integrated_mode_config use_kl_in_reward shuffle_mini_batch tp_split_expert use_tensorboard use_wandb
    wandb_project wandb_exp_name wandb_save_dir use_swanlab swanlab_mode swanlab_project swanlab_exp_name
    swanlab_save_dir blocking async_engine guarantee_order num_cpus_for_local_task num_cpus_for_placement_group
    use_integrated_worker use_dp_batch_balance ref_forward_micro_batch_size actor_forward_micro_batch_size
    vit_forward_micro_batch_size actor_rollout_dispatch_size actor_logprob_dispatch_size ref_dispatch_size
    reward_dispatch_size dynamic_sampling_dispatch_size adv_dispatch_size actor_update_dispatch_size
    critic_update_dispatch_size critic_value_dispatch_size kl_dispatch_size actor_image_embeds_dispatch_size
    is_multimodal use_remove_padding reuse_image_embeds colocate_actor_and_vit n_samples_per_prompt
    mini_batch_size use_dynamic_bsz max_packing_token_size ref_max_packing_token_size
    actor_max_packing_token_size update_max_packing_token_size dynamic_max_batch_size
    ref_dynamic_max_batch_size actor_dynamic_max_batch_size update_dynamic_max_batch_size log_max_throughput
    token_level_loss data_strategy transfer_queue_data_shard_num transfer_queue_data_shard_port_base
    clip_higher_enable clip_ratio_low clip_ratio_high overlong_buffer_enable overlong_buffer
    overlong_buffer_penalty_factor rollout_max_tokens filter_groups_enable filter_groups_metric
    filter_groups_max_batches filter_groups_train_batch_size zmq_communication partial_rollout_max_split
    require_max_age_all_finished multi_turn_enable tool_config_path max_tool_calls max_parallel_calls
    max_total_response_length max_tool_response_length tool_response_truncate_side tool_parser_format
    share_backbone actor_resource.num_npus reference_resource reward_resource critic_resource vit_resource
    """,
    "megatron_training": """
    model use_fused_rmsnorm use_mcore_models sequence_parallel use_flash_attn no_masked_softmax_fusion
    attention_softmax_in_fp32 no_gradient_accumulation_fusion use_fused_swiglu use_fused_rotary_pos_emb bf16
    use_distributed_optimizer tokenizer_type tokenizer_name_or_path global_batch_size seq_length save_interval
    train_iters stage attention_dropout init_method_std hidden_dropout distributed_backend no_shared_storage
    dataset_additional_keys data_path split no_shuffle full_shuffle_instruction_dataset no_pad_to_seq_lengths
    reset_attention_mask moe_alltoall_overlap_comm swap_optimizer shape_order use_rotary_position_embeddings
    reuse_fp32_param swap_attention moe_permutation_async_comm moe_grouped_gemm attention_mask_type
    qk_layernorm norm_epsilon overlap_grad_reduce log_interval eval_interval eval_iters initial_loss_scale
    tokenizer_not_use_fast lora_r lora_alpha lora_fusion lora_target_modules lora_ckpt_filter lr min_lr load
    save micro_batch_size tensor_model_parallel_size pipeline_model_parallel_size adam_beta1 adam_beta2
    clip_grad weight_decay finetune no_load_optim no_load_rng no_save_optim no_save_rng dpo_loss_type
    is_pairwise_dataset ref_model refer_model_iter seed
    """,
    "actor_config": """
    model micro_batch_size tensor_model_parallel_size pipeline_model_parallel_size lr lr_decay_style min_lr
    weight_decay lr_warmup_fraction clip_grad adam_beta1 adam_beta2 finetune load save no_load_optim
    no_load_rng no_save_optim no_save_rng num_layer_list moe_tp_extend_ep expert_model_parallel_size
    recompute_granularity recompute_method recompute_num_layers initial_loss_scale
    gemm_gradient_accumulation_fusion context_parallel_size context_parallel_algo attention_mask_type
    num_layers noop_layers
    """,
    "generate_config": """
    limit_mm_image_per_prompt limit_mm_video_per_prompt data_parallel_size tokenizer_name_or_path
    trust_remote_code eplb_token_collects eplb_token_save_path expert_map_path infer_tensor_parallel_size
    infer_pipeline_parallel_size infer_expert_parallel_size max_num_seqs max_model_len max_num_batched_tokens
    dtype gpu_memory_utilization offload_train_optimizer offload_train_grad offload_train_param
    enable_prefix_caching num_scheduler_steps enforce_eager torchair_graph enable_expert_parallel
    ascend_scheduler_config_enabled sampling_config.logprobs sampling_config.max_tokens sampling_config.top_p
    sampling_config.top_k sampling_config.min_p sampling_config.temperature sampling_config.detokenize
    sampling_config.seed
    """,
}
"""By section (2026-04), with those that only published configurations have."""

DATASET = """
    input output_prefix handler_name streaming json_keys split_sentences keep_newlines prompt_type
    prompt_type_path dataset_additional_keys interleave_probs overwrite_cache seed cache_dir map_keys pack
    neat_pack script_data_dir tokenizer_type tokenizer_not_use_fast vocab_file merge_file append_eod seq_length
    make_vocab_size_divisible_by pad_vocab_size_to placeholder_token reward_tokens dataset_impl workers n_subs
    log_interval merge_group_keys enable_thinking tokenizer_name_or_path
"""

GRPO_CONFIG = """
    learning_rate model_init_kwargs trust_remote_code router_aux_loss_coef disable_dropout cast_lm_head_to_fp32
    remove_unused_columns num_generations num_generations_eval max_completion_length ds3_gather_for_generation
    shuffle_dataset pad_to_multiple_of generation_batch_size steps_per_generation temperature top_p top_k min_p
    generation_kwargs chat_template_kwargs repetition_penalty cache_implementation use_vllm vllm_mode
    vllm_model_impl vllm_enable_sleep_mode vllm_structured_outputs_regex vllm_server_base_url vllm_server_host
    vllm_server_port vllm_server_timeout vllm_group_port vllm_gpu_memory_utilization vllm_max_model_length
    vllm_tensor_parallel_size beta num_iterations epsilon delta epsilon_high sapo_temperature_neg
    sapo_temperature_pos vespo_k_pos vespo_lambda_pos vespo_k_neg vespo_lambda_neg importance_sampling_level
    reward_weights multi_objective_aggregation scale_rewards loss_type mask_truncated_completions
    sync_ref_model ref_model_mixup_alpha ref_model_sync_steps top_entropy_quantile entropy_coef
    use_adaptive_entropy entropy_coef_min entropy_coef_max entropy_coef_delta entropy_target
    max_tool_calling_iterations vllm_importance_sampling_correction vllm_importance_sampling_mode
    vllm_importance_sampling_clip_max vllm_importance_sampling_clip_min off_policy_mask_threshold
    use_bias_correction_kl log_completions log_multimodal num_completions_to_print log_unique_prompts
    log_completions_hub_repo use_transformers_continuous_batching transformers_continuous_batching_config
    use_transformers_paged vllm_importance_sampling_cap
"""
"""TRL 1.9."""

MODEL_AND_SCRIPT = """
    model_name_or_path model_revision dtype attn_implementation use_peft lora_r lora_alpha lora_dropout
    lora_target_modules lora_target_parameters lora_modules_to_save lora_task_type use_rslora use_dora
    load_in_8bit load_in_4bit bnb_4bit_quant_type use_bnb_nested_quant bnb_4bit_quant_storage datasets
    streaming test_split_size dataset_name dataset_config dataset_train_split dataset_test_split
    dataset_streaming ignore_bias_buffers reward_model_name_or_path reward_funcs
"""

OLDER_TRL = """
    max_prompt_length torch_dtype vllm_device vllm_dtype vllm_max_model_len vllm_guided_decoding_regex
    vllm_enable_prefix_caching wandb_log_unique_prompts use_liger_loss dataset_num_proc
"""

VERL = {
    "actor_rollout_ref.actor": """
    calculate_entropy calculate_sum_pi_squared clip_ratio clip_ratio_c clip_ratio_high clip_ratio_low
    data_loader_seed entropy_checkpointing entropy_coeff entropy_from_logits_with_chunking freeze_vision_tower
    grad_clip kl_loss_coef kl_loss_type load_weight loss_agg_mode loss_scale_factor ppo_epochs
    ppo_max_token_len_per_gpu ppo_micro_batch_size ppo_micro_batch_size_per_gpu ppo_mini_batch_size rollout_n
    shuffle strategy sum_pi_squared_checkpointing tau_neg tau_pos ulysses_sequence_parallel_size
    use_dynamic_bsz use_fused_kernels use_kl_loss use_prefix_grouper use_remove_padding use_torch_compile
    tis_imp_ratio_cap
    """,
    "actor_rollout_ref.actor.checkpoint": """
    async_save load_contents save_contents
    """,
    "actor_rollout_ref.actor.megatron": """
    context_parallel_size dist_checkpointing_path dist_checkpointing_prefix dtype expert_model_parallel_size
    expert_tensor_parallel_size forward_only grad_offload optimizer_offload override_ddp_config
    override_mcore_model_config param_offload pipeline_model_parallel_size seed sequence_parallel
    tensor_model_parallel_size use_dist_checkpointing use_distributed_optimizer use_mbridge use_remove_padding
    vanilla_mbridge virtual_pipeline_model_parallel_size
    """,
    "actor_rollout_ref.actor.megatron.override_transformer_config": """
    attention_backend recompute_granularity recompute_method recompute_modules recompute_num_layers
    """,
    "actor_rollout_ref.actor.optim": """
    betas clip_grad lr lr_decay_steps lr_decay_style lr_scheduler_type lr_warmup_init lr_warmup_steps
    lr_warmup_steps_ratio lr_wsd_decay_steps lr_wsd_decay_style min_lr min_lr_ratio num_cycles optimizer
    optimizer_impl override_optimizer_config total_training_steps use_checkpoint_opt_param_scheduler
    warmup_style weight_decay weight_decay_incr_style offload
    """,
    "actor_rollout_ref.actor.policy_loss": """
    clip_cov_lb clip_cov_ratio clip_cov_ub kl_cov_ratio loss_mode ppo_kl_coef
    """,
    "actor_rollout_ref.actor.router_replay": """
    mode record_file replay_file
    """,
    "actor_rollout_ref": """
    hybrid_engine nccl_timeout
    """,
    "actor_rollout_ref.model": """
    custom_chat_template enable_activation_offload enable_gradient_checkpointing exclude_modules external_lib
    hf_config_path lora_adapter_path lora_alpha lora_rank override_config path target_modules tokenizer_path
    trust_remote_code use_fused_kernels use_liger use_remove_padding use_shm
    """,
    "actor_rollout_ref.model.fused_kernel_options": """
    impl_backend
    """,
    "actor_rollout_ref.model.override_config": """
    model_config
    """,
    "actor_rollout_ref.model.override_config.moe_config": """
    freeze_moe_router
    """,
    "actor_rollout_ref.model.tiled_mlp": """
    enabled num_shards
    """,
    "actor_rollout_ref.rollout.agent": """
    agent_loop_config_path default_agent_loop num_workers
    """,
    "actor_rollout_ref.rollout.agent.custom_async_server": """
    name path
    """,
    "actor_rollout_ref.rollout": """
    calculate_log_probs cudagraph_capture_sizes data_parallel_size disable_log_stats do_sample dtype
    enable_chunked_prefill enable_prefix_caching enable_rollout_routing_replay enforce_eager
    expert_parallel_size free_cache_engine gpu_memory_utilization ignore_eos layered_summon load_format
    log_prob_max_token_len_per_gpu log_prob_micro_batch_size log_prob_micro_batch_size_per_gpu
    log_prob_use_dynamic_bsz logprobs_mode max_model_len max_num_batched_tokens max_num_seqs mode mtp
    multi_stage_wake_up n name over_sample_rate pipeline_model_parallel_size prompt_length quantization
    quantization_config_file response_length scheduling_policy skip_dump_dir skip_rollout skip_tokenizer_init
    temperature tensor_model_parallel_size top_k top_p limit_images swap_space
    """,
    "actor_rollout_ref.rollout.checkpoint_engine": """
    backend engine_kwargs update_weights_bucket_megabytes
    """,
    "actor_rollout_ref.rollout.engine_kwargs": """
    sglang trtllm vllm
    """,
    "actor_rollout_ref.rollout.layer_name_map": """
    gate_proj_layer_name qkv_layer_name
    """,
    "actor_rollout_ref.rollout.multi_turn": """
    enable format interaction_config_path max_assistant_turns max_parallel_calls max_tool_response_length
    max_user_turns num_repeat_rollouts tokenization_sanity_check_mode tool_config_path
    tool_response_truncate_side use_inference_chat_template max_turns
    """,
    "actor_rollout_ref.rollout.prometheus": """
    enable file port served_model_name
    """,
    "actor_rollout_ref.rollout.trace": """
    backend max_samples_per_step_per_worker token2text
    """,
    "actor_rollout_ref.rollout.val_kwargs": """
    do_sample n temperature top_k top_p
    """,
    "algorithm": """
    adv_estimator gamma kl_penalty lam norm_adv_by_std_in_grpo use_kl_in_reward use_pf_ppo
    """,
    "algorithm.kl_ctrl": """
    horizon kl_coef target_kl type
    """,
    "algorithm.pf_ppo": """
    reweight_method weight_pow
    """,
    "algorithm.rollout_correction": """
    bypass_mode loss_type rollout_is rollout_is_batch_normalize rollout_is_threshold rollout_rs
    rollout_rs_threshold
    """,
    "custom_reward_function": """
    name path
    """,
    "data": """
    apply_chat_template_kwargs dataloader_num_workers filter_overlong_prompts filter_overlong_prompts_workers
    image_key image_patch_size max_prompt_length max_response_length prompt_key return_full_prompt
    return_multi_modal_inputs return_raw_chat return_raw_input_ids reward_fn_key seed shuffle tokenizer
    tool_config_path train_batch_size train_files train_max_samples truncation trust_remote_code use_shm
    val_batch_size val_files val_max_samples validation_shuffle video_key gen_batch_size chat_template
    filter_prompts
    """,
    "data.custom_cls": """
    name path
    """,
    "data.datagen": """
    name path
    """,
    "data.sampler": """
    class_name class_path
    """,
    "ray_kwargs.ray_init": """
    num_cpus
    """,
    "ray_kwargs": """
    timeline_json_file
    """,
    "reward_manager.module": """
    name path
    """,
    "reward_manager": """
    name source
    """,
    "reward_model": """
    enable enable_resource_pool forward_max_token_len_per_gpu launch_reward_fn_async load_weight max_length
    micro_batch_size micro_batch_size_per_gpu n_gpus_per_node nccl_timeout nnodes num_workers
    reward_loop_class_name reward_loop_module_path reward_loop_source reward_manager strategy
    ulysses_sequence_parallel_size use_dynamic_bsz use_reward_loop
    """,
    "reward_model.sandbox_fusion": """
    max_concurrent memory_limit_mb url
    """,
    "trainer": """
    balance_batch critic_warmup default_hdfs_dir default_local_dir del_local_ckpt_after_load device
    esi_redundant_time experiment_name log_val_generations logger max_actor_ckpt_to_keep
    max_critic_ckpt_to_keep n_gpus_per_node nnodes project_name ray_wait_register_center_timeout
    resume_from_path resume_mode rollout_data_dir save_freq test_freq total_epochs total_training_steps
    use_legacy_worker_impl val_before_train val_only validation_data_dir
    """,
    "transfer_queue": """
    enable
    """,
    "algorithm.filter_groups": """
    enable metric max_num_gen_batches
    """,
    "reward_model.overlong_buffer": """
    enable len penalty_factor log
    """,
    "reward_model.reward_kwargs.overlong_buffer_cfg": """
    enable len penalty_factor log
    """,
    "reward_model.reward_kwargs": """
    max_resp_len
    """,
    "custom_reward_function.reward_kwargs": """
    scale
    """,
    "actor_rollout_ref.ref": """
    log_prob_micro_batch_size_per_gpu fsdp_config.param_offload
    """,
    "critic": """
    optim.lr model.path ppo_micro_batch_size_per_gpu
    """,
    "reward": """
    custom_reward_function.path reward_kwargs.max_resp_len reward_manager.name
    """,
    "global_profiler": """
    tool steps
    """,
    "reward_model.model": """
    path input_tokenizer
    """,
}
"""By section: ppo_trainer.yaml, ppo_megatron_trainer.yaml (0.7), and what scripts of earlier releases have."""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def summary_of(file: Path, content: str) -> str:
    file.write_text(content, encoding="utf-8")
    return migrate(file, file.parent / "out.yaml").summary


def paths(sections: dict[str, str]) -> list[str]:
    """Dotted paths, without those of whole sections."""
    found = {f"{section}.{key}" for section, keys in sections.items() for key in keys.split()}
    return sorted(key for key in found if not any(other.startswith(f"{key}.") for other in found))


def test_every_key_of_mindspeed_is_known(here: Path) -> None:
    keys = paths(MINDSPEED)
    assert len(keys) > 200
    shown = summary_of(here / "all.yaml", yaml.safe_dump(nested(dict.fromkeys(keys))))
    assert [line for line in shown.splitlines() if "Unknown key" in line] == []


def test_every_key_of_mindspeeds_datasets_is_known(here: Path) -> None:
    keys = dict.fromkeys(DATASET.split()) | {"input": "./a.parquet", "output_prefix": "./b", "map_keys": {}}
    shown = summary_of(here / "data.yaml", yaml.safe_dump(keys))
    assert [line for line in shown.splitlines() if "Unknown key" in line] == []


def test_every_argument_of_trl_is_known(here: Path) -> None:
    names = [*GRPO_CONFIG.split(), *MODEL_AND_SCRIPT.split(), *OLDER_TRL.split()]
    shown = summary_of(here / "all.json", json.dumps(dict.fromkeys(names)))
    assert [line for line in shown.splitlines() if "Unknown key" in line] == []


def test_every_argument_of_transformers_is_known(here: Path) -> None:
    from dataclasses import fields

    from transformers import TrainingArguments

    names = [field.name for field in fields(TrainingArguments)]
    shown = summary_of(here / "all.json", json.dumps(dict.fromkeys(names)))
    assert [line for line in shown.splitlines() if "Unknown key" in line] == []


def test_every_key_of_verl_is_known(here: Path) -> None:
    keys = paths(VERL)
    assert len(keys) > 250
    shown = summary_of(here / "all.yaml", yaml.safe_dump(nested(dict.fromkeys(keys))))
    assert [line for line in shown.splitlines() if "Unknown key" in line] == []


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("run.yaml", "rl_config: {max_prompt_lenght: 5}"),
        ("run.json", '{"learning_rate": 1e-6, "max_prompt_lenght": 5}'),
        ("run.sh", "main data.max_prompt_lenght=5"),
    ],
)
def test_unknown_key_is_named(name: str, content: str, here: Path) -> None:
    shown = summary_of(here / name, content)
    assert "max_prompt_lenght: Unknown key of" in shown
    assert "Got 5." in shown


@pytest.mark.parametrize("value", ["x", -1, 0, 0.5, True, [], [1], {"a": 1}], ids=str)
def test_values_of_a_wrong_kind_are_answered(value: object, here: Path) -> None:
    """No value makes the conversion fail, and what is written can be read."""
    names = [*GRPO_CONFIG.split(), *MODEL_AND_SCRIPT.split(), *OLDER_TRL.split()]
    sources: dict[str, object] = {
        "trl.json": dict.fromkeys(names, value),
        "verl.yaml": nested(dict.fromkeys(paths(VERL), value)),
        "mindspeed.yaml": nested(dict.fromkeys(paths(MINDSPEED), value)),
        "data.yaml": dict.fromkeys(DATASET.split(), value),
    }
    for name, content in sources.items():
        (here / name).write_text(json.dumps(content), encoding="utf-8")
        done = migrate(here / name, here / "out.yaml")
        yaml.safe_load(next(iter(done.texts.values())))
