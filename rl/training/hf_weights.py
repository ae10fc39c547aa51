"""Conversion between Megatron's sharded tensors and whole Hugging Face tensors.

Loading, publishing, export and checkpoints all use `WeightMapping`. It converts anything with the shape of a parameter,
so it also converts float32 main parameters and Adam's moments.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.transformer.transformer_layer import TransformerLayer
from torch import Tensor, nn

from rl.config.model_facts import head_size
from rl.errors import ModelError
from rl.training.families import Fusion, WeightRule, family_of
from rl.training.hf_files import open_tensors
from rl.training.model import padded_vocab_size, unwrap_chunk
from rl.training.parallel import ParallelState

_LAYER = re.compile(r"decoder\.layers\.(\d+)\.")


@dataclass(slots=True, frozen=True)
class WeightMapping:
    """Splits and joins tensors by the family's rules, the model's sizes and this rank's place."""

    rules: dict[str, WeightRule]
    """By Megatron name, with `{layer}` in place of the layer's number."""
    num_query_groups: int
    heads_per_group: int
    head_size: int
    vocab_size: int
    padded_vocab_size: int
    is_tied: bool
    parallel: ParallelState

    @staticmethod
    def of(hf_config: Any, parallel: ParallelState) -> WeightMapping:
        """Build the mapping for a Hugging Face config on this rank."""
        is_tied = hf_config.tie_word_embeddings
        return WeightMapping(
            rules={rule.megatron: rule for rule in family_of(hf_config).rules(is_tied=is_tied)},
            num_query_groups=hf_config.num_key_value_heads,
            heads_per_group=hf_config.num_attention_heads // hf_config.num_key_value_heads,
            head_size=head_size(hf_config),
            vocab_size=hf_config.vocab_size,
            padded_vocab_size=padded_vocab_size(hf_config.vocab_size, parallel.tp_size),
            is_tied=is_tied,
            parallel=parallel,
        )

    def hf_names(self, name: str) -> tuple[str, ...]:
        """Names of the Hugging Face tensors for a Megatron name (from `name_parameters`)."""
        rule, layer = self._rule(name)
        return tuple(hf.format(layer=layer) for hf in rule.hf)

    def is_copy(self, name: str) -> bool:
        """Whether a tensor duplicates another: the last stage's head, if tied to the first stage's embedding."""
        return self.is_tied and name == "output_layer.weight"

    def shard(self, name: str, read: Callable[[str], Tensor]) -> Tensor:
        """Build this rank's Megatron tensor.

        Args:
            name: From `name_parameters`.
            read: Returns the whole tensor with a Hugging Face name.
        """
        rule, _ = self._rule(name)
        whole = [read(hf) for hf in self.hf_names(name)]
        rank, size = self.parallel.tp_rank, self.parallel.tp_size
        if rule.fusion is Fusion.QKV:
            return _chunk(self._interleave(whole), 0, rank, size).flatten(0, 1)
        if rule.fusion is Fusion.GATE_UP:
            return torch.cat([_chunk(tensor, 0, rank, size) for tensor in whole])
        (tensor,) = whole
        if rule.fusion is Fusion.VOCABULARY:
            padding = tensor.new_zeros(self.padded_vocab_size - tensor.shape[0], tensor.shape[1])
            tensor = torch.cat((tensor, padding)) if len(padding) else tensor
        return tensor if rule.tp_dim is None else _chunk(tensor, rule.tp_dim, rank, size)

    def gather(self, name: str, tensor: Tensor) -> list[tuple[str, Tensor]]:
        """Build whole Hugging Face tensors from this rank's Megatron tensor; they may be views of it.

        A collective over the tensor-parallel group. Each of its ranks gets the same result.
        """
        rule, _ = self._rule(name)
        shards = [tensor] if rule.tp_dim is None else self._all_gather(tensor)
        if rule.fusion is Fusion.QKV:
            groups = torch.cat([shard.unflatten(0, (-1, self._group_rows)) for shard in shards])
            whole = [part.flatten(0, 1) for part in groups.split(self._part_rows, dim=1)]
        elif rule.fusion is Fusion.GATE_UP:
            halves = zip(*(shard.chunk(2) for shard in shards), strict=True)
            whole = [_join(list(parts), 0) for parts in halves]
        else:
            joined = _join(shards, rule.tp_dim or 0)
            whole = [joined[: self.vocab_size] if rule.fusion is Fusion.VOCABULARY else joined]
        return list(zip(self.hf_names(name), whole, strict=True))

    @property
    def _part_rows(self) -> list[int]:
        """Numbers of query, key and value rows in one group."""
        return [self.heads_per_group * self.head_size, self.head_size, self.head_size]

    @property
    def _group_rows(self) -> int:
        return sum(self._part_rows)

    def _interleave(self, qkv: list[Tensor]) -> Tensor:
        """Join query, key and value to [key-value heads, rows of one group, ...]."""
        return torch.cat([tensor.unflatten(0, (self.num_query_groups, -1)) for tensor in qkv], dim=1)

    def _all_gather(self, tensor: Tensor) -> list[Tensor]:
        if self.parallel.tp_size == 1:
            return [tensor]
        tensor = tensor.contiguous()
        shards = [torch.empty_like(tensor) for _ in range(self.parallel.tp_size)]
        dist.all_gather(shards, tensor, group=self.parallel.tp_group)
        return shards

    def _rule(self, name: str) -> tuple[WeightRule, str]:
        match = _LAYER.match(name)
        pattern = _LAYER.sub("decoder.layers.{layer}.", name)
        assert pattern in self.rules, f"no rule for the parameter {name}"
        return self.rules[pattern], match[1] if match else ""


def name_parameters(chunks: Iterable[nn.Module]) -> dict[str, nn.Parameter]:
    """Name this rank's parameters independently of the parallel layout.

    Args:
        chunks: `PolicyModel`s, with or without Megatron's data-parallel wrapper.

    Returns:
        Parameters in layer order. Names are Megatron's, with layers numbered from 0 over the whole model.
    """
    named: dict[str, nn.Parameter] = {}
    for chunk in chunks:
        model = unwrap_chunk(chunk)
        layers = {
            name: layer.layer_number - 1 for name, layer in model.named_modules() if isinstance(layer, TransformerLayer)
        }
        for name, parameter in model.named_parameters():
            prefix = next((layer for layer in layers if name.startswith(f"{layer}.")), None)
            if prefix is not None:
                name = f"decoder.layers.{layers[prefix]}{name[len(prefix) :]}"
            named[name] = parameter
    return named


def map_to_hf(named_tensors: Iterable[tuple[str, Tensor]], mapping: WeightMapping) -> Iterator[tuple[str, Tensor]]:
    """Yield whole Hugging Face tensors from this rank's Megatron tensors, without a tied head.

    A collective over the tensor-parallel group; every rank must exhaust the iterator.

    Args:
        named_tensors: Names from `name_parameters`, in the same order on each rank of the group.
        mapping: Mapping of the model.
    """
    for name, tensor in named_tensors:
        if not mapping.is_copy(name):
            yield from mapping.gather(name, tensor)


def map_from_hf(
    names: Iterable[str], read: Callable[[str], Tensor], mapping: WeightMapping
) -> Iterator[tuple[str, Tensor]]:
    """Yield this rank's Megatron tensors from whole Hugging Face tensors; not a collective.

    Args:
        names: From `name_parameters`.
        read: Returns the whole tensor with a Hugging Face name.
        mapping: Mapping of the model.
    """
    for name in names:
        yield name, mapping.shard(name, read)


def load_hf_weights(chunks: list[Any], folder: Path | str, parallel: ParallelState) -> None:
    """Load the model from a folder's safetensors, one parameter at a time.

    Args:
        chunks: From `rl.training.model.build_model`.
        folder: Contains model.safetensors, or several files and their index.
        parallel: This rank's place.

    Raises:
        ModelError: A file is missing or corrupt, or a tensor is missing or has another shape than in config.json.
    """
    mapping = WeightMapping.of(chunks[0].hf_config, parallel)
    parameters = name_parameters(chunks)
    with ExitStack() as stack, torch.no_grad():
        read = open_tensors(Path(folder), stack)
        for name, tensor in map_from_hf(parameters, read, mapping):
            parameter = parameters[name]
            if tensor.shape != parameter.shape:
                sources = ", ".join(mapping.hf_names(name))
                raise ModelError(
                    f"{folder}: {sources}: config.json requires {tuple(parameter.shape)} on this rank, "
                    f"got {tuple(tensor.shape)}. The config and the weights belong to different models."
                )
            parameter.copy_(tensor)


def export_hf_weights(chunks: list[Any], parallel: ParallelState) -> Iterator[tuple[str, Tensor]]:
    """Yield this pipeline stage's weights as whole tensors under Hugging Face names, in the model's dtype.

    A collective over the tensor-parallel group; every rank must exhaust the iterator. The tensors may be views of the
    parameters.

    Args:
        chunks: From `rl.training.model.build_model`, with or without the data-parallel wrapper.
        parallel: This rank's place.
    """
    parameters = name_parameters(chunks)
    mapping = WeightMapping.of(unwrap_chunk(chunks[0]).hf_config, parallel)
    yield from map_to_hf(((name, parameter.detach()) for name, parameter in parameters.items()), mapping)


def _chunk(tensor: Tensor, dim: int, rank: int, size: int) -> Tensor:
    return tensor if size == 1 else tensor.chunk(size, dim)[rank]


def _join(shards: list[Tensor], dim: int) -> Tensor:
    return shards[0] if len(shards) == 1 else torch.cat(shards, dim)
