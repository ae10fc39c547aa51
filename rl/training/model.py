"""The policy: Megatron's GPTModel, built from a Hugging Face config. It returns hidden states instead of logits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from megatron.core.fusions.fused_bias_dropout import get_bias_dropout_add
from megatron.core.models.gpt import GPTModel
from megatron.core.tensor_parallel import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer.attention import SelfAttention, SelfAttentionSubmodules
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.mlp import MLP, MLPSubmodules
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules, get_num_layers_to_build
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import TransformerLayer, TransformerLayerSubmodules
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from rl.batches import MicroBatch
from rl.config.divisibility import pipeline_fault, tensor_fault
from rl.config.model_facts import head_size
from rl.config.model_folder import replacement
from rl.config.schema import Config
from rl.errors import ModelError, unknown_name
from rl.training.attention import PackedAttention, pack_sequences
from rl.training.families import FAMILIES, Family, family_of
from rl.training.norm import RMSNorm
from rl.training.parallel import ParallelState
from rl.training.swiglu import SwiGlu

_ROPE_TYPES = ("default", "linear", "llama3", "yarn")
"""Supported types: their frequencies do not depend on the length of the input."""


def load_hf_config(folder: Path | str) -> Any:
    """Read the config.json of a Hugging Face model folder.

    Returns:
        The transformers config; its `name_or_path` is the folder.

    Raises:
        ModelError: config.json is missing or malformed, or the family or its rotary scaling is not supported.
    """
    path = Path(folder) / "config.json"
    if not path.is_file():
        raise ModelError(
            f"actor_config.load: must be a model folder, got '{folder}' without config.json. Correct the path."
        )
    try:
        model_type = json.loads(path.read_text()).get("model_type")
    except (json.JSONDecodeError, UnicodeDecodeError, AttributeError) as error:
        raise ModelError(f"{path}: not a JSON object ({error}). {replacement(path.parent)}") from error
    if model_type not in FAMILIES:
        raise ModelError(unknown_name(f"{path}: model_type", str(model_type), FAMILIES))
    try:
        hf_config = AutoConfig.from_pretrained(folder, local_files_only=True)
    except StrictDataclassError as error:
        raise ModelError(f"{path}: not a valid config ({error}). {replacement(path.parent)}") from error
    family_of(hf_config)
    _rope_frequencies(hf_config)
    return hf_config


def build_model(hf_config: Any, *, config: Config, parallel: ParallelState) -> list[PolicyModel]:
    """Build this rank's part of the model with uninitialized weights (`rl.training.hf_weights.load_hf_weights`).

    Args:
        hf_config: From `load_hf_config`.
        config: Reads `megatron_training` (dtype, sequence_parallel) and `actor_config` (recomputation).
        parallel: This rank's place.

    Returns:
        One chunk, or `vpp_size` chunks, on `parallel.device`.

    Raises:
        ModelError: The parallel sizes do not divide the heads or the layers.
    """
    num_stages = parallel.pp_size * parallel.num_chunks
    fault = tensor_fault(hf_config, parallel.tp_size) or pipeline_fault(hf_config.num_hidden_layers, pp=num_stages)
    if fault is not None:
        raise ModelError(f"{hf_config.name_or_path}: {fault}")
    megatron_config = transformer_config(hf_config, config=config, parallel=parallel)
    chunks = []
    for index in range(parallel.num_chunks):
        is_first = parallel.is_first_stage and index == 0
        is_last = parallel.is_last_stage and index == parallel.num_chunks - 1
        vp_stage = index if parallel.vpp_size else None
        chunk = PolicyModel(hf_config, megatron_config, parallel, is_first=is_first, is_last=is_last, vp_stage=vp_stage)
        chunks.append(chunk.to(parallel.device))
    return chunks


class PolicyModel(GPTModel):
    """One pipeline chunk of the policy.

    The last chunk returns hidden states *before* the output layer, from which `rl.training.head` computes log-probs and
    entropy without materializing all logits.
    """

    def __init__(
        self,
        hf_config: Any,
        config: TransformerConfig,
        parallel: ParallelState,
        *,
        is_first: bool,
        is_last: bool,
        vp_stage: int | None = None,
    ) -> None:
        super().__init__(
            config=config,
            transformer_layer_spec=_block_spec(config, family_of(hf_config), vp_stage, parallel.pp_rank),
            vocab_size=padded_vocab_size(hf_config.vocab_size, parallel.tp_size),
            max_sequence_length=hf_config.max_position_embeddings,
            pre_process=is_first,
            post_process=is_last,
            share_embeddings_and_output_weights=hf_config.tie_word_embeddings,
            position_embedding_type="none",
            vp_stage=vp_stage,
        )
        self.hf_config = hf_config
        frequencies, self.rope_scale = _rope_frequencies(hf_config)
        self.rope_frequencies = frequencies.to(parallel.device)

    def forward(self, micro_batch: MicroBatch) -> Tensor:
        """Run the layers of this chunk on a packed micro-batch.

        Args:
            micro_batch: On this model's device. With sequence parallelism T must be a multiple of the tensor-parallel
                size.

        Returns:
            [T, 1, H] hidden states, after the final norm on the last chunk. With sequence parallelism, this rank's part
            of T.
        """
        embedded = self.embedding(micro_batch.token_ids.unsqueeze(0), None) if self.pre_process else None
        cos, sin = self._rope(micro_batch.position_ids)
        packed = pack_sequences(micro_batch.cu_seqlens, micro_batch.prefix_ids, cos, sin)
        return self.decoder(hidden_states=embedded, attention_mask=None, packed_seq_params=packed)

    @property
    def head_weight(self) -> nn.Parameter:
        """[V / tensor-parallel size, H], on the last chunk only; the embedding's weight if tied on a single stage."""
        assert self.post_process, "only the last chunk has the head"
        weight = self.output_layer.weight
        return self.embedding.word_embeddings.weight if weight is None else weight

    def _rope(self, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        angles = torch.outer(position_ids.float(), self.rope_frequencies)
        angles = torch.cat((angles, angles), dim=-1)
        dtype = self.config.params_dtype
        return (angles.cos() * self.rope_scale).to(dtype), (angles.sin() * self.rope_scale).to(dtype)


def unwrap_chunk(chunk: Any) -> Any:
    """Return the `PolicyModel` inside Megatron's data-parallel wrapper, if there is one."""
    while not hasattr(chunk, "hf_config"):
        chunk = chunk.module
    return chunk


def padded_vocab_size(vocab_size: int, tp_size: int) -> int:
    """Round the vocabulary up to a multiple of `tp_size`; the model never predicts the padding rows."""
    return -(-vocab_size // tp_size) * tp_size


def transformer_config(hf_config: Any, *, config: Config, parallel: ParallelState) -> TransformerConfig:
    """Convert a Hugging Face config to Megatron's. All dropouts are 0 and all fused CUDA kernels are off."""
    family = family_of(hf_config)
    dtype = torch.bfloat16 if config.megatron_training.bf16 else torch.float32
    is_recomputing = config.actor_config.recompute_granularity == "full"
    return TransformerConfig(
        num_layers=hf_config.num_hidden_layers,
        hidden_size=hf_config.hidden_size,
        ffn_hidden_size=hf_config.intermediate_size,
        num_attention_heads=hf_config.num_attention_heads,
        num_query_groups=hf_config.num_key_value_heads,
        kv_channels=head_size(hf_config),
        normalization="RMSNorm",
        layernorm_epsilon=hf_config.rms_norm_eps,
        gated_linear_unit=True,
        activation_func=functional.silu,
        use_te_activation_func=True,  # uses the activation in the spec, which is ours and not Transformer Engine's
        add_bias_linear=False,
        add_qkv_bias=family.has_qkv_bias,
        qk_layernorm=family.has_qk_norm,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        bf16=config.megatron_training.bf16,
        params_dtype=dtype,
        pipeline_dtype=dtype,
        tensor_model_parallel_size=parallel.tp_size,
        pipeline_model_parallel_size=parallel.pp_size,
        virtual_pipeline_model_parallel_size=parallel.vpp_size,
        sequence_parallel=config.megatron_training.sequence_parallel and parallel.tp_size > 1,
        variable_seq_lengths=parallel.pp_size > 1,
        moe_token_dispatcher_type="alltoall",  # required for variable lengths, even in dense models
        # With the default exchange on gloo, interleaved chunks give silently wrong gradients.
        overlap_p2p_comm=parallel.vpp_size is not None,
        batch_p2p_comm=False,
        calculate_per_token_loss=True,
        recompute_granularity="full" if is_recomputing else None,
        recompute_method="uniform" if is_recomputing else None,
        recompute_num_layers=1 if is_recomputing else None,
        use_cpu_initialization=parallel.device.type == "cpu",
        perform_initialization=False,
        persist_layer_norm=False,
        gradient_accumulation_fusion=False,
        masked_softmax_fusion=False,
        bias_activation_fusion=False,
        bias_dropout_fusion=False,
        apply_rope_fusion=False,
    )


def _block_spec(
    config: TransformerConfig, family: Family, vp_stage: int | None, pp_rank: int
) -> TransformerBlockSubmodules:
    """Build the spec of this chunk's layers, with the project's attention, norms and gate."""
    qk_norm = RMSNorm if family.has_qk_norm else IdentityOp
    attention = ModuleSpec(
        module=SelfAttention,
        params={"attn_mask_type": AttnMaskType.causal},
        submodules=SelfAttentionSubmodules(
            linear_qkv=ColumnParallelLinear,
            core_attention=PackedAttention,
            linear_proj=RowParallelLinear,
            q_layernorm=qk_norm,
            k_layernorm=qk_norm,
        ),
    )
    layer = ModuleSpec(
        module=TransformerLayer,
        submodules=TransformerLayerSubmodules(
            input_layernorm=RMSNorm,
            self_attention=attention,
            self_attn_bda=get_bias_dropout_add,
            pre_mlp_layernorm=RMSNorm,
            mlp=ModuleSpec(
                module=MLP,
                submodules=MLPSubmodules(
                    linear_fc1=ColumnParallelLinear, activation_func=SwiGlu, linear_fc2=RowParallelLinear
                ),
            ),
            mlp_bda=get_bias_dropout_add,
        ),
    )
    num_layers = get_num_layers_to_build(config, vp_stage, pp_rank)
    return TransformerBlockSubmodules(layer_specs=[layer] * num_layers, layer_norm=RMSNorm)


def _rope_frequencies(hf_config: Any) -> tuple[Tensor, float]:
    """Return inverse frequencies [D / 2] float32 and the factor on cosine and sine, as in transformers."""
    parameters = hf_config.rope_parameters
    rope_type = parameters.get("rope_type", "default")
    if rope_type not in _ROPE_TYPES:
        where = f"{hf_config.name_or_path}/config.json: rope_parameters.rope_type"
        raise ModelError(unknown_name(where, rope_type, _ROPE_TYPES))
    if rope_type != "default":
        return ROPE_INIT_FUNCTIONS[rope_type](hf_config, torch.device("cpu"))
    size = head_size(hf_config)
    exponents = torch.arange(0, size, 2, dtype=torch.float32) / size
    return 1.0 / parameters["rope_theta"] ** exponents, 1.0
