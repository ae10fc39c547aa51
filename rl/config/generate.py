"""The section of the vLLM engines, and how they sample."""

from __future__ import annotations

from dataclasses import field
from typing import Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from rl.config.kinds import CHECKED, Count, PositiveShare, Ranks, Section, Share, Tokens, TopK


@dataclass(config=CHECKED)
class SamplingConfig(Section):
    """How training rollouts are sampled."""

    temperature: float = Field(default=1.0, gt=0, le=100)
    """Softmax temperature of the samples."""
    top_p: PositiveShare = 1.0
    """Must be 1 in training: a cut tail would make log-probs those of another distribution."""
    top_k: TopK = -1
    """Must be -1 in training, for the same reason."""
    min_p: Share = 0.0
    """Must be 0 in training, for the same reason."""
    max_tokens: Tokens = 1024
    """Largest number of new tokens in one turn."""


@dataclass(config=CHECKED)
class EvalSamplingConfig(Section):
    """How answers are sampled in an evaluation."""

    temperature: float = Field(default=0.0, ge=0, le=100)
    """Softmax temperature; 0 takes the likeliest token."""
    top_p: PositiveShare = 1.0
    """Sample from the smallest set of tokens with this share of the probability."""
    top_k: TopK = -1
    """Sample from this many of the likeliest tokens; -1: all."""
    num_samples: Count = 1
    """Trajectories of a prompt; the k of mean@k, best@k and maj@k."""


@dataclass(config=CHECKED)
class GenerateConfig(Section):
    """The vLLM engines."""

    infer_tensor_parallel_size: Ranks = 1
    """Devices of one engine."""
    max_model_len: int = Field(default=4096, ge=2, le=10_000_000)
    """Tokens of prompt and response."""
    max_num_seqs: Count = 256
    """Requests in one forward pass."""
    max_num_batched_tokens: int = Field(default=8192, ge=1, le=1_000_000_000)
    """Tokens in one forward pass."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Precision of weights and activations."""
    gpu_memory_utilization: PositiveShare = 0.5
    """Share of an accelerator's memory; not used on CPU."""
    kv_cache_memory_gb: float = Field(default=2.0, gt=0, le=100_000)
    """GiB of key-value cache of one engine on CPU; not used on CUDA."""
    enforce_eager: bool | None = None
    """Neither compile nor capture CUDA graphs; by default only on CPU, since sampling on CUDA is far slower so."""
    enable_prefix_caching: bool = True
    """Reuse keys and values of a trajectory from turn to turn."""
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
