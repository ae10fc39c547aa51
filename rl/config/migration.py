"""Keys of MindSpeed-RL that Turnwise does not have, and earlier names of its own, with the answer to each.

A key that would change nothing gives a warning. A key that cannot be ignored without changing results is an error.
docs/migrating.md shows the same table.

Source: the configuration of MindSpeed-RL (2026-04).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from rl.config.schema import Config, DatasetConfig


class Missing(StrEnum):
    """What other frameworks have and Turnwise does not."""

    LORA = "LoRA"
    EXPERTS = "mixture of experts"
    CONTEXT = "context parallelism"
    CRITIC = "a critic"
    DPO = "DPO"
    IMAGES = "images"
    REWARD_MODEL = "a reward model"


_INSTRUCTION = re.compile(r" (Remove (it|the section)|Set [\w.]+( or remove it)?)\.$")


@dataclass(slots=True, frozen=True)
class Migration:
    """The answer to one key."""

    advice: str
    """What to do, or why nothing needs to be done, in sentences."""
    accepted: tuple[Any, ...] | None = None
    """Values that describe what happens here anyway; None: every value. Any other value is an error."""
    moved_to: str = ""
    """The key with the same meaning here, which takes the value."""
    missing: Missing | None = None
    """What a value that is not accepted asks for."""

    @property
    def reason(self) -> str:
        """The advice without its last sentence, where that says to remove or set the key."""
        return _INSTRUCTION.sub("", self.advice)

    def accepts(self, value: Any) -> bool:
        """Whether the run may continue with this value of the key."""
        return self.accepted is None or value in self.accepted


_KERNELS = "Kernels are chosen by the device. Remove it."
_PACKING = "Samples are packed up to rl_config.max_packing_token_size tokens, whatever the batch. Remove it."
_DISPATCH = "Every rank gets its share of the batch directly. Remove it."
_CHECKPOINT = "A run starts from actor_config.load and continues with megatron_training.resume. Remove it."
_CRITIC = "There is no critic. Remove it."
_ASCEND = "It belongs to Ascend NPUs. Remove it."
_SCHEDULE = "The driver has one order of work, and it is repeatable. Remove it."
_TRACKER = "Here trackers are listed in megatron_training.trackers."
_TRACKER_FILES = "A tracker's files go into the run directory. Remove it."
_MULTIMODAL = "Models take text only. Remove it."
_EXPERTS = "Mixture-of-experts models are not supported. Remove it."
NO_ARCHITECTURE = "The architecture is read from actor_config.load. Remove it."
_LORA = "LoRA is not supported. Remove it."
_CONTEXT = "Context parallelism is not supported. Set 1 or remove it."
_PRECISION = "Main parameters are float32, and bfloat16 needs no loss scale. Remove it."
_OVERLAP = "Communication is scheduled by the project. Remove it."
_MASKS = "Samples are packed, and each attends only to itself. Remove it."
_DPO = "This project does not do DPO. Remove it."
_PLACEMENT = "The reference shares the actor's devices, and rewards run on the host's cores. Remove it."

_MEGATRON: dict[str, Migration] = {
    **dict.fromkeys(
        (
            "use_fused_rmsnorm",
            "use_mcore_models",
            "use_flash_attn",
            "no_masked_softmax_fusion",
            "attention_softmax_in_fp32",
            "no_gradient_accumulation_fusion",
            "use_fused_swiglu",
            "use_fused_rotary_pos_emb",
            "shape_order",
            "moe_grouped_gemm",
        ),
        Migration(_KERNELS),
    ),
    **dict.fromkeys(("no_pad_to_seq_lengths", "reset_attention_mask", "attention_mask_type"), Migration(_MASKS)),
    **dict.fromkeys(
        (
            "use_rotary_position_embeddings",
            "qk_layernorm",
            "norm_epsilon",
            "position_embedding_type",
            "rotary_base",
            "make_vocab_size_divisible_by",
        ),
        Migration(NO_ARCHITECTURE),
    ),
    **dict.fromkeys(("reuse_fp32_param", "initial_loss_scale"), Migration(_PRECISION)),
    **dict.fromkeys(
        ("overlap_grad_reduce", "moe_alltoall_overlap_comm", "moe_permutation_async_comm"), Migration(_OVERLAP)
    ),
    **dict.fromkeys(
        ("swap_optimizer", "swap_attention"),
        Migration("generate_config.offload_train_optimizer says what leaves the device. Remove it."),
    ),
    "log_interval": Migration("Every step is logged. Remove it."),
    "eval_iters": Migration("An evaluation runs all questions of megatron_training.eval_data_path. Remove it."),
    **dict.fromkeys(
        ("lora_r", "lora_alpha", "lora_fusion", "lora_target_modules", "lora_ckpt_filter"),
        Migration(_LORA, (), missing=Missing.LORA),
    ),
    **dict.fromkeys(
        ("dpo_loss_type", "is_pairwise_dataset", "ref_model", "refer_model_iter", "dpo_beta", "dpo_label_smoothing"),
        Migration(_DPO, (), missing=Missing.DPO),
    ),
    **dict.fromkeys(
        ("attention_dropout", "hidden_dropout"),
        Migration("Dropout would change log-probs between passes, so it is 0. Set 0 or remove it.", (0, 0.0)),
    ),
    "model": Migration("The architecture is read from actor_config.load. Name configs/model/* in `defaults` instead."),
    "stage": Migration(
        "GRPO and DAPO differ in rl_config (clip_higher_enable, token_level_loss, filter_groups_enable): set ray_grpo "
        "or ray_dapo, or remove it. PPO needs a critic, and this project does not do DPO.",
        ("ray_grpo", "ray_dapo"),
    ),
    **dict.fromkeys(
        ("tokenizer_type", "tokenizer_not_use_fast"),
        Migration("The tokenizer is always a Hugging Face folder. Remove it."),
    ),
    "init_method_std": Migration("Weights come from actor_config.load. Remove it."),
    "distributed_backend": Migration("It is NCCL on CUDA and gloo on CPU. Remove it."),
    "no_shared_storage": Migration("Data files are read by the driver only. Remove it."),
    "split": Migration("Evaluation prompts are files of their own, eval_data_path. Remove it."),
    "no_shuffle": Migration("Prompts are shuffled anew in each epoch, by megatron_training.seed. Remove it."),
    "full_shuffle_instruction_dataset": Migration("Prompts are shuffled in each epoch. Remove it."),
}

_ACTOR: dict[str, Migration] = {
    **dict.fromkeys(("model", "num_layers", "noop_layers"), Migration(NO_ARCHITECTURE)),
    **dict.fromkeys(("micro_batch_size",), Migration(_PACKING)),
    **dict.fromkeys(
        ("recompute_method", "recompute_num_layers"),
        Migration("All layers are recomputed or none, as actor_config.recompute_granularity says. Remove it."),
    ),
    "num_layer_list": Migration("Pipeline ranks have equally many layers. Remove it."),
    "gemm_gradient_accumulation_fusion": Migration(_KERNELS),
    "initial_loss_scale": Migration(_PRECISION),
    "attention_mask_type": Migration(_MASKS),
    "context_parallel_size": Migration(_CONTEXT, (1,), missing=Missing.CONTEXT),
    "context_parallel_algo": Migration(_CONTEXT),
    "expert_model_parallel_size": Migration(_EXPERTS, (1,), missing=Missing.EXPERTS),
    "moe_tp_extend_ep": Migration(_EXPERTS, (False,), missing=Missing.EXPERTS),
    **dict.fromkeys(
        ("finetune", "no_load_optim", "no_load_rng", "no_save_optim", "no_save_rng"), Migration(_CHECKPOINT)
    ),
    "save": Migration("Checkpoints go into the run directory, below megatron_training.output_dir. Remove it."),
}

_RL: dict[str, Migration] = {
    **dict.fromkeys(
        (
            "actor_forward_micro_batch_size",
            "ref_forward_micro_batch_size",
            "use_remove_padding",
            "use_dp_batch_balance",
            "use_dynamic_bsz",
            "ref_max_packing_token_size",
            "actor_max_packing_token_size",
            "update_max_packing_token_size",
            "dynamic_max_batch_size",
            "ref_dynamic_max_batch_size",
            "actor_dynamic_max_batch_size",
            "update_dynamic_max_batch_size",
        ),
        Migration(_PACKING),
    ),
    **dict.fromkeys(
        (
            "actor_rollout_dispatch_size",
            "actor_logprob_dispatch_size",
            "ref_dispatch_size",
            "reward_dispatch_size",
            "dynamic_sampling_dispatch_size",
            "adv_dispatch_size",
            "actor_update_dispatch_size",
            "kl_dispatch_size",
            "data_strategy",
            "transfer_queue_data_shard_num",
            "transfer_queue_data_shard_port_base",
            "zmq_communication",
        ),
        Migration(_DISPATCH),
    ),
    **dict.fromkeys(
        ("guarantee_order", "blocking", "num_samples_per_step", "log_max_throughput", "require_max_age_all_finished"),
        Migration(_SCHEDULE),
    ),
    **dict.fromkeys(("hccl_buffersize", "runtime_env_path"), Migration(_ASCEND)),
    **dict.fromkeys(
        ("num_cpus_for_local_task", "num_cpus_for_placement_group"),
        Migration("Cores of a worker are rl_config.actor_resource.num_cpus. Remove it."),
    ),
    **dict.fromkeys(
        ("cliprange_value", "critic_update_dispatch_size", "critic_value_dispatch_size"), Migration(_CRITIC)
    ),
    "critic_resource": Migration(_CRITIC, (None,), missing=Missing.CRITIC),
    **dict.fromkeys(("reference_resource", "reward_resource"), Migration(_PLACEMENT)),
    **dict.fromkeys(("beta", "lam"), Migration("No estimator here reads it. Remove it.")),
    "gamma": Migration("Tokens are not discounted, turns are by turn_reward_discount. Set 1.0 or remove it.", (1, 1.0)),
    "advantage_whiten": Migration("rl_config.adv_estimator says it: reinforce_plus_plus whitens. Remove it."),
    "shuffle_mini_batch": Migration("Mini-batches keep the order of the batch. Set false.", (False,)),
    "rule_reward": Migration("Rewards are functions (rl_config.verifier_function). Set true.", (True,)),
    "filter_groups_train_batch_size": Migration(
        "A batch is refilled to megatron_training.global_batch_size. Remove it."
    ),
    "partial_rollout_max_split": Migration(
        "rl_config.max_staleness lets trajectories go on over publishes. Set 1.", (1,)
    ),
    "integrated_mode_config": Migration("The reference always loads actor_config.load, when resuming too. Remove it."),
    **dict.fromkeys(("use_tensorboard", "use_wandb", "use_swanlab"), Migration(_TRACKER, (True, False))),
    **dict.fromkeys(
        ("wandb_project", "swanlab_project"), Migration("Here it is megatron_training.tracker_project, for all.")
    ),
    **dict.fromkeys(
        ("wandb_exp_name", "swanlab_exp_name"), Migration("Here it is megatron_training.tracker_run_name, for all.")
    ),
    "swanlab_mode": Migration(
        "Here it is megatron_training.trackers_offline.", ("", "cloud", "online", "local", "offline", "disabled")
    ),
    **dict.fromkeys(("wandb_save_dir", "swanlab_save_dir"), Migration(_TRACKER_FILES)),
    "async_engine": Migration("Engines are always asynchronous. Remove it."),
    "share_backbone": Migration("LoRA is not supported. Set false.", (False,), missing=Missing.LORA),
    "tp_split_expert": Migration(_EXPERTS),
    **dict.fromkeys(
        ("is_multimodal", "reuse_image_embeds", "colocate_actor_and_vit"),
        Migration(_MULTIMODAL, (False,), missing=Missing.IMAGES),
    ),
    "vit_resource": Migration(_MULTIMODAL, (None,), missing=Missing.IMAGES),
    **dict.fromkeys(("vit_forward_micro_batch_size", "actor_image_embeds_dispatch_size"), Migration(_MULTIMODAL)),
    **{
        f"{role}_resource.num_npus": Migration(
            f"Here it is rl_config.{role}_resource.num_devices.", moved_to=f"rl_config.{role}_resource.num_devices"
        )
        for role in ("actor", "rollout")
    },
}

_GENERATE: dict[str, Migration] = {
    "data_parallel_size": Migration("The number of engines follows from the devices of rollout_resource. Remove it."),
    "tokenizer_name_or_path": Migration("The engine uses megatron_training.tokenizer_name_or_path. Remove it."),
    "infer_pipeline_parallel_size": Migration("An engine is split by infer_tensor_parallel_size only. Set 1.", (1,)),
    "infer_expert_parallel_size": Migration(_EXPERTS, (1,), missing=Missing.EXPERTS),
    "enable_expert_parallel": Migration(_EXPERTS, (False,), missing=Missing.EXPERTS),
    **dict.fromkeys(("expert_map_path", "eplb_token_collects", "eplb_token_save_path"), Migration(_EXPERTS)),
    **dict.fromkeys(("limit_mm_image_per_prompt", "limit_mm_video_per_prompt"), Migration(_MULTIMODAL)),
    **dict.fromkeys(("torchair_graph", "ascend_scheduler_config_enabled"), Migration(_ASCEND)),
    "num_scheduler_steps": Migration("vLLM has no such setting any more. Remove it."),
    "sampling_config.logprobs": Migration("The log-prob of a sampled token is always returned. Remove it."),
    "sampling_config.detokenize": Migration("Text is decoded where it is needed. Remove it."),
    "sampling_config.seed": Migration("Seeds of requests follow from megatron_training.seed. Remove it."),
}

RENAMED = {
    "megatron_training.test_data_path": "megatron_training.eval_data_path",
    "megatron_training.test_freq": "megatron_training.eval_interval",
    "megatron_training.test_before_train": "megatron_training.eval_before_train",
    "megatron_training.test_after_train": "megatron_training.eval_after_train",
}
"""Turnwise's own earlier keys, with their present names. Either name replaces a value that an earlier file gave."""

_BELONG_TO_ACTOR = (
    "lr",
    "min_lr",
    "lr_decay_style",
    "lr_warmup_fraction",
    "weight_decay",
    "clip_grad",
    "adam_beta1",
    "adam_beta2",
    "load",
    "tensor_model_parallel_size",
    "pipeline_model_parallel_size",
    "num_layers_per_virtual_pipeline_stage",
    "recompute_granularity",
)

MIGRATION: dict[str, Migration] = {
    **{f"megatron_training.{key}": entry for key, entry in (_ACTOR | _MEGATRON).items()},
    **{
        f"megatron_training.{key}": Migration(f"Here it is actor_config.{key}.", moved_to=f"actor_config.{key}")
        for key in _BELONG_TO_ACTOR
    },
    **{old: Migration(f"It is called {new} now.", moved_to=new) for old, new in RENAMED.items()},
    "megatron_training.save_total_limit": Migration(
        "Here it is megatron_training.max_checkpoints.", moved_to="megatron_training.max_checkpoints"
    ),
    **{f"actor_config.{key}": entry for key, entry in _ACTOR.items()},
    **{f"rl_config.{key}": entry for key, entry in _RL.items()},
    **{f"generate_config.{key}": entry for key, entry in _GENERATE.items()},
    "ref_config": Migration("The reference is the actor's start, actor_config.load. Remove the section."),
    "reward_config": Migration(
        "Rewards are functions (rl_config.verifier_function). Remove the section.", (), missing=Missing.REWARD_MODEL
    ),
    "critic_config": Migration(_CRITIC, (), missing=Missing.CRITIC),
}
"""By dotted path in `rl.config.schema.Config`."""

_WRITTEN = "Rows are stored as messages and rendered when the run starts. Remove it."

DATASET_MIGRATION: dict[str, Migration] = {
    **dict.fromkeys(
        (
            "handler_name",
            "tokenizer_type",
            "tokenizer_name_or_path",
            "tokenizer_not_use_fast",
            "vocab_file",
            "merge_file",
            "append_eod",
            "prompt_type_path",
            "pack",
            "neat_pack",
            "dataset_impl",
            "make_vocab_size_divisible_by",
            "pad_vocab_size_to",
            "placeholder_token",
            "reward_tokens",
            "json_keys",
            "split_sentences",
            "keep_newlines",
            "seq_length",
            "merge_group_keys",
        ),
        Migration(_WRITTEN),
    ),
    **dict.fromkeys(
        ("workers", "n_subs", "log_interval", "streaming", "overwrite_cache", "cache_dir", "script_data_dir"),
        Migration("Files are read once, without a cache. Remove it."),
    ),
    "test_size": Migration(
        "It is called eval_size now, and writes <output_prefix>_eval.parquet.", moved_to="eval_size"
    ),
    "interleave_probs": Migration("One dataset is one file; join files beforehand.", (None,)),
    "enable_thinking": Migration("The template decides it, rl_config.prompt_type. Remove it.", (False,)),
}
"""By key in `rl.config.schema.DatasetConfig`."""

MIGRATIONS: dict[type, dict[str, Migration]] = {Config: MIGRATION, DatasetConfig: DATASET_MIGRATION}
"""By the dataclass of the whole configuration."""
