"""Which numbers must divide which: heads, layers and devices. Each rule is written here once.

Every function returns what is wrong in the words that the user reads, or None.
"""

from __future__ import annotations

from typing import Protocol


class Architecture(Protocol):
    """Sizes that `rl.config.schema.ModelConfig` and a config of transformers both have."""

    num_attention_heads: int
    num_key_value_heads: int
    intermediate_size: int


def head_groups_fault(model: Architecture) -> str | None:
    """Each key-value head serves equally many attention heads."""
    heads, kv_heads = model.num_attention_heads, model.num_key_value_heads
    if heads % kv_heads == 0:
        return None
    return f"num_key_value_heads: must divide {heads} num_attention_heads, got {kv_heads}. Correct it."


def devices_fault(num_devices: int, *, tp: int, pp: int) -> str | None:
    """The actor's devices make up whole replicas of tensor- and pipeline-parallel ranks."""
    if num_devices % (tp * pp) == 0:
        return None
    return (
        f"rl_config.actor_resource.num_devices: must be a multiple of tensor ({tp}) times pipeline ({pp}) parallel "
        f"size, got {num_devices}. Set {max(1, num_devices // (tp * pp)) * tp * pp}, or change the parallel sizes."
    )


def tensor_fault(model: Architecture, tp: int) -> str | None:
    """Each tensor-parallel rank of the actor has equally many heads and feed-forward channels."""
    heads, kv_heads, channels = model.num_attention_heads, model.num_key_value_heads, model.intermediate_size
    if heads % tp or kv_heads % tp:
        counts = f"{heads} attention heads and {kv_heads} key-value heads"
    elif channels % tp:
        counts = f"{channels} feed-forward channels"
    else:
        return None
    fitting = _common_divisors(heads, kv_heads, channels)
    return f"actor_config.tensor_model_parallel_size: must divide {counts}, got {tp}. Set one of {fitting}."


def pipeline_fault(num_layers: int, *, pp: int, layers_per_chunk: int | None = None) -> str | None:
    """Each pipeline rank has equally many layers, and whole chunks of them."""
    if num_layers % pp:
        key, counts, got = "pipeline_model_parallel_size", f"{num_layers} layers", pp
        fitting = _common_divisors(num_layers)
    elif layers_per_chunk is not None and num_layers // pp % layers_per_chunk:
        counts, got = f"the {num_layers // pp} layers of a pipeline rank", layers_per_chunk
        key, fitting = "num_layers_per_virtual_pipeline_stage", _common_divisors(num_layers // pp)
    else:
        return None
    return f"actor_config.{key}: must divide {counts}, got {got}. Set one of {fitting}."


def engine_fault(model: Architecture, tp: int) -> str | None:
    """Each device of an engine has equally many attention heads; vLLM copies key-value heads where they are too few."""
    heads, kv_heads = model.num_attention_heads, model.num_key_value_heads
    if heads % tp == 0 and (kv_heads % tp == 0 or tp % kv_heads == 0):
        return None
    return (
        f"generate_config.infer_tensor_parallel_size: must divide {heads} attention heads, got {tp}. "
        f"Set one of {_common_divisors(heads, kv_heads)}."
    )


def _common_divisors(*counts: int) -> str:
    divisors = (size for size in range(1, min(counts) + 1) if all(count % size == 0 for count in counts))
    return ", ".join(map(str, divisors))
