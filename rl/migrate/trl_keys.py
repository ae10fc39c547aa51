"""Keys of TRL and transformers that change nothing here, with the reason.

Source: TRL's GRPOConfig, ModelConfig and ScriptArguments (0.16 to 1.9), transformers' TrainingArguments.
"""

from __future__ import annotations

_LOGGING = "Every step is logged to metrics.jsonl, and trajectories are recorded."
_HUB = "A run writes model folders; upload them yourself."
_LOADER = "Files are read once by the driver."
_PARALLEL = "The model is split by tensor and pipeline parallelism, its optimizer by use_distributed_optimizer."
_KERNELS = "Kernels and compilation are chosen by the device."
_ENGINE = "vLLM always samples; the project starts it and fills it with weights."
_EVALUATION = "An evaluation scores every question of eval_data_path."
_CHECKPOINT = "A checkpoint is a Hugging Face folder with the optimizer beside it."
_PRECISION = "bf16 says it: main parameters are float32."
_LOSS = "It belongs to a loss that is not chosen."
_ROWS = "`rl preprocess` writes the rows; name columns and splits there."
_NOT_PEFT = "use_peft is not set."
_QUANTIZED = "The model is not quantized."

DROPPED: dict[str, str] = {
    **dict.fromkeys(
        (
            *("logging_dir", "logging_strategy", "logging_first_step", "logging_steps", "logging_nan_inf_filter"),
            *("log_level", "log_level_replica", "log_on_each_node", "disable_tqdm", "include_num_input_tokens_seen"),
            *("log_completions", "log_multimodal", "num_completions_to_print", "log_unique_prompts", "debug"),
            *("wandb_log_unique_prompts", "include_tokens_per_second", "skip_memory_metrics", "wandb_entity"),
            *("trackio_space_id", "trackio_bucket_id", "trackio_static_space_id", "wandb_run_group"),
        ),
        _LOGGING,
    ),
    **dict.fromkeys(
        (
            *("hub_model_id", "hub_strategy", "hub_token", "hub_private_repo", "hub_always_push", "hub_revision"),
            *("hub_model_revision", "push_to_hub_revision", "push_to_hub_model_id", "push_to_hub_organization"),
            *("push_to_hub_token", "overwrite_hub_revision", "log_completions_hub_repo"),
        ),
        _HUB,
    ),
    **dict.fromkeys(
        (
            *("dataloader_drop_last", "dataloader_num_workers", "dataloader_pin_memory", "dataloader_in_order"),
            *("dataloader_persistent_workers", "dataloader_prefetch_factor", "dataloader_multiprocessing_context"),
            *(
                "remove_unused_columns",
                "label_names",
                "group_by_length",
                "length_column_name",
                "train_sampling_strategy",
            ),
            *("dataset_num_proc", "dataset_streaming", "streaming", "ignore_data_skip", "ignore_columns"),
        ),
        _LOADER,
    ),
    **dict.fromkeys(
        (
            *("ddp_find_unused_parameters", "ddp_bucket_cap_mb", "ddp_broadcast_buffers", "ddp_static_graph"),
            *("ddp_backend", "ddp_timeout", "fsdp", "fsdp_config", "fsdp_min_num_params", "deepspeed", "local_rank"),
            *("fsdp_transformer_layer_cls_to_wrap", "accelerator_config", "parallelism_config", "accelerate_config"),
            *("ds3_gather_for_generation", "tp_size", "no_cuda", "use_cpu", "use_ipex", "use_mps_device"),
            *("average_tokens_across_devices", "split_batches", "mp_parameters", "full_determinism", "num_machines"),
            *("machine_rank", "main_process_ip", "main_process_port"),
        ),
        _PARALLEL,
    ),
    **dict.fromkeys(
        (
            *("torch_compile", "torch_compile_backend", "torch_compile_mode", "use_liger_kernel", "use_liger_loss"),
            *("liger_kernel_config", "attn_implementation", "tf32", "gradient_checkpointing_kwargs", "use_cache"),
            *("torch_empty_cache_steps", "jit_mode_eval", "pad_to_multiple_of", "neftune_noise_alpha"),
            *("optim_args", "optim_target_modules", "cast_lm_head_to_fp32", "disable_dropout", "torchdynamo"),
        ),
        _KERNELS,
    ),
    **dict.fromkeys(
        (
            *("use_vllm", "vllm_enable_sleep_mode", "vllm_model_impl", "vllm_server_base_url", "vllm_server_host"),
            *("vllm_server_port", "vllm_server_timeout", "vllm_group_port", "vllm_device", "vllm_dtype"),
            *("vllm_enable_prefix_caching", "cache_implementation", "use_transformers_paged", "vllm_server_backend"),
            *("use_transformers_continuous_batching", "transformers_continuous_batching_config"),
        ),
        _ENGINE,
    ),
    **dict.fromkeys(
        (
            *("do_train", "do_eval", "do_predict", "eval_delay", "prediction_loss_only", "eval_accumulation_steps"),
            *("per_device_eval_batch_size", "eval_do_concat_batches", "eval_use_gather_object", "include_for_metrics"),
            *("batch_eval_metrics", "include_inputs_for_metrics", "per_gpu_eval_batch_size", "evaluation_strategy"),
            *("load_best_model_at_end", "metric_for_best_model", "greater_is_better", "fp16_full_eval"),
            *("bf16_full_eval", "eval_packing", "test_split_size"),
        ),
        _EVALUATION,
    ),
    **dict.fromkeys(
        (
            *("save_only_model", "save_on_each_node", "save_safetensors", "enable_jit_checkpoint"),
            *("restore_callback_states_from_checkpoint", "overwrite_output_dir"),
        ),
        _CHECKPOINT,
    ),
    **dict.fromkeys(
        ("dtype", "torch_dtype", "fp16_backend", "fp16_opt_level", "half_precision_backend", "model_init_kwargs"),
        _PRECISION,
    ),
    **dict.fromkeys(
        (
            *("sapo_temperature_neg", "sapo_temperature_pos", "vespo_k_pos", "vespo_k_neg", "vespo_lambda_pos"),
            *("vespo_lambda_neg", "entropy_coef_min", "entropy_coef_max", "entropy_coef_delta", "entropy_target"),
            *("ref_model_mixup_alpha", "ref_model_sync_steps", "router_aux_loss_coef", "label_smoothing_factor"),
        ),
        _LOSS,
    ),
    **dict.fromkeys(
        ("dataset_config", "dataset_train_split", "dataset_test_split", "dataset_prompt_column", "dataset_text_field"),
        _ROWS,
    ),
    **dict.fromkeys(
        (
            *("lora_r", "lora_alpha", "lora_dropout", "lora_target_modules", "lora_target_parameters"),
            *("lora_modules_to_save", "lora_task_type", "use_rslora", "use_dora"),
        ),
        _NOT_PEFT,
    ),
    **dict.fromkeys(
        ("bnb_4bit_quant_type", "use_bnb_nested_quant", "bnb_4bit_quant_storage", "bnb_4bit_compute_dtype"), _QUANTIZED
    ),
    "use_peft": "It is false.",
    "output_dir": "It is not set.",
    "ignore_bias_buffers": "Buffers are not synchronized.",
    "auto_find_batch_size": "Samples are packed up to rl_config.max_packing_token_size tokens.",
    "ref_model_init_kwargs": "The reference is the actor's start.",
    "data_seed": "megatron_training.seed orders the prompts.",
    "ray_scope": "There is no search for hyperparameters.",
}

ASKED: dict[str, str] = {
    "generation_kwargs": "Training samples the whole distribution, without penalties or forced tokens.",
    "chat_template_kwargs": "The template is chosen by rl_config.prompt_type.",
    "chat_template_path": "The template is chosen by rl_config.prompt_type.",
    "chat_template": "The template is chosen by rl_config.prompt_type.",
    "system_prompt": "Set system_prompt in the dataset's YAML, for `rl preprocess`.",
    "vllm_structured_outputs_regex": "Turns are not forced into a pattern.",
    "vllm_guided_decoding_regex": "Turns are not forced into a pattern.",
    "sync_ref_model": "The reference stays the actor's start.",
    "use_adaptive_entropy": "The weight of the entropy bonus stays rl_config.entropy_coeff.",
    "off_policy_mask_threshold": "There is no such mask: rl_config.rollout_correction.rollout_rs excludes sequences.",
    "use_bias_correction_kl": "The KL term is not weighed by the ratio.",
    "push_to_hub": "A run writes model folders; upload them yourself.",
    "resume_from_checkpoint": "Checkpoints of transformers cannot be continued: load the model folder.",
    "load_in_4bit": "Models are not quantized.",
    "load_in_8bit": "Models are not quantized.",
    "model_revision": "Download the revision into a folder, and name that in actor_config.load.",
    "datasets": "Join the files into one, then run `rl preprocess`.",
    "dataset_mixture": "Join the files into one, then run `rl preprocess`.",
    "benchmarks": "Name evaluation sets in megatron_training.eval_data_path.",
    "callbacks": "Write it as a reward, an environment or an agent function.",
    "tools": "List the functions in a tool YAML, rl_config.tool_config_path (docs/tools.md).",
    "environment_factory": "Name the class in rl_config.environment (docs/environments.md).",
    "rollout_func": "Name a function in rl_config.rollout_function (docs/environments.md).",
    "past_index": "It has no meaning for rollouts.",
    "peft_config": "LoRA is not supported: all parameters are trained.",
}
"""Keys that are fine while they are not set, and what to do if they are."""
