"""Shared by the model tests: a policy loaded from a folder, and a packed micro-batch with literal lengths."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from rl.batches import MicroBatch
from rl.config.schema import Config
from rl.training.hf_weights import load_hf_weights
from rl.training.model import PolicyModel, build_model, load_hf_config
from rl.training.parallel import ParallelState


def float32_config(*, recompute: bool = False, sequence_parallel: bool = False) -> Config:
    config = Config()
    config.megatron_training.bf16 = False
    config.megatron_training.sequence_parallel = sequence_parallel
    config.actor_config.recompute_granularity = "full" if recompute else "none"
    return config


def load_policy(folder: Path, parallel: ParallelState, config: Config | None = None) -> list[PolicyModel]:
    chunks = build_model(load_hf_config(folder), config=config or float32_config(), parallel=parallel)
    load_hf_weights(chunks, folder, parallel)
    return chunks


def random_sequences(lengths: tuple[int, ...], *, vocab_size: int, seed: int = 0) -> list[Tensor]:
    """Token ids from 1 up: transformers gives the padding token, 0, no gradient in the embedding."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(1, vocab_size, (length,), generator=generator) for length in lengths]


def pack(sequences: list[Tensor]) -> MicroBatch:
    lengths = [len(ids) for ids in sequences]
    zeros = torch.zeros(sum(lengths))
    return MicroBatch(
        token_ids=torch.cat(sequences),
        target_ids=torch.cat([torch.cat((ids[1:], ids.new_zeros(1))) for ids in sequences]),
        position_ids=torch.cat([torch.arange(length) for length in lengths]),
        cu_seqlens=torch.tensor([0, *lengths]).cumsum(0).to(torch.int32),
        prefix_ids=torch.full((len(lengths),), -1),
        loss_mask=zeros,
        loss_weights=zeros,
        advantages=zeros,
        rollout_logprobs=zeros,
        sample_ids=torch.full((sum(lengths),), -1),
    )
