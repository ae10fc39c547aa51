"""Estimates before a run starts: how prompts become optimizer steps, and the bytes on each device."""

from __future__ import annotations

import math
from dataclasses import dataclass

from rl.config.model_facts import count_parameters, head_size
from rl.config.schema import Config, ModelConfig

GIB = 1024**3
_ROW_BYTES = 13
"""Bytes of one token in the object store: id, mask, log-prob, version."""
_RECORD_BYTES = 8
"""Bytes of one token's text in the object store, including calls and results."""
_LEAST_STORE_BYTES = 512 * 1024**2


@dataclass(slots=True, frozen=True)
class BatchArithmetic:
    """How many prompts, trajectories, mini-batches and optimizer steps one step has."""

    num_prompts: int
    num_trajectories: int
    num_mini_batches: int
    """Mini-batches of one pass over the batch."""
    num_optimizer_steps: int
    trajectories_per_mini_batch: int
    """Trajectories of the largest mini-batch."""
    data_parallel_size: int
    tokens_per_trajectory: int
    """Length of the longest possible trajectory, prompt included."""
    micro_batches_per_rank: int
    """Micro-batches of one mini-batch if every trajectory has the largest length."""


@dataclass(slots=True, frozen=True)
class MemoryEstimate:
    """Bytes on one device, to about 20 %."""

    num_parameters: int
    parameter_bytes: int
    gradient_bytes: int
    optimizer_bytes: int
    """Main parameters and both Adam moments, float32."""
    activation_bytes: int
    """Activations of all micro-batches that the first pipeline stage stores, `max_packing_token_size` tokens each."""
    micro_batches_in_flight: float
    """Number of these micro-batches; with virtual stages a fraction, since chunks store different numbers."""
    reference_bytes: int
    engine_parameter_bytes: int
    cache_bytes_per_token: int
    """Keys and values of one token on one device of an engine."""

    @property
    def actor_bytes(self) -> int:
        """Memory of actor and reference at the peak of an update."""
        parts = (self.parameter_bytes, self.gradient_bytes, self.optimizer_bytes, self.activation_bytes)
        return sum(parts) + self.reference_bytes


def data_parallel_size(config: Config) -> int:
    """Replicas of the actor: devices divided by tensor- and pipeline-parallel ranks; 0 if there are too few devices."""
    actor = config.actor_config
    ranks = actor.tensor_model_parallel_size * actor.pipeline_model_parallel_size
    return config.rl_config.actor_resource.num_devices // max(1, ranks)


def longest_response(config: Config) -> int:
    """Tokens of the longest response: all turns and tool results, or the only turn without tools."""
    if config.rl_config.multi_turn_enable:
        return config.rl_config.max_total_response_length
    return config.generate_config.sampling_config.max_tokens


def longest_sample(config: Config) -> int:
    """Tokens of the longest trajectory, prompt included."""
    return min(config.rl_config.max_prompt_length + longest_response(config), config.generate_config.max_model_len)


def batch_arithmetic(config: Config) -> BatchArithmetic:
    """Compute how one step's prompts become optimizer steps."""
    rl, num_prompts = config.rl_config, config.megatron_training.global_batch_size
    replicas = max(1, data_parallel_size(config))
    longest = longest_sample(config)
    samples_per_micro = max(1, rl.max_packing_token_size // longest)
    num_mini = math.ceil(num_prompts / min(rl.mini_batch_size or num_prompts, num_prompts))
    per_mini = math.ceil(num_prompts / num_mini) * rl.n_samples_per_prompt
    return BatchArithmetic(
        num_prompts=num_prompts,
        num_trajectories=num_prompts * rl.n_samples_per_prompt,
        num_mini_batches=num_mini,
        num_optimizer_steps=num_mini * rl.epochs,
        trajectories_per_mini_batch=per_mini,
        data_parallel_size=replicas,
        tokens_per_trajectory=longest,
        micro_batches_per_rank=math.ceil(math.ceil(per_mini / replicas) / samples_per_micro),
    )


def object_store_bytes(config: Config) -> int:
    """Size of Ray's object store: the trajectories of two steps, the one that is trained on and the one before.

    With dynamic sampling a step may hold as many groups again, which the next one starts with; rollouts that run ahead
    hold those of the steps that they are ahead. Never below 512 MiB.
    What does not fit (a large evaluation, the texts of many groups that were tried) Ray writes to disk meanwhile.
    """
    tokens = batch_arithmetic(config).num_trajectories * longest_sample(config)
    rl = config.rl_config
    steps = 2 + rl.filter_groups_enable + rl.max_staleness + rl.over_sample_rate
    return max(_LEAST_STORE_BYTES, math.ceil(steps * tokens) * (_ROW_BYTES + _RECORD_BYTES))


def memory_estimate(config: Config, facts: ModelConfig) -> MemoryEstimate:
    """Estimate the bytes on one device.

    Activations of a layer, per token: its input and both normed inputs, query, key, value, attention output, and gate,
    up and product of the MLP, in the compute dtype; full recomputation stores the inputs and the rest of
    one layer. A pipeline stage stores them until the backward pass of the micro-batch, the first stage longest. The
    logits of a chunk are not included.
    """
    actor, training = config.actor_config, config.megatron_training
    tp, pp = max(1, actor.tensor_model_parallel_size), max(1, actor.pipeline_model_parallel_size)
    width = 2 if training.bf16 else 4
    engine_width = 4 if config.generate_config.dtype == "float32" else 2
    total = count_parameters(facts)
    local = math.ceil(total / (tp * pp))
    shards = max(1, data_parallel_size(config)) if training.use_distributed_optimizer else 1
    engine_tp = max(1, config.generate_config.infer_tensor_parallel_size)
    kv_heads = math.ceil(facts.num_key_value_heads / engine_tp)
    in_flight = _micro_batches_in_flight(config, facts)
    return MemoryEstimate(
        num_parameters=total,
        parameter_bytes=local * width,
        gradient_bytes=local * 4,
        optimizer_bytes=local * (12 if training.bf16 else 8) // shards,
        activation_bytes=_activation_bytes(config, facts, width, in_flight),
        micro_batches_in_flight=in_flight,
        reference_bytes=local * width if config.rl_config.init_kl_coef > 0 else 0,
        engine_parameter_bytes=total * engine_width // engine_tp,
        cache_bytes_per_token=2 * facts.num_hidden_layers * kv_heads * head_size(facts) * engine_width,
    )


def _micro_batches_in_flight(config: Config, facts: ModelConfig) -> float:
    """Largest number of micro-batches whose activations the first pipeline stage stores.

    With P stages: P, the number of forward passes before the first backward pass. With v chunks on each stage:
    (2 (P - 1) + (v - 1) P + 1) / v, since a pass of one chunk covers 1 / v of the stage's layers. At most the number of
    micro-batches in a mini-batch.

    Source: Megatron-Core's 1F1B schedules, plain and interleaved; arXiv:2104.04473, section 2.2.
    """
    actor = config.actor_config
    pp = max(1, actor.pipeline_model_parallel_size)
    layers = math.ceil(facts.num_hidden_layers / pp)
    chunks = max(1, layers // (actor.num_layers_per_virtual_pipeline_stage or layers))
    held = pp if chunks == 1 else (2 * (pp - 1) + (chunks - 1) * pp + 1) / chunks
    return min(held, batch_arithmetic(config).micro_batches_per_rank)


def _activation_bytes(config: Config, facts: ModelConfig, width: int, in_flight: float) -> int:
    actor = config.actor_config
    tp, pp = max(1, actor.tensor_model_parallel_size), max(1, actor.pipeline_model_parallel_size)
    tokens = max(config.rl_config.max_packing_token_size, longest_sample(config))
    layers = math.ceil(facts.num_hidden_layers / pp)
    split_input = facts.hidden_size / (tp if config.megatron_training.sequence_parallel else 1)
    heads = 2 * (facts.num_attention_heads + facts.num_key_value_heads) * head_size(facts)
    inside = 2 * split_input + (heads + 3 * facts.intermediate_size) / tp
    held = layers * 2 * split_input * in_flight
    # Recomputation rebuilds one layer at a time, whatever the number of micro-batches.
    held += inside if actor.recompute_granularity == "full" else layers * inside * in_flight
    return int(tokens * width * held)
