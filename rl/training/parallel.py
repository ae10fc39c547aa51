"""Process groups of one training rank: tensor, pipeline and data parallel, set up through Megatron-Core."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from megatron.core import parallel_state, tensor_parallel
from torch.distributed import ProcessGroup

from rl.config.schema import ActorConfig
from rl.errors import ConfigError

_SEED = 1234
"""Of Megatron's random states on CUDA; nothing draws from them, as all dropouts are 0."""


@dataclass(slots=True, frozen=True)
class ParallelState:
    """Where this rank stands. Ranks go tensor first, then data, then pipeline (Megatron's order)."""

    rank: int
    world_size: int
    tp_rank: int
    tp_size: int
    pp_rank: int
    pp_size: int
    dp_rank: int
    dp_size: int
    vpp_size: int | None
    """Model chunks of one pipeline rank; None: one."""
    tp_group: ProcessGroup
    pp_group: ProcessGroup
    dp_group: ProcessGroup
    device: torch.device

    @property
    def is_first_stage(self) -> bool:
        """Whether the embedding is here."""
        return self.pp_rank == 0

    @property
    def is_last_stage(self) -> bool:
        """Whether the head, and so the loss, is here."""
        return self.pp_rank == self.pp_size - 1

    @property
    def is_publisher(self) -> bool:
        """Whether this rank writes its pipeline stage's weights: one of those that have the same."""
        return self.tp_rank == 0 and self.dp_rank == 0

    @property
    def num_chunks(self) -> int:
        """Model chunks of this rank."""
        return self.vpp_size or 1


def virtual_pipeline_size(actor: ActorConfig, num_layers: int) -> int | None:
    """Model chunks of one pipeline rank, as `init_parallel` and Megatron-Core take it.

    Args:
        actor: Uses `pipeline_model_parallel_size` and `num_layers_per_virtual_pipeline_stage`.
        num_layers: Of the whole model.

    Returns:
        2 or more, or None where each rank has one chunk.

    Raises:
        ConfigError: A rank's layers do not fall into chunks of that size.
    """
    pp, chunk = actor.pipeline_model_parallel_size, actor.num_layers_per_virtual_pipeline_stage
    if chunk is None or pp == 1 or num_layers == pp * chunk:
        return None
    if num_layers % (pp * chunk) != 0:
        raise ConfigError(
            f"actor_config.num_layers_per_virtual_pipeline_stage: times pipeline_model_parallel_size {pp} it must "
            f"divide the model's {num_layers} layers, got {chunk}. Set 1, for example."
        )
    return num_layers // (pp * chunk)


def init_parallel(
    *,
    rank: int,
    world_size: int,
    tp: int,
    pp: int,
    init_method: str,
    device: torch.device,
    vpp: int | None = None,
    timeout: float = 600.0,
) -> ParallelState:
    """Join the process group and make the groups of Megatron-Core: gloo on the CPU, nccl on CUDA.

    Args:
        rank: Of this process, 0 to `world_size` - 1.
        world_size: A multiple of `tp` x `pp`; the quotient is the data-parallel size.
        tp: Ranks that share each layer.
        pp: Ranks that share the layers.
        init_method: Where the ranks meet: `tcp://host:port` or `file:///path`.
        device: As `setup_device` returned it.
        vpp: Model chunks of one pipeline rank.
        timeout: Deadline of each collective, seconds.

    Returns:
        This rank's place; give it to `destroy_parallel` at the end.

    Raises:
        ConfigError: `world_size` is not a multiple of `tp` x `pp`.
    """
    if world_size % (tp * pp) != 0:
        raise ConfigError(
            f"rl_config.actor_resource.num_devices: must be a multiple of tensor_model_parallel_size {tp} x "
            f"pipeline_model_parallel_size {pp}, got {world_size}. Change one of the three."
        )
    is_cuda = device.type == "cuda"
    dist.init_process_group(
        "nccl" if is_cuda else "gloo",
        init_method=init_method,
        rank=rank,
        world_size=world_size,
        timeout=timedelta(seconds=timeout),
        device_id=device if is_cuda else None,
    )
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=tp,
        pipeline_model_parallel_size=pp,
        virtual_pipeline_model_parallel_size=vpp,
        distributed_timeout_minutes=max(1, int(timeout // 60)),
        create_gloo_process_groups=False,
    )
    if is_cuda:
        tensor_parallel.model_parallel_cuda_manual_seed(_SEED)
    return ParallelState(
        rank=rank,
        world_size=world_size,
        tp_rank=parallel_state.get_tensor_model_parallel_rank(),
        tp_size=tp,
        pp_rank=parallel_state.get_pipeline_model_parallel_rank(),
        pp_size=pp,
        dp_rank=parallel_state.get_data_parallel_rank(),
        dp_size=parallel_state.get_data_parallel_world_size(),
        vpp_size=vpp,
        tp_group=parallel_state.get_tensor_model_parallel_group(),
        pp_group=parallel_state.get_pipeline_model_parallel_group(),
        dp_group=parallel_state.get_data_parallel_group(),
        device=device,
    )


def destroy_parallel() -> None:
    """Leave the groups; a later `init_parallel` in this process starts anew."""
    parallel_state.destroy_model_parallel()
    parallel_state.destroy_global_memory_buffer()
    parallel_state.destroy_global_symmetric_memory_buffer()
    if dist.is_initialized():
        dist.destroy_process_group()
