"""The configuration: typed sections, the only home of defaults.

Sections and keys are MindSpeed-RL's where the thing exists here; new keys take the field's usual names. Each field is
followed by its meaning, unit and range. `rl.config.load` composes YAML into `Config`, `rl.config.validate` checks what
one field alone cannot.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from rl.config.correction import RolloutCorrection


class Device(StrEnum):
    """Where models run."""

    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"


class LrDecayStyle(StrEnum):
    """Learning-rate schedules of Megatron-Core."""

    CONSTANT = "constant"
    LINEAR = "linear"
    COSINE = "cosine"


class TruncateSide(StrEnum):
    """The part of a tool result that is kept."""

    LEFT = "left"
    RIGHT = "right"
    MIDDLE = "middle"


class KlPenalty(StrEnum):
    """Estimators of the divergence from the reference (http://joschu.net/blog/kl-approx.html)."""

    K1 = "k1"
    K2 = "k2"
    K3 = "k3"
    LOW_VAR_KL = "low_var_kl"


class KlControl(StrEnum):
    """How the weight of the KL term changes over the run."""

    FIXED = "fixed"
    ADAPTIVE = "adaptive"


class LossAggregation(StrEnum):
    """How the losses of tokens become one; the names are verl's, the formulas in `rl.algorithms.aggregation`."""

    TOKEN_MEAN = "token-mean"
    SEQ_MEAN_TOKEN_MEAN = "seq-mean-token-mean"
    SEQ_MEAN_TOKEN_SUM_NORM = "seq-mean-token-sum-norm"


@dataclass
class ModelConfig:
    """Architecture facts, from configs/model/*.yaml: for `validate` where the model folder is not at hand.

    A folder's own config.json is what training uses; where both are there they must agree.
    """

    model_type: str = ""
    """Family: llama, qwen2 or qwen3."""
    num_hidden_layers: int = 0
    """Decoder layers."""
    hidden_size: int = 0
    """Width of the residual stream."""
    intermediate_size: int = 0
    """Width of the gated MLP."""
    num_attention_heads: int = 0
    """Query heads."""
    num_key_value_heads: int = 0
    """Key-value heads; 0: as many as query heads."""
    head_dim: int | None = None
    """Size of one head; by default `hidden_size` / `num_attention_heads`."""
    vocab_size: int = 0
    """Rows of the embedding."""
    tie_word_embeddings: bool = False
    """The output layer is the embedding."""
    max_position_embeddings: int = 0
    """Longest context the model was trained for, tokens."""


@dataclass
class MegatronTraining:
    """The run as a whole."""

    tokenizer_name_or_path: str | None = None
    """Tokenizer folder; by default `actor_config.load`."""
    data_path: str = ""
    """Training prompts: a parquet or jsonl file that `rl preprocess` wrote; for `rl sft` the demonstrations."""
    test_data_path: str | None = None
    """Held-out prompts of the same form, for evaluation."""
    global_batch_size: int = 32
    """Prompts of one step (demonstrations, for `rl sft`), at least 1."""
    train_iters: int = 100
    """Steps of the run, at least 0."""
    total_epochs: int | None = None
    """Times that each prompt is used, those in groups that dynamic sampling drops included; where given, the run ends
    at the earlier of this and `train_iters`."""
    seq_length: int | None = None
    """Longest demonstration of `rl sft`, tokens; by default `generate_config.max_model_len`. Not read by `rl train`."""
    save_interval: int = 100
    """Steps between checkpoints, at least 1; the last step always saves."""
    max_checkpoints: int | None = None
    """Checkpoints of this run to keep, the newest, at least 1; by default all."""
    test_freq: int = 0
    """Steps between evaluations; 0 evaluates only where `test_before_train` and `test_after_train` say so."""
    test_before_train: bool = True
    """Evaluate before the first step, where `test_data_path` is given."""
    test_after_train: bool = True
    """Evaluate after the last step, where `test_data_path` is given."""
    bf16: bool = True
    """Compute in bfloat16 with float32 main parameters; false computes in float32."""
    use_distributed_optimizer: bool = True
    """Shard main parameters and Adam's moments over the data-parallel ranks."""
    sequence_parallel: bool = False
    """Split activations over the tensor-parallel ranks between layers; needs tensor parallelism above 1."""
    seed: int = 1234
    """Of data order, sampling and initialization."""
    output_dir: str = "runs"
    """Where run directories are made."""
    run_name: str | None = None
    """Name of the run directory; by default the config's name and the time. An existing one is never overwritten."""
    resume: str | None = None
    """A run directory to go on from (its newest checkpoint), or one checkpoint folder."""
    device: Device = Device.AUTO
    """auto takes CUDA where there is one."""
    dataset_additional_keys: list[str] = field(default_factory=list)
    """Extra columns a row must have."""


@dataclass
class ActorConfig:
    """The policy, its parallel layout and its optimizer."""

    load: str = ""
    """Hugging Face model folder: config.json, safetensors (sharded or not), tokenizer."""
    tensor_model_parallel_size: int = 1
    """Ranks that share each layer; must divide the attention heads and the key-value heads."""
    pipeline_model_parallel_size: int = 1
    """Ranks that share the layers; must divide their number."""
    num_layers_per_virtual_pipeline_stage: int | None = None
    """Layers of a chunk, where a pipeline rank runs several by turns (the interleaved schedule, which idles less);
    must divide the rank's layers. By default a rank has one chunk."""
    recompute_granularity: str = "none"
    """`full` recomputes each layer's activations in the backward pass, `none` keeps them."""
    lr: float = 1e-6
    """Peak learning rate, above 0."""
    min_lr: float = 0.0
    """Learning rate at the end of the decay."""
    lr_decay_style: LrDecayStyle = LrDecayStyle.CONSTANT
    """From `lr` after the warm-up to `min_lr` at the run's last step. All optimizer steps of a step have the same."""
    lr_warmup_fraction: float = 0.0
    """Share of the run's steps with linearly rising learning rate, 0 to 1."""
    weight_decay: float = 0.01
    """Decoupled, not applied to norms and biases."""
    clip_grad: float = 1.0
    """Largest global gradient norm; 0 does not clip."""
    adam_beta1: float = 0.9
    """Decay of the first moment, 0 to below 1."""
    adam_beta2: float = 0.95
    """Decay of the second moment, 0 to below 1."""
    adam_eps: float = 1e-8
    """Added to the root of the second moment, above 0."""


@dataclass
class ResourceConfig:
    """Devices of one role."""

    num_devices: int = 1
    """Accelerators, or on CPU processes."""
    num_cpus: int | None = None
    """Cores of one process on CPU; by default all of the machine's."""


@dataclass
class RLConfig:
    """The algorithm, the agent loop and the rewards."""

    # Sampling and batch
    n_samples_per_prompt: int = 8
    """Trajectories of a group; at least 2 for group_norm."""
    mini_batch_size: int | None = None
    """Prompts of one optimizer step at most; those left to train on are divided evenly. By default `global_batch_size`
    (on-policy: one optimizer step per step). Not read by `rl sft`."""
    epochs: int = 1
    """Passes over a batch, at least 1. Not read by `rl sft`."""
    max_prompt_length: int = 2048
    """Tokens; longer prompts are dropped and counted."""
    max_packing_token_size: int = 4096
    """Tokens of one micro-batch; samples are packed without padding up to it. A longer sample stands alone."""
    share_prompt_prefix: bool | None = None
    """Hold the prompt of a group once in a micro-batch instead of once for each of its trajectories; by default on CPU
    alone, since the packed attention kernel of CUDA knows no shared prefixes."""
    # Advantages and loss
    adv_estimator: str = "group_norm"
    """Name in `rl.algorithms.advantages.ADVANTAGES`."""
    norm_adv_by_std: bool = True
    """Divide by the group's standard deviation; false is Dr. GRPO's (arXiv:2503.20783)."""
    turn_credit_coef: float = 0.0
    """Weight of the advantages of single turns (tool rewards, `turn_scores` of a reward function) beside the
    trajectory's; 0 leaves rewards of turns out."""
    turn_reward_discount: float = 1.0
    """What a turn's reward is worth one turn earlier, 0 (it reaches its own turn alone) to 1."""
    policy_loss: str = "clip"
    """Name in `rl.algorithms.losses.LOSSES`."""
    clip_ratio: float = 0.2
    """Both sides of the clip range, unless `clip_higher_enable`."""
    clip_higher_enable: bool = False
    """Use `clip_ratio_low` and `clip_ratio_high` (DAPO, arXiv:2503.14476)."""
    clip_ratio_low: float = 0.2
    """Below 1 by at most this, above 0 and at most 1."""
    clip_ratio_high: float = 0.28
    """Above 1 by at most this, above 0."""
    clip_ratio_c: float | None = None
    """Bound of the ratio of tokens with a negative advantage (dual clip), at least 1; by default there is none."""
    token_level_loss: bool = True
    """true: mean over all tokens of the mini-batch; false: mean over trajectories of each one's token mean."""
    loss_agg_mode: LossAggregation | None = None
    """Takes the place of `token_level_loss` where it is set; seq-mean-token-sum-norm is the sum over tokens by
    `loss_scale_factor`, mean over trajectories (Dr. GRPO)."""
    loss_scale_factor: float | None = None
    """Constant of seq-mean-token-sum-norm, tokens, above 0; by default those of the longest response:
    `max_total_response_length`, or without `multi_turn_enable` the one turn's `max_tokens`."""
    entropy_coeff: float = 0.0
    """Weight of the entropy bonus."""
    init_kl_coef: float = 0.0
    """Weight of the KL term at the start of the run; 0 builds no reference."""
    kl_penalty: KlPenalty = KlPenalty.LOW_VAR_KL
    """low_var_kl is k3."""
    use_kl_in_reward: bool = False
    """Take the KL term off the rewards instead of adding it to the loss."""
    kl_ctrl_type: KlControl = KlControl.FIXED
    """adaptive steers the weight so that the divergence comes to `kl_target`."""
    kl_target: float = 0.1
    """Divergence per token, nats, above 0."""
    kl_horizon: float = 10000.0
    """Trajectories over which the weight follows, above 0."""
    # Off-policy correction and bad numbers
    rollout_correction: RolloutCorrection = field(default_factory=RolloutCorrection)
    """The gap between the engine's log-probs and the actor's."""
    max_skipped_steps: int = 3
    """Steps in a row with an optimizer step skipped for NaN or Inf, or in which every reward failed, after which the
    run stops, at least 1."""
    # Dynamic sampling and length shaping (DAPO)
    filter_groups_enable: bool = False
    """Refill the batch until `global_batch_size` groups have differing scores."""
    filter_groups_metric: str = "score"
    """`score` or a reward's name: what must differ within a group, among the trajectories that have it."""
    filter_groups_max_batches: int = 10
    """Times `global_batch_size` prompts to try at most for one batch; 0 or less: as many as the dataset has."""
    overlong_buffer_enable: bool = False
    """Punish responses near `rollout_max_tokens` linearly (DAPO, section 3.4)."""
    rollout_max_tokens: int = 2048
    """Tokens of the response from which the punishment is full."""
    overlong_buffer: int = 0
    """Tokens before `rollout_max_tokens` where it begins."""
    overlong_buffer_penalty_factor: float = 1.0
    """Score taken off where the punishment is full, at least 0."""
    overlong_filter_enable: bool = False
    """Leave trajectories out that the token budget cut off, of means and loss alike (DAPO, section 3.4)."""
    # Rewards
    verifier_function: list[str] = field(default_factory=lambda: ["base_acc"])
    """Rewards: registered names, `package.module:function` or `path/file.py:function`."""
    verifier_weight: list[float] = field(default_factory=lambda: [1.0])
    """A weight for each."""
    verifier_kwargs: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Keyword arguments by reward name; those of a reward that is not chosen have no effect, null takes them out."""
    verifier_timeout: float = 30.0
    """Deadline of one reward call, seconds."""
    verifier_parallel: int = 4
    """Calls at once of each reward that runs in processes of its own (all but text comparisons), at least 1. Processes
    start as they are needed. A call of more than two seconds gives up its place, up to four times as many processes."""
    # Multi-turn
    multi_turn_enable: bool = False
    """Run turns until an answer, with the tools of `tool_config_path`, an `environment`, or a `rollout_function`; needs
    `async_engine`."""
    async_engine: bool = True
    """Multi-turn needs it; the only engine here."""
    tool_config_path: str | None = None
    """Tool YAML."""
    environment: str = "tools"
    """What answers turns without a tool call: `tools` ends the trajectory there; or `package.module:Class` or
    `path/file.py:Class` (docs/environments.md)."""
    environment_kwargs: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of the environment's class."""
    rollout_function: str = "agent_loop"
    """What leads a rollout: `agent_loop` lets policy and environment take turns; or `package.module:function` or
    `path/file.py:function`."""
    rollout_function_kwargs: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of the rollout function."""
    max_tool_calls: int = 1
    """Executed tool calls in a trajectory; then one final turn to answer."""
    max_parallel_calls: int = 1
    """Calls executed of one turn, all at once; further ones get an error result and are not counted."""
    max_total_response_length: int = 2048
    """Tokens of all turns and of what stands between them (tool results, headers), each counted once. Without
    `multi_turn_enable` the one turn has `generate_config.sampling_config.max_tokens`."""
    max_tool_response_length: int = 256
    """Tokens of one tool result."""
    tool_response_truncate_side: TruncateSide = TruncateSide.MIDDLE
    """The part that is kept."""
    tool_parser_format: str = "hermes"
    """How calls are written: name in `rl.chat.parsers.PARSERS`, or `vllm:<name>` for a parser of vLLM."""
    final_answer_reserve: int = 0
    """Tokens kept back from earlier turns for the last answer."""
    prompt_type: str = "empty"
    """Template in `rl.chat.templates.TEMPLATES`; `empty` is the tokenizer's own."""
    trajectory_timeout: float = 600.0
    """Deadline of one trajectory, seconds."""
    max_tool_unavailable_share: float = 0.5
    """Share of a step's trajectories that may end in `tool_unavailable` before the run fails."""
    # Placement
    use_integrated_worker: bool = True
    """Actor and rollout on the same devices, taking turns; false: apart."""
    actor_resource: ResourceConfig = field(default_factory=ResourceConfig)
    """Devices of the actor (and the reference)."""
    rollout_resource: ResourceConfig = field(default_factory=ResourceConfig)
    """Devices of the rollout; with `use_integrated_worker` those of the actor."""
    ray_address: str | None = None
    """Address of a running Ray cluster; by default one is started on this machine for the run."""
    # Trackers
    use_tensorboard: bool = True
    """Write TensorBoard events into the run directory."""
    use_wandb: bool = False
    """Log to Weights & Biases as well."""
    wandb_project: str = ""
    """Project of W&B; by default turnwise."""
    wandb_exp_name: str = ""
    """Run name in W&B; by default that of the run directory."""


@dataclass
class SamplingConfig:
    """How training rollouts are sampled."""

    temperature: float = 1.0
    """Above 0."""
    top_p: float = 1.0
    """1: log-probs must be of the distribution sampled from, so nothing may be cut off."""
    top_k: int = -1
    """-1, for the same reason."""
    min_p: float = 0.0
    """0, for the same reason."""
    max_tokens: int = 1024
    """New tokens of one turn."""
    logprobs: int = 1
    """Accepted for MindSpeed-RL's YAML; the sampled token's log-prob is always returned."""
    detokenize: bool = False
    """Accepted for MindSpeed-RL's YAML; text is decoded where it is needed."""


@dataclass
class EvalSamplingConfig:
    """How held-out prompts are sampled."""

    temperature: float = 0.0
    """0 is greedy."""
    top_p: float = 1.0
    """Smallest set of tokens with this share of the probability, above 0 and at most 1."""
    top_k: int = -1
    """The likeliest tokens to choose from; -1: all."""
    num_samples: int = 1
    """Trajectories of a prompt; the k of mean@k."""


@dataclass
class GenerateConfig:
    """The vLLM engines."""

    infer_tensor_parallel_size: int = 1
    """Devices of one engine."""
    max_model_len: int = 4096
    """Tokens of prompt and response."""
    max_num_seqs: int = 256
    """Requests in one forward pass."""
    max_num_batched_tokens: int = 8192
    """Tokens in one forward pass."""
    dtype: str = "bfloat16"
    """bfloat16 or float32."""
    gpu_memory_utilization: float = 0.5
    """Share of an accelerator's memory; not used on CPU."""
    kv_cache_memory_gb: float = 2.0
    """GiB of key-value cache of one engine on CPU; not used on CUDA."""
    enforce_eager: bool | None = None
    """No compilation and no CUDA graphs; by default on CPU alone, since sampling on CUDA is far slower without them."""
    enable_prefix_caching: bool = True
    """Keep keys and values of a trajectory from turn to turn."""
    trust_remote_code: bool = False
    """Let vLLM run code that comes with the model."""
    offload_train_param: bool = True
    """Move the actor's parameters to the host while engines on the same accelerators generate."""
    offload_train_optimizer: bool = True
    """The same for main parameters and Adam's moments."""
    offload_train_grad: bool = True
    """The same for gradient buffers, which are freed."""
    sampling_config: SamplingConfig = field(default_factory=SamplingConfig)
    eval_sampling_config: EvalSamplingConfig = field(default_factory=EvalSamplingConfig)


@dataclass
class Config:
    """Everything a run needs."""

    model: ModelConfig = field(default_factory=ModelConfig)
    megatron_training: MegatronTraining = field(default_factory=MegatronTraining)
    actor_config: ActorConfig = field(default_factory=ActorConfig)
    rl_config: RLConfig = field(default_factory=RLConfig)
    generate_config: GenerateConfig = field(default_factory=GenerateConfig)


@dataclass
class DatasetConfig:
    """One dataset to bring into rows of messages, ground truth and data source (configs/datasets/*.yaml)."""

    input: str = ""
    """A jsonl, json or parquet file, or a folder of them."""
    output_prefix: str = ""
    """Path of the file to write, without `.parquet`."""
    map_keys: dict[str, str] = field(default_factory=lambda: {"prompt": "prompt", "response": "response"})
    """Column for each part: `prompt` (text or messages), `query` (appended to it), `response` (the ground truth; dots
    reach into records, as in `reward_model.ground_truth`), `system` and `data_source`; an empty name or null leaves it
    out."""
    data_source: str = ""
    """Source of rows that have no column for it; by default the stem of the input."""
    dataset_additional_keys: list[str] = field(default_factory=list)
    """Further columns to keep, for rewards; lists and records are stored as JSON text."""
    drop_duplicates: bool = False
    """Keep one of the rows with equal messages, ground truth and source."""
    skip_bad_rows: bool = False
    """Leave out the rows that cannot be used, and count them; else the first of them ends it."""
    prompt_type: str = "empty"
    """Template in `rl.chat.templates.TEMPLATES` that the rows are meant for. It is rendered at run time, from
    `rl_config.prompt_type`; here it is recorded with the rows, and a run with another one warns."""
    seed: int = 1234
    """Of the shuffle before the split."""
    test_size: int = 0
    """Rows to hold out into `<output_prefix>_test.parquet`; 0 splits nothing and keeps the order."""
