"""Keys of verl that change nothing here, with the reason. Those that are converted are in `rl.migrate.verl*`.

A name that ends in a dot stands for every key below it.

Source: verl's ppo_trainer.yaml, ppo_megatron_trainer.yaml and their component files (0.3 to 0.7).
"""

from __future__ import annotations

_KERNELS = "Kernels and compilation are chosen by the device."
_MICRO_BATCHES = "Samples are packed up to rl_config.max_packing_token_size tokens, whatever the batch."
_FSDP = "The model is split by tensor and pipeline parallelism, its optimizer by use_distributed_optimizer."
_REFERENCE = "The reference is laid out as the actor is."
_CRITIC = "There is no critic."
_ENGINE = "The engine is vLLM, which the project starts and fills with weights."
_PLACE = "What a run writes goes into its directory below megatron_training.output_dir."
_ROWS = "Rows are messages, rendered when the run starts."
_FILTER = "Prompts longer than max_prompt_length are always dropped and counted."
_CHECKPOINT = "A checkpoint is a Hugging Face folder with the optimizer beside it."
_PROFILER = "`--profile-step N` profiles a step."
_EXPERTS = "It belongs to models with experts."
_IMAGES = "Models take text only."
_ROLLOUTS = "Rollout workers and agents are placed by the project."
_REWARD_WORKERS = "Rewards run in processes of their own (rl_config.verifier_parallel)."
_LOSS = "It belongs to a loss that is not chosen."
_LR = "The schedule follows from lr, min_lr, lr_decay_style and lr_warmup_fraction."

A, R, M = "actor_rollout_ref.actor.", "actor_rollout_ref.rollout.", "actor_rollout_ref.model."

DROPPED: dict[str, str] = {
    **dict.fromkeys(
        (
            *(f"{A}{key}" for key in ("ppo_micro_batch_size", "ppo_micro_batch_size_per_gpu", "use_dynamic_bsz")),
            *(
                f"{A}{key}"
                for key in ("ppo_max_token_len_per_gpu", "use_remove_padding", "ppo_infer_max_token_len_per_gpu")
            ),
            *(f"{R}log_prob_{key}" for key in ("micro_batch_size", "micro_batch_size_per_gpu", "use_dynamic_bsz")),
            *(
                f"{R}{key}"
                for key in ("log_prob_max_token_len_per_gpu", "micro_batch_size", "log_prob_micro_batch_size")
            ),
            f"{M}use_remove_padding",
            f"{A}use_prefix_grouper",
            "trainer.balance_batch",
            f"{A}megatron.use_remove_padding",
        ),
        _MICRO_BATCHES,
    ),
    **dict.fromkeys(
        (
            *(f"{A}{key}" for key in ("use_torch_compile", "use_fused_kernels", "entropy_checkpointing")),
            *(f"{A}{key}" for key in ("entropy_from_logits_with_chunking", "calculate_entropy")),
            *(f"{A}{key}" for key in ("calculate_sum_pi_squared", "sum_pi_squared_checkpointing")),
            *(f"{M}{key}" for key in ("use_liger", "use_fused_kernels", "fused_kernel_options.", "use_shm")),
            *(
                f"{M}{key}"
                for key in ("enable_activation_offload", "tiled_mlp.", "override_config.attn_implementation")
            ),
            *(f"{M}override_config.{key}" for key in ("attention_dropout", "embd_pdrop", "resid_pdrop", "attn_pdrop")),
        ),
        _KERNELS,
    ),
    **dict.fromkeys(
        (f"{A}fsdp_config.", f"{A}strategy", f"{A}megatron.use_mbridge", f"{A}megatron.vanilla_mbridge"), _FSDP
    ),
    **dict.fromkeys((f"{A}megatron.override_ddp_config.", f"{A}megatron.override_transformer_config."), _KERNELS),
    **dict.fromkeys((f"{A}megatron.dtype", f"{A}megatron.seed", f"{A}megatron.forward_only"), _FSDP),
    **dict.fromkeys((f"{A}fsdp_size", f"{A}megatron.use_distributed_optimizer"), _FSDP),
    **dict.fromkeys(
        (
            *(f"{A}megatron.{key}" for key in ("use_dist_checkpointing", "dist_checkpointing_path")),
            f"{A}megatron.dist_checkpointing_prefix",
            f"{A}checkpoint.",
            f"{A}load_weight",
            "trainer.del_local_ckpt_after_load",
            "trainer.max_critic_ckpt_to_keep",
        ),
        _CHECKPOINT,
    ),
    **dict.fromkeys((f"{A}rollout_n", f"{A}data_loader_seed", f"{A}profile."), "It follows from other keys."),
    **dict.fromkeys((f"{A}tau_pos", f"{A}tau_neg"), _LOSS),
    **dict.fromkeys(
        tuple(
            f"{A}policy_loss.{key}"
            for key in ("clip_cov_ratio", "clip_cov_lb", "clip_cov_ub", "kl_cov_ratio", "ppo_kl_coef")
        ),
        _LOSS,
    ),
    **dict.fromkeys(
        (f"{A}freeze_vision_tower", "data.image_patch_size", "data.video_key", f"{R}limit_images"), _IMAGES
    ),
    **dict.fromkeys(("data.return_multi_modal_inputs", "data.mm_processor_kwargs."), _IMAGES),
    **dict.fromkeys(
        (f"{A}router_replay.", f"{R}enable_rollout_routing_replay", f"{M}override_config.moe_config."), _EXPERTS
    ),
    **dict.fromkeys((f"{A}megatron.expert_tensor_parallel_size",), _EXPERTS),
    **dict.fromkeys(
        (
            *(f"{A}optim.{key}" for key in ("total_training_steps", "lr_warmup_init", "lr_decay_steps", "num_cycles")),
            *(f"{A}optim.{key}" for key in ("weight_decay_incr_style", "lr_wsd_decay_style", "lr_wsd_decay_steps")),
            *(f"{A}optim.{key}" for key in ("use_checkpoint_opt_param_scheduler", "optimizer_impl", "offload")),
            f"{A}optim.override_optimizer_config.",
        ),
        _LR,
    ),
    **dict.fromkeys(
        (f"{A}profiler.", f"{R}profiler.", "global_profiler.", "trainer.npu_profile.", "trainer.profile_steps"),
        _PROFILER,
    ),
    **dict.fromkeys(
        ("actor_rollout_ref.profiler.", "trainer.controller_nsight_options.", "trainer.worker_nsight_options."),
        _PROFILER,
    ),
    "actor_rollout_ref.ref.": _REFERENCE,
    "critic.": _CRITIC,
    "trainer.critic_warmup": _CRITIC,
    "algorithm.lam": _CRITIC,
    f"{A}megatron.override_mcore_model_config.": _KERNELS,
    **dict.fromkeys(
        (
            *(
                f"{R}{key}"
                for key in ("name", "mode", "free_cache_engine", "load_format", "layered_summon", "dtype_kv")
            ),
            *(f"{R}{key}" for key in ("enable_chunked_prefill", "disable_log_stats", "skip_tokenizer_init")),
            *(
                f"{R}{key}"
                for key in ("cudagraph_capture_sizes", "logprobs_mode", "scheduling_policy", "calculate_log_probs")
            ),
            *(f"{R}{key}" for key in ("update_weights_bucket_megabytes", "checkpoint_engine.", "layer_name_map.")),
            *(f"{R}{key}" for key in ("multi_stage_wake_up", "data_parallel_size", "use_fire_sampling", "swap_space")),
            *(
                f"{R}{key}"
                for key in ("preemption_mode", "disable_log_requests", "max_num_seqs_per_gpu", "enable_sleep_mode")
            ),
            f"{R}engine_kwargs.vllm.disable_mm_preprocessor_cache",
            f"{R}engine_kwargs.vllm.mm_processor_cache_gb",
            f"{R}engine_kwargs.vllm.swap_space",
            f"{R}engine_kwargs.vllm.compilation_config.",
            f"{M}torch_dtype",
            f"{R}engine_kwargs.sglang.",
            f"{R}engine_kwargs.trtllm.",
            f"{R}engine_kwargs.vllm.enable_sleep_mode",
        ),
        _ENGINE,
    ),
    **dict.fromkeys(
        (f"{R}trace.", f"{R}skip_dump_dir", f"{R}prometheus."),
        "`rl view` shows trajectories, prometheus_port serves metrics.",
    ),
    **dict.fromkeys((f"{R}agent.num_workers", f"{R}agent.custom_async_server.", f"{R}chat_scheduler"), _ROLLOUTS),
    **dict.fromkeys(
        (
            f"{R}multi_turn.use_inference_chat_template",
            f"{R}multi_turn.tokenization_sanity_check_mode",
            f"{R}multi_turn.enable_tokenization_sanity_check",
        ),
        "A conversation keeps the tokens that were sampled; nothing is tokenized again.",
    ),
    f"{R}multi_turn.num_repeat_rollouts": "Trajectories of a prompt are n_samples_per_prompt.",
    **dict.fromkeys(
        ("data.return_raw_input_ids", "data.return_raw_chat", "data.return_full_prompt", "data.use_shm"), _ROWS
    ),
    **dict.fromkeys(
        ("data.need_tools_kwargs", "data.chat_template", "data.chat_template_func", "data.tokenizer"), _ROWS
    ),
    **dict.fromkeys(
        (
            "data.filter_overlong_prompts",
            "data.filter_overlong_prompts_workers",
            "data.filter_overlong_prompts_num_workers",
            "data.filter_prompts",
        ),
        _FILTER,
    ),
    **dict.fromkeys(
        ("data.dataloader_num_workers", "data.validation_shuffle", "data.val_batch_size"),
        "Files are read once by the driver.",
    ),
    "data.trust_remote_code": "generate_config.trust_remote_code says it for the engine.",
    **dict.fromkeys(
        (
            "trainer.default_local_dir",
            "trainer.default_hdfs_dir",
            "trainer.rollout_data_dir",
            "trainer.validation_data_dir",
        ),
        _PLACE,
    ),
    **dict.fromkeys(
        ("trainer.log_val_generations", "trainer.val_generations_to_log_to_wandb"),
        "Every evaluated answer is recorded; `rl view` shows it.",
    ),
    **dict.fromkeys(
        (
            "trainer.ray_wait_register_center_timeout",
            "trainer.use_legacy_worker_impl",
            "trainer.esi_redundant_time",
            "trainer.device",
            "trainer.remove_previous_ckpt_in_save",
            "actor_rollout_ref.nccl_timeout",
            "actor_rollout_ref.hybrid_engine",
            "ray_kwargs.",
            "ray_init.",
            "transfer_queue.",
            "reward_model.enable_resource_pool",
        ),
        _ROLLOUTS,
    ),
    **dict.fromkeys(
        (
            "reward_model.launch_reward_fn_async",
            "reward_model.use_reward_loop",
            "reward_model.num_workers",
            "reward_model.reward_loop_source",
            "reward_model.reward_manager",
            "reward_manager.source",
            "reward_manager.name",
            "reward_manager.module.",
            "reward_model.reward_kwargs.overlong_buffer_cfg.log",
            "reward_model.overlong_buffer.log",
            "data.reward_fn_key",
        ),
        _REWARD_WORKERS,
    ),
    "reward_model.": "There is no reward model, and it is not enabled.",
    "algorithm.filter_groups.": "Dynamic sampling is not enabled.",
    "algorithm.kl_ctrl.": "There is no KL term in the reward.",
    "algorithm.pf_ppo.": "It is not enabled.",
    "algorithm.kl_penalty": "There is no KL term in the reward.",
    f"{R}val_kwargs.": "An evaluation takes the likeliest token.",
    f"{R}multi_turn.": "multi_turn.enable is false.",
    f"{R}engine_kwargs.vllm": "It is not set.",
    f"{M}lora_alpha": "LoRA is not enabled.",
    f"{M}target_modules": "LoRA is not enabled.",
    f"{M}exclude_modules": "LoRA is not enabled.",
    f"{M}lora.": "LoRA is not enabled.",
    f"{M}mtp.": "Multi-token prediction is not enabled.",
    f"{R}mtp.": "Multi-token prediction is not enabled.",
    f"{R}mtp": "Multi-token prediction is not enabled.",
}
"""Reasons by key. A key that asks for something is answered before this table is used."""
