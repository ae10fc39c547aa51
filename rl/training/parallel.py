"""Process groups of one training rank: tensor, pipeline and data parallel, set up through Megatron-Core."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from megatron.core import parallel_state, tensor_parallel
from torch.distributed import ProcessGroup

from rl.config.divisibility import devices_fault, pipeline_fault
from rl.config.schema import ActorConfig
from rl.errors import ConfigError

_SEED = 1234
"""Seed of Megatron's random states on CUDA; unused, because all dropouts are 0."""


@dataclass(slots=True, frozen=True)
class ParallelState:
    """Position of this rank. Tensor ranks vary fastest, then data, then pipeline (Megatron's order)."""

    rank: int
    world_size: int
    tp_rank: int
    tp_size: int
    pp_rank: int
    pp_size: int
    dp_rank: int
    dp_size: int
    vpp_size: int | None
    """Model chunks per pipeline rank; None means one."""
    tp_group: ProcessGroup
    pp_group: ProcessGroup
    dp_group: ProcessGroup
    device: torch.device

    @property
    def is_first_stage(self) -> bool:
        """Whether this rank has the embedding."""
        return self.pp_rank == 0

    @property
    def is_last_stage(self) -> bool:
        """Whether this rank has the head and computes the loss."""
        return self.pp_rank == self.pp_size - 1

    @property
    def is_publisher(self) -> bool:
        """Whether this rank publishes the weights of its pipeline stage; one rank per stage does."""
        return self.tp_rank == 0 and self.dp_rank == 0

    @property
    def num_chunks(self) -> int:
        """Number of model chunks on this rank."""
        return self.vpp_size or 1


def virtual_pipeline_size(actor: ActorConfig, num_layers: int) -> int | None:
    """Compute the number of model chunks per pipeline rank, for `init_parallel` and Megatron-Core.

    Args:
        actor: Reads `pipeline_model_parallel_size` and `num_layers_per_virtual_pipeline_stage`.
        num_layers: Number of layers of the whole model.

    Returns:
        2 or more, or None if each rank has one chunk.

    Raises:
        ConfigError: The layers do not divide into chunks of that size.
    """
    pp, chunk = actor.pipeline_model_parallel_size, actor.num_layers_per_virtual_pipeline_stage
    if chunk is None or pp == 1 or num_layers == pp * chunk:
        return None
    if fault := pipeline_fault(num_layers, pp=pp, layers_per_chunk=chunk):
        raise ConfigError(fault)
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
    """Join the process group and create Megatron-Core's groups, with gloo on the CPU and nccl on CUDA.

    Args:
        rank: Rank of this process, 0 to `world_size` - 1.
        world_size: A multiple of `tp` x `pp`; the quotient is the data-parallel size.
        tp: Tensor-parallel size.
        pp: Pipeline-parallel size.
        init_method: Rendezvous of the ranks, `tcp://host:port` or `file:///path`.
        device: From `setup_device`.
        vpp: Model chunks per pipeline rank.
        timeout: Deadline of each collective, in seconds.

    Returns:
        This rank's place; call `destroy_parallel` at the end.

    Raises:
        ConfigError: `world_size` is not a multiple of `tp` x `pp`.
    """
    if fault := devices_fault(world_size, tp=tp, pp=pp):
        raise ConfigError(fault)
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
    """Leave all process groups; afterwards `init_parallel` can be called again."""
    parallel_state.destroy_model_parallel()
    parallel_state.destroy_global_memory_buffer()
    parallel_state.destroy_global_symmetric_memory_buffer()
    if dist.is_initialized():
        dist.destroy_process_group()
