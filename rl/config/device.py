"""The device that models run on."""

from __future__ import annotations

from rl.config.schema import Config, Device


def runs_on_cuda(config: Config) -> bool:
    """Whether models run on CUDA: as `megatron_training.device` says, and with `auto` where there is a device."""
    device = config.megatron_training.device
    if device is not Device.AUTO:
        return device is Device.CUDA
    import torch  # imported here, since reading a configuration does not need it

    return torch.cuda.is_available()


def enforces_eager(config: Config) -> bool:
    """Whether vLLM runs without compilation and CUDA graphs; see `generate_config.enforce_eager`."""
    said = config.generate_config.enforce_eager
    return not runs_on_cuda(config) if said is None else said
