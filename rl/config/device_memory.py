"""Memory that a run needs on accelerators and on their host, by phase."""

from __future__ import annotations

import math
from dataclasses import dataclass

from rl.config.estimates import GIB, memory_estimate
from rl.config.schema import Config, ModelConfig

PROCESS_BYTES = 2 * GIB
"""Memory of one process on a device: CUDA context, kernel workspaces, communicators. A sleeping engine keeps it."""

_SAMPLER_COPIES = 3
"""Float32 copies of the logits of all requests in an engine: logits, probabilities and sampling distribution."""


@dataclass(slots=True, frozen=True)
class DeviceMemory:
    """Bytes on one accelerator and its host, to about 20 %; 0 for parts that the run does not have."""

    learning_bytes: int
    """Peak of an update: actor, reference, and the process of a sleeping engine."""
    resident_bytes: int
    """While an engine is awake: the parts of actor and reference that are not offloaded, and their processes."""
    engine_bytes: int
    """Minimum of an engine: parameters, keys and values of one sequence, sampler, process."""
    engine_share: float
    """Share of the accelerator that an awake engine takes: `gpu_memory_utilization`."""
    pinned_bytes: int
    """Host memory that one actor and its reference offload to."""
    published_bytes: int
    """Shared memory of the published weights, once per machine."""

    @property
    def smallest_device_bytes(self) -> float:
        """The smallest accelerator that fits every phase; infinite if the engine leaves no room for the rest."""
        left = 1 - self.engine_share
        beside = 0.0 if not self.resident_bytes else self.resident_bytes / left if left > 0 else math.inf
        engine = self.engine_bytes / self.engine_share if self.engine_bytes else 0.0
        return max(self.learning_bytes, engine, beside)


def device_memory(
    config: Config, facts: ModelConfig, *, with_actor: bool = True, with_engines: bool = True
) -> DeviceMemory:
    """Estimate the memory of a run on CUDA.

    An evaluation has no actor, a cold start has no engines.
    """
    generate, estimate = config.generate_config, memory_estimate(config, facts)
    takes_turns = config.rl_config.use_integrated_worker and with_actor and with_engines
    parts = (
        (estimate.parameter_bytes + estimate.reference_bytes, generate.offload_train_param, True),
        (estimate.optimizer_bytes, generate.offload_train_optimizer, True),
        (estimate.gradient_bytes, generate.offload_train_grad, False),
    )
    processes = PROCESS_BYTES * (2 if estimate.reference_bytes else 1)
    cache = estimate.cache_bytes_per_token * generate.max_model_len
    sampler = _SAMPLER_COPIES * 4 * facts.vocab_size * generate.max_num_seqs
    engine = estimate.engine_parameter_bytes + cache + sampler + PROCESS_BYTES
    published = estimate.engine_parameter_bytes * generate.infer_tensor_parallel_size
    return DeviceMemory(
        learning_bytes=(estimate.actor_bytes + processes + PROCESS_BYTES * takes_turns) * with_actor,
        resident_bytes=(sum(size for size, moves, _ in parts if not moves) + processes) * takes_turns,
        engine_bytes=engine * with_engines,
        engine_share=generate.gpu_memory_utilization,
        pinned_bytes=sum(size for size, moves, is_kept in parts if moves and is_kept) * takes_turns,
        published_bytes=published * (with_actor and with_engines),
    )
