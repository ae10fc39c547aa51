"""The model families: their differences, and the table that maps Megatron's weight names to Hugging Face's."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

from rl.config.divisibility import head_groups_fault
from rl.errors import ModelError, unknown_name


class Fusion(Enum):
    """How the Hugging Face tensors of a rule are combined into one Megatron tensor."""

    NONE = auto()
    """One to one."""
    QKV = auto()
    """Query, key and value, interleaved by key-value head: q.. k v | q.. k v | ..."""
    GATE_UP = auto()
    """Gate and up; on each rank the gate rows come before the up rows."""
    VOCABULARY = auto()
    """One to one, padded with rows to a multiple of the tensor-parallel size."""


@dataclass(slots=True, frozen=True)
class WeightRule:
    """One Megatron tensor and its Hugging Face tensors; `{layer}` counts from 0 over the whole model."""

    megatron: str
    hf: tuple[str, ...]
    fusion: Fusion = Fusion.NONE
    tp_dim: int | None = None
    """Dimension that is split over tensor-parallel ranks; None if each rank holds the whole tensor."""


@dataclass(slots=True, frozen=True)
class Family:
    """A family of dense decoders; they differ in the bias of query, key and value, and the norms of query and key."""

    name: str
    has_qkv_bias: bool = False
    has_qk_norm: bool = False

    def rules(self, *, is_tied: bool) -> tuple[WeightRule, ...]:
        """Weight rules of this family."""
        head = "model.embed_tokens.weight" if is_tied else "lm_head.weight"
        return (
            *_COMMON,
            WeightRule("output_layer.weight", (head,), Fusion.VOCABULARY, tp_dim=0),
            *(_QKV_BIAS if self.has_qkv_bias else ()),
            *(_QK_NORM if self.has_qk_norm else ()),
        )


FAMILIES = {
    "llama": Family("llama"),
    "qwen2": Family("qwen2", has_qkv_bias=True),
    "qwen3": Family("qwen3", has_qk_norm=True),
}
"""By `model_type` in config.json. Qwen2.5 has qwen2, SmolLM2 has llama."""

_MEGATRON = "decoder.layers.{layer}."
_HF = "model.layers.{layer}."

_COMMON = (
    WeightRule("embedding.word_embeddings.weight", ("model.embed_tokens.weight",), Fusion.VOCABULARY, tp_dim=0),
    WeightRule(_MEGATRON + "input_layernorm.weight", (_HF + "input_layernorm.weight",)),
    WeightRule(
        _MEGATRON + "self_attention.linear_qkv.weight",
        tuple(_HF + f"self_attn.{x}_proj.weight" for x in "qkv"),
        Fusion.QKV,
        tp_dim=0,
    ),
    WeightRule(_MEGATRON + "self_attention.linear_proj.weight", (_HF + "self_attn.o_proj.weight",), tp_dim=1),
    WeightRule(_MEGATRON + "pre_mlp_layernorm.weight", (_HF + "post_attention_layernorm.weight",)),
    WeightRule(
        _MEGATRON + "mlp.linear_fc1.weight",
        (_HF + "mlp.gate_proj.weight", _HF + "mlp.up_proj.weight"),
        Fusion.GATE_UP,
        tp_dim=0,
    ),
    WeightRule(_MEGATRON + "mlp.linear_fc2.weight", (_HF + "mlp.down_proj.weight",), tp_dim=1),
    WeightRule("decoder.final_layernorm.weight", ("model.norm.weight",)),
)
_QKV_BIAS = (
    WeightRule(
        _MEGATRON + "self_attention.linear_qkv.bias",
        tuple(_HF + f"self_attn.{x}_proj.bias" for x in "qkv"),
        Fusion.QKV,
        tp_dim=0,
    ),
)
_QK_NORM = tuple(
    WeightRule(_MEGATRON + f"self_attention.{x}_layernorm.weight", (_HF + f"self_attn.{x}_norm.weight",)) for x in "qk"
)


def family_of(hf_config: Any) -> Family:
    """Look up the family of a transformers config and reject options that are not supported.

    Raises:
        ModelError: The `model_type` is not supported, or the config has unsupported biases, activation, attention
            windows or numbers of heads.
    """
    where = f"{hf_config.name_or_path}/config.json"
    if hf_config.model_type not in FAMILIES:
        raise ModelError(unknown_name(f"{where}: model_type", hf_config.model_type, FAMILIES))
    for key in ("attention_bias", "mlp_bias", "use_sliding_window"):
        if getattr(hf_config, key, False):
            raise ModelError(f"{where}: {key}: not supported, got true. Choose a model without it.")
    if set(getattr(hf_config, "layer_types", None) or ()) - {"full_attention"}:
        raise ModelError(f"{where}: layer_types: only full_attention is supported, got {hf_config.layer_types}.")
    if fault := head_groups_fault(hf_config):
        raise ModelError(f"{where}: {fault}")
    if hf_config.hidden_act != "silu":
        raise ModelError(f"{where}: hidden_act: only silu is supported, got '{hf_config.hidden_act}'.")
    return FAMILIES[hf_config.model_type]
