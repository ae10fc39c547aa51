"""The configuration of a run: typed sections, the only home of keys, defaults and ranges.

A key is a line, and below it a string that says its meaning and unit. Sections and keys have MindSpeed-RL's names where
the thing exists here; new keys take the field's usual names. `rl.config.load` composes YAML into `Config`, and
`rl.config.validate` checks what one key alone cannot.
"""

from __future__ import annotations

from dataclasses import field
from typing import Any, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from rl.config.correction import RolloutCorrection
from rl.config.dataset import DatasetConfig as DatasetConfig
from rl.config.early_warning import EarlyWarning
from rl.config.generate import GenerateConfig
from rl.config.kinds import (
    CHECKED,
    Beta,
    Bound,
    CodeName,
    Count,
    Device,
    EvaluationSets,
    InputPath,
    KlControl,
    KlPenalty,
    LossAggregation,
    LrDecayStyle,
    OutputPath,
    PositiveShare,
    Ranks,
    ResumeMode,
    Seconds,
    Section,
    Seed,
    Share,
    SignedWeight,
    StalenessStrategy,
    Steps,
    StepsOrZero,
    Tokens,
    TokensOrZero,
    TrackerName,
    TruncateSide,
    Weight,
)
from rl.config.serve import ServeConfig


@dataclass(config=CHECKED)
class ModelConfig(Section):
    """Architecture facts from configs/model/*.yaml, for `validate` without the model folder.

    Training reads the folder's own config.json; if both exist, they must agree.
    """

    model_type: str = ""
    """Family: llama, qwen2 or qwen3."""
    num_hidden_layers: int = Field(default=0, ge=0, le=10_000)
    """Decoder layers."""
    hidden_size: int = Field(default=0, ge=0, le=1_000_000)
    """Width of the residual stream."""
    intermediate_size: int = Field(default=0, ge=0, le=10_000_000)
    """Width of the gated MLP."""
    num_attention_heads: int = Field(default=0, ge=0, le=100_000)
    """Query heads."""
    num_key_value_heads: int = Field(default=0, ge=0, le=100_000)
    """Key-value heads; 0: as many as query heads."""
    head_dim: int | None = Field(default=None, ge=1, le=100_000)
    """Size of one head; by default `hidden_size` / `num_attention_heads`."""
    vocab_size: int = Field(default=0, ge=0, le=100_000_000)
    """Rows of the embedding."""
    tie_word_embeddings: bool = False
    """The output layer is the embedding."""
    max_position_embeddings: int = Field(default=0, ge=0, le=1_000_000_000)
    """Longest context the model was trained for, tokens."""


@dataclass(config=CHECKED)
class MegatronTraining(Section):
    """The run as a whole."""

    tokenizer_name_or_path: InputPath | None = None
    """Tokenizer folder; by default `actor_config.load`."""
    data_path: InputPath = ""
    """Training prompts: a file of any form in docs/data.md; for `rl sft` the demonstrations."""
    eval_data_path: EvaluationSets = field(default_factory=dict)
    """Evaluation sets: a mapping of names to files of the same form, `{math: a.parquet, search: b.parquet}`. A path
    alone is one set, named after the file."""
    global_batch_size: Count = 32
    """Prompts of one step (demonstrations, for `rl sft`)."""
    train_iters: StepsOrZero = 100
    """Steps of the run."""
    total_epochs: Count | None = None
    """How often to use each prompt, including prompts whose groups dynamic sampling drops. The run ends after this or
    after `train_iters`, whichever comes first."""
    seq_length: int | None = Field(default=None, ge=2, le=10_000_000)
    """Longest demonstration of `rl sft`, tokens; by default `generate_config.max_model_len`. Not read by `rl train`."""
    save_interval: Steps = 100
    """Steps between checkpoints; the last step always saves."""
    max_checkpoints: Count | None = None
    """Newest checkpoints of this run to keep; by default all."""
    best_metric: str | None = None
    """Metric whose best checkpoint is kept in addition to `max_checkpoints`, such as `val-core/all/acc/mean@1`. The
    largest value is best; put `-` before the name if the smallest is. Only steps with a checkpoint count."""
    record_tokens_every: StepsOrZero = 10
    """Steps between recordings of every token with its log-probs (`tokens/` of the run directory), for `rl explain`,
    `rl view --tokens` and `replay`; the first step is recorded too, 0 records none. A recorded step takes one more
    forward pass. Not read by `rl sft`."""
    eval_interval: StepsOrZero = 0
    """Steps between evaluations; 0 evaluates only as `eval_before_train` and `eval_after_train` say."""
    eval_before_train: bool = True
    """Evaluate before the first step, where `eval_data_path` is given."""
    eval_after_train: bool = True
    """Evaluate after the last step, where `eval_data_path` is given."""
    bf16: bool = True
    """Compute in bfloat16 with float32 main parameters; false computes in float32."""
    use_distributed_optimizer: bool = True
    """Shard main parameters and Adam's moments over the data-parallel ranks."""
    sequence_parallel: bool = False
    """Split activations over the tensor-parallel ranks between layers; needs tensor parallelism above 1."""
    seed: Seed = 1234
    """Seed of data order, sampling and initialization."""
    output_dir: OutputPath = "runs"
    """Folder of the run directories."""
    run_name: str | None = None
    """Name of the run directory; by default the config's name and the time. An existing one is never overwritten."""
    resume: InputPath | None = None
    """Run directory to continue from (its newest checkpoint), or one checkpoint folder."""
    resume_mode: ResumeMode = ResumeMode.PATH
    """`path` continues from `resume`, if that is set. `auto` continues the run of this `run_name` from its newest
    checkpoint that is not damaged; without one it does as `path`. `never` starts anew."""
    profile_step: Steps | None = None
    """Step to profile, from 1. `profile/` of the run gets a trace and a table of operators for each rank, and with
    py-spy a flame graph of each process."""
    rollout_only: bool = False
    """Sample, score and record every step without training: the weights stay those of `actor_config.load`."""
    replay: InputPath | None = None
    """Train on what a run recorded instead of sampling: its directory, or the tokens file of one step. No engine,
    tool, reward or evaluation runs."""
    early_warning: EarlyWarning = field(default_factory=EarlyWarning)
    """Thresholds that warn or end the run (docs/warnings.md)."""
    device: Device = Device.AUTO
    """`auto` takes CUDA where there is a device."""
    dataset_additional_keys: list[str] = field(default_factory=list)
    """Extra columns a row must have."""
    # Trackers
    trackers: list[TrackerName] = field(default_factory=lambda: [TrackerName.TENSORBOARD])
    """Where metrics go besides metrics.jsonl: tensorboard, wandb, mlflow, swanlab, trackio."""
    tracker_project: str = ""
    """Project in the trackers; by default turnwise."""
    tracker_run_name: str = ""
    """Name of the run in the trackers; by default that of the run directory."""
    trackers_offline: bool = False
    """W&B and SwanLab write into the run directory and send nothing; their `sync` command sends it later."""
    tracker_trajectories: int = Field(default=4, ge=0, le=100)
    """Trajectories in the table that trackers get after the first step, every tenth, and each evaluation; 0: none."""
    prometheus_port: int | None = Field(default=None, ge=0, le=65535)
    """Port on which the driver serves `GET /metrics` for Prometheus; 0 takes a free one and logs it. By default there
    is no server."""
    prometheus_host: str = "127.0.0.1"
    """Address of that server; 0.0.0.0 lets other machines read the metrics."""


@dataclass(config=CHECKED)
class ActorConfig(Section):
    """The policy, its parallel layout and its optimizer."""

    load: InputPath = ""
    """Hugging Face model folder: config.json, safetensors (sharded or not), tokenizer."""
    tensor_model_parallel_size: Ranks = 1
    """Ranks that share each layer; must divide the attention heads and the key-value heads."""
    pipeline_model_parallel_size: Ranks = 1
    """Ranks that share the layers; must divide their number."""
    num_layers_per_virtual_pipeline_stage: Ranks | None = None
    """Layers of a chunk, if a pipeline rank has several (the interleaved schedule, which idles less). Must divide
    the rank's layers. By default a rank has one chunk."""
    recompute_granularity: Literal["none", "full"] = "none"
    """`full` recomputes each layer's activations in the backward pass, `none` keeps them."""
    lr: PositiveShare = 1e-6
    """Peak learning rate."""
    min_lr: Share = 0.0
    """Learning rate at the end of the decay."""
    lr_decay_style: LrDecayStyle = LrDecayStyle.CONSTANT
    """Schedule from `lr` after the warm-up to `min_lr` at the run's last step. All optimizer steps of a step have the
    same learning rate."""
    lr_warmup_fraction: Share = 0.0
    """Share of the run's steps in which the learning rate rises linearly."""
    weight_decay: float = Field(default=0.01, ge=0, le=10)
    """Decoupled weight decay; norms and biases have none."""
    clip_grad: float = Field(default=1.0, ge=0, le=1_000_000)
    """Largest global gradient norm; 0 does not clip."""
    adam_beta1: Beta = 0.9
    """Decay of the first moment."""
    adam_beta2: Beta = 0.95
    """Decay of the second moment."""
    adam_eps: PositiveShare = 1e-8
    """Added to the root of the second moment."""


@dataclass(config=CHECKED)
class ResourceConfig(Section):
    """Devices of one role."""

    num_devices: int = Field(default=1, ge=1, le=100_000)
    """Accelerators; on CPU, processes."""
    num_cpus: Ranks | None = None
    """Cores of one process on CPU; by default all of the machine."""


@dataclass(config=CHECKED)
class RLConfig(Section):
    """The algorithm, the agent loop and the rewards."""

    # Sampling and batch
    n_samples_per_prompt: Count = 8
    """Trajectories of a prompt; group_norm needs at least 2."""
    mini_batch_size: Count | None = None
    """Largest number of prompts in one optimizer step; the prompts of a step are divided evenly. By default
    `global_batch_size` (on-policy: one optimizer step per step). Not read by `rl sft`."""
    epochs: Count = 1
    """Passes over a batch. Not read by `rl sft`."""
    max_prompt_length: Tokens = 2048
    """Tokens of a prompt; longer prompts are dropped and counted."""
    max_packing_token_size: int = Field(default=4096, ge=2, le=10_000_000)
    """Tokens of one micro-batch; samples are packed without padding up to it. A longer sample gets its own."""
    share_prompt_prefix: bool | None = None
    """Store the prompt of a group, and the turns that several sequences of a trajectory begin with, once in a
    micro-batch instead of once for each sequence. By default only on CPU: the packed attention kernel of CUDA has no
    shared prefixes."""
    # Advantages and loss
    adv_estimator: str = "group_norm"
    """Name in `rl.algorithms.advantages.ADVANTAGES`."""
    norm_adv_by_std: bool = True
    """Divide by the group's standard deviation; false is Dr. GRPO's (arXiv:2503.20783)."""
    turn_credit_coef: Weight = 0.0
    """Weight of the advantages of single turns (tool rewards, `turn_scores` of a reward function), added to the
    trajectory's; 0 ignores rewards of turns."""
    turn_reward_discount: Share = 1.0
    """Discount of a turn's reward for each turn before it; with 0 it counts for its own turn alone."""
    policy_loss: str = "clip"
    """Name in `rl.algorithms.losses.LOSSES`."""
    clip_ratio: PositiveShare = 0.2
    """Both sides of the clip range, unless `clip_higher_enable`."""
    clip_higher_enable: bool = False
    """Use `clip_ratio_low` and `clip_ratio_high` (DAPO, arXiv:2503.14476)."""
    clip_ratio_low: PositiveShare = 0.2
    """The ratio is clipped below 1 minus this."""
    clip_ratio_high: Bound = 0.28
    """The ratio is clipped above 1 plus this."""
    clip_ratio_c: float | None = Field(default=None, ge=1, le=1_000_000)
    """Bound of the ratio of tokens with a negative advantage (dual clip); by default there is none."""
    token_level_loss: bool = True
    """true: mean over all tokens of the mini-batch; false: mean over trajectories of their token means."""
    loss_agg_mode: LossAggregation | None = None
    """Replaces `token_level_loss` where it is set; seq-mean-token-sum-norm is the mean over trajectories of the sum
    over tokens, divided by `loss_scale_factor` (Dr. GRPO)."""
    loss_scale_factor: float | None = Field(default=None, gt=0, le=1_000_000_000)
    """Constant of seq-mean-token-sum-norm, tokens; by default the longest response: `max_total_response_length`, or
    without `multi_turn_enable` the `max_tokens` of the only turn."""
    entropy_coeff: Weight = 0.0
    """Weight of the entropy bonus."""
    init_kl_coef: Weight = 0.0
    """Weight of the KL term at the start of the run; 0 builds no reference."""
    kl_penalty: KlPenalty = KlPenalty.LOW_VAR_KL
    """low_var_kl is k3."""
    use_kl_in_reward: bool = False
    """Subtract the KL term from the rewards instead of adding it to the loss."""
    kl_ctrl_type: KlControl = KlControl.FIXED
    """`adaptive` changes the weight so that the divergence approaches `kl_target`."""
    kl_target: float = Field(default=0.1, gt=0, le=1_000)
    """Divergence per token, nats."""
    kl_horizon: float = Field(default=10000.0, gt=0, le=1_000_000_000)
    """Trajectories over which the weight adapts."""
    # Off-policy correction and bad numbers
    rollout_correction: RolloutCorrection = field(default_factory=RolloutCorrection)
    """What to do about the gap between the engine's log-probs and the actor's."""
    max_skipped_steps: Steps = 3
    """The run fails after this many steps in a row in which NaN or Inf skipped an optimizer step, or every reward
    failed."""
    # Rollouts that run ahead
    max_staleness: StepsOrZero = 0
    """Steps that a group may lag behind the weights that train on it. The groups of as many further steps are sampled
    meanwhile. 0: the update waits for all rollouts, and the rollouts for the update."""
    staleness_strategy: StalenessStrategy = StalenessStrategy.WAIT
    """What to do with a group that reaches `max_staleness` before it is complete: `wait` for it, or `drop` it once
    others fill the batch. Dropping loses long trajectories."""
    partial_rollout: bool = True
    """A trajectory that a publish interrupts goes on under the new weights; false: the publish waits for its end."""
    over_sample_rate: Share = 0.0
    """Groups to sample beyond what a step needs, as a share of `global_batch_size`. The step takes those that are
    complete; the others go on, and lag behind by one step more."""
    # Dynamic sampling and length shaping (DAPO)
    filter_groups_enable: bool = False
    """Refill the batch until `global_batch_size` groups have scores that differ."""
    filter_groups_metric: str = "score"
    """`score` or a reward's name: what must differ within a group, among the trajectories that have it."""
    filter_groups_max_batches: int = Field(default=10, ge=-1_000_000, le=1_000_000)
    """Most prompts to try for one batch, in units of `global_batch_size`; 0 or less: as many as the dataset has."""
    overlong_buffer_enable: bool = False
    """Penalize responses near `rollout_max_tokens` linearly (DAPO, section 3.4)."""
    rollout_max_tokens: Tokens = 2048
    """Length of a response from which the penalty is full, tokens."""
    overlong_buffer: TokensOrZero = 0
    """Tokens before `rollout_max_tokens` where the penalty begins."""
    overlong_buffer_penalty_factor: Weight = 1.0
    """Score subtracted where the penalty is full."""
    overlong_filter_enable: bool = False
    """Exclude trajectories that the token budget cut off from means and loss (DAPO, section 3.4)."""
    # Rewards
    verifier_function: list[str] = field(default_factory=lambda: ["base_acc"])
    """Rewards: registered names, `package.module:function` or `path/file.py:function`."""
    verifier_weight: list[SignedWeight] = field(default_factory=lambda: [1.0])
    """A weight for each reward."""
    verifier_kwargs: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Keyword arguments by reward name; those of a reward that is not chosen have no effect, and null removes them."""
    verifier_timeout: Seconds = 30.0
    """Deadline of one reward call, seconds."""
    verifier_parallel: Ranks = 4
    """Parallel calls of each reward that runs in its own processes (all but text comparisons). Processes start when
    they are needed. A call of more than two seconds makes room for another, up to four times as many processes."""
    num_reward_workers: Ranks = 1
    """Processes that call rewards, in turn. One is enough unless a reward holds up its own event loop."""
    # Multi-turn
    multi_turn_enable: bool = False
    """Run turns until an answer, with the tools of `tool_config_path`, an `environment`, a `rollout_function` or an
    `agent_function`."""
    tool_config_path: InputPath | None = None
    """Tool YAML."""
    environment: CodeName = "tools"
    """What follows a turn without a tool call. With `tools` the turn is the answer. `package.module:Class` or
    `path/file.py:Class` names your own environment."""
    environment_kwargs: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of the environment's class."""
    rollout_function: CodeName = "agent_loop"
    """What runs a trajectory: `agent_loop` lets the policy and the environment take turns; `service` leaves it to the
    clients of `rl serve`; or `package.module:function` or `path/file.py:function`."""
    rollout_function_kwargs: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of the rollout function."""
    agent_function: CodeName | None = None
    """Your own agent, `package.module:function` or `path/file.py:function`. It reaches the model through an address of
    OpenAI's API, and runs in processes of its own."""
    agent_function_kwargs: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of the agent function."""
    num_agent_processes: Ranks = 1
    """Processes of each rollout worker that run agent functions. Raise it if agents compute much themselves."""
    max_tool_calls: int = Field(default=1, ge=0, le=1_000_000)
    """Executed tool calls in a trajectory; after them the model has one final turn to answer."""
    max_parallel_calls: Count = 1
    """Calls of one turn to execute, all at once; further calls get an error result and are not counted."""
    max_total_response_length: Tokens = 2048
    """Tokens of all turns and of what is between them (tool results, headers), each counted once. Without
    `multi_turn_enable` the only turn has `generate_config.sampling_config.max_tokens`."""
    max_tool_response_length: Tokens = 256
    """Tokens of one tool result."""
    tool_response_truncate_side: TruncateSide = TruncateSide.MIDDLE
    """Which part of an over-long result to keep."""
    tool_parser_format: str = "hermes"
    """Format of tool calls: a name in `rl.chat.parsers.PARSERS`, or `vllm:<name>` for a parser of vLLM."""
    final_answer_reserve: TokensOrZero = 0
    """Tokens reserved for the last answer."""
    prompt_type: str = "empty"
    """Template in `rl.chat.templates.TEMPLATES`; `empty` is the tokenizer's own."""
    trajectory_timeout: Seconds = 600.0
    """Deadline of one trajectory, seconds."""
    max_tool_unavailable_share: Share = 0.5
    """Share of a step's trajectories that may end in `tool_unavailable` before the run fails."""
    # Placement
    use_integrated_worker: bool = True
    """Actor and rollout take turns on the same devices; false: each has its own."""
    actor_resource: ResourceConfig = field(default_factory=ResourceConfig)
    """Devices of the actor (and the reference)."""
    rollout_resource: ResourceConfig = field(default_factory=ResourceConfig)
    """Devices of the rollout; with `use_integrated_worker` the actor's."""
    in_process: bool = False
    """Run actor, reference, engine, tools and rewards in the driver's process, without Ray: for breakpoints. One rank
    of the actor and one engine. User code has no deadline, and there is no progress bar."""
    ray_address: str | None = None
    """Address of a running Ray cluster; by default the run starts one on this machine."""

    def __post_init__(self) -> None:
        """Without a reward, what an environment, a rollout function or an agent function gives is the score."""
        own = (self.environment, self.rollout_function, self.agent_function)
        if not self.verifier_function and own != ("tools", "agent_loop", None):
            self.verifier_function, self.verifier_weight = ["environment"], [1.0]

    @property
    def runs_ahead(self) -> bool:
        """Whether rollouts go on while the actor learns."""
        return self.max_staleness > 0 or self.over_sample_rate > 0


@dataclass(config=CHECKED)
class Config(Section):
    """Everything a run needs."""

    model: ModelConfig = field(default_factory=ModelConfig)
    megatron_training: MegatronTraining = field(default_factory=MegatronTraining)
    actor_config: ActorConfig = field(default_factory=ActorConfig)
    rl_config: RLConfig = field(default_factory=RLConfig)
    generate_config: GenerateConfig = field(default_factory=GenerateConfig)
    serve_config: ServeConfig = field(default_factory=ServeConfig)
