"""Extension of vLLM's workers: loads published weights into the model and reads them back for the checksum.

On the CPU, vLLM repacks the weights of every linear layer for its kernels and empties the parameter. To read a weight
back, the layer is applied to the identity matrix. The result is exact, because each output is one weight times one plus
zeros. So on the CPU as on CUDA, the checksum covers the weights that the engine computes with.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from vllm.distributed import get_tensor_model_parallel_world_size, tensor_model_parallel_all_gather
from vllm.model_executor.layers.linear import ColumnParallelLinear, LinearBase, QKVParallelLinear, RowParallelLinear
from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding
from vllm.platforms import current_platform

from rl.errors import WeightSyncError
from rl.weight_sync.plan import checksum, tensor_digest
from rl.weight_sync.shared_memory import read_tensors

if current_platform.is_cpu():
    import rl.inference.cpu_kernels  # noqa: F401  registers them before vLLM looks them up

_IDENTITY_ROWS = 512
"""Rows of the identity matrix per call."""


class WorkerExtension:
    """Methods that vLLM adds to its worker class (`worker_extension_cls`), called through `collective_rpc`."""

    model_runner: Any

    def load_published(self, paths: list[str], version: int) -> None:
        """Load published tensors in place with vLLM's loaders, which split, fuse and repack them.

        Args:
            paths: Files of one publish.
            version: Expected policy version of the files.
        """
        self.model_runner.reload_weights(weights_iterator=read_tensors(tuple(paths), version=version))
        share_packed_embedding(self.model_runner.get_model())

    def loaded_checksum(self) -> str:
        """Checksum of the weights that the model computes with, under their Hugging Face names."""
        return checksum(read_back(self.model_runner.get_model()))


def share_packed_embedding(model: nn.Module) -> None:
    """Make a tied output head use the packed copy of the reloaded embedding.

    On the CPU, vLLM 0.32 packs both at start. Its reload skips a tied head, because checkpoints have no tensor for it,
    so the engine would keep computing logits with the old embedding.
    """
    head: Any = getattr(model, "lm_head", None)
    if model.config.tie_word_embeddings and hasattr(head, "cpu_linear"):
        head.cpu_linear = next(m for m in model.modules() if isinstance(m, VocabParallelEmbedding)).cpu_linear


@torch.no_grad()
def read_back(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield the model's weights as in a checkpoint: fused layers split, tensor-parallel shards joined.

    A collective over the tensor-parallel group.

    Args:
        model: A vLLM model whose class lists its fused layers in `packed_modules_mapping`.

    Raises:
        WeightSyncError: A tied output head uses other weights than the embedding.
    """
    fused: dict[str, list[str]] = getattr(model, "packed_modules_mapping", {})
    embedding: Tensor | None = None
    for prefix, module in model.named_modules():
        if isinstance(module, LinearBase):
            yield from _linear(prefix, module, fused)
        elif isinstance(module, VocabParallelEmbedding):
            weight = _computed_head(module) if prefix.endswith("lm_head") else _vocabulary(module, module.weight)
            if prefix.endswith("lm_head") and model.config.tie_word_embeddings:
                _check_tied(weight, embedding)
                continue
            embedding = weight
            yield f"{prefix}.weight", weight
        else:
            for name, parameter in module.named_parameters(recurse=False):
                yield f"{prefix}.{name}", parameter


def _linear(prefix: str, layer: LinearBase, fused: dict[str, list[str]]) -> Iterator[tuple[str, Tensor]]:
    parent, _, own_name = prefix.rpartition(".")
    names = [f"{parent}.{name}" for name in fused.get(own_name, [own_name])]
    weight = _computed_weight(layer, layer.input_size_per_partition)
    if isinstance(layer, RowParallelLinear):
        yield f"{names[0]}.weight", _gather(weight, dim=1)
        if layer.bias is not None:
            yield f"{names[0]}.bias", layer.bias
        return
    sizes = _local_sizes(layer)
    for kind, tensor in (("weight", weight), ("bias", layer.bias)):
        if tensor is None:
            continue
        for index, (name, part) in enumerate(zip(names, tensor.split(sizes), strict=True)):
            replicas = layer.num_kv_head_replicas if isinstance(layer, QKVParallelLinear) and index > 0 else 1
            sharded = isinstance(layer, ColumnParallelLinear)
            yield f"{name}.{kind}", _gather(part, dim=0, replicas=replicas) if sharded else part


def _local_sizes(layer: LinearBase) -> list[int]:
    """Number of rows of each fused part on this rank."""
    if isinstance(layer, QKVParallelLinear):
        key, value = layer.num_kv_heads * layer.head_size, layer.num_kv_heads * layer.v_head_size
        return [layer.num_heads * layer.head_size, key, value]
    if isinstance(layer, ColumnParallelLinear):
        return list(layer.output_partition_sizes)
    return [layer.output_size]


def _computed_weight(layer: nn.Module, num_inputs: int) -> Tensor:
    """[outputs, inputs], the weight that the layer uses: its parameter, or on the CPU its output for the identity."""
    if layer.weight.device.type != "cpu":
        return layer.weight
    rows = []
    for start in range(0, num_inputs, _IDENTITY_ROWS):
        block = torch.zeros(min(_IDENTITY_ROWS, num_inputs - start), num_inputs, dtype=layer.weight.dtype)
        block[:, start:].fill_diagonal_(1)
        rows.append(layer.quant_method.apply(layer, block, bias=None))
    return torch.cat(rows).t().contiguous()


def _computed_head(head: VocabParallelEmbedding) -> Tensor:
    return _vocabulary(head, _computed_weight(head, head.embedding_dim))


def _vocabulary(layer: VocabParallelEmbedding, weight: Tensor) -> Tensor:
    return _gather(weight, dim=0)[: layer.org_vocab_size]


def _check_tied(head: Tensor, embedding: Tensor | None) -> None:
    if embedding is not None and tensor_digest("tied", head) != tensor_digest("tied", embedding):
        raise WeightSyncError(
            "lm_head.weight: the tied output head uses other weights than the embedding, because vLLM did not reload "
            "it. Install the pinned vLLM version."
        )


def _gather(shard: Tensor, *, dim: int, replicas: int = 1) -> Tensor:
    """Join tensor-parallel shards along a dimension; of each `replicas` adjacent equal shards, keep one."""
    num_ranks = get_tensor_model_parallel_world_size()
    if num_ranks == 1:
        return shard
    whole = tensor_model_parallel_all_gather(shard.contiguous(), dim)
    if replicas == 1:
        return whole
    return whole.unflatten(0, (num_ranks // replicas, replicas, -1))[:, 0].flatten(0, 1)
