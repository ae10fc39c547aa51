"""Device selection, and the patches that let Megatron-Core run on the CPU.

Megatron-Core 0.16 hard-codes CUDA in a few places: `device="cuda"`, `torch.cuda.current_device()`,
`torch.cuda.synchronize()`, `Tensor.cuda()`, comparisons of `Tensor.type()` with `torch.cuda.*Tensor`, and the random
states that activation recomputation and sequence parallelism save. On the CPU, `setup_device` redirects these in
Megatron's modules and in two methods of `Tensor`. On CUDA it patches nothing.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib
import platform
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import torch

from rl.config.schema import Device
from rl.errors import ConfigError

_MEGATRON_MODULES = (
    "megatron.core.models.common.embeddings.rotary_pos_embedding",
    "megatron.core.optimizer.clip_grads",
    "megatron.core.optimizer.distrib_optimizer",
    "megatron.core.optimizer.optimizer",
    "megatron.core.pipeline_parallel.p2p_communication",
    "megatron.core.pipeline_parallel.schedules",
    "megatron.core.tensor_parallel.layers",
    "megatron.core.tensor_parallel.mappings",
    "megatron.core.tensor_parallel.utils",
    "megatron.core.utils",
    "megatron.core.parallel_state",
    "megatron.core.distributed.param_and_grad_buffer",
)
"""Modules in which `torch` is replaced on the CPU."""

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
"""Parameters of `mallopt`, from glibc's malloc.h."""


def setup_device(device: Device, *, num_threads: int | None = None, index: int = 0) -> torch.device:
    """Set up this process to train on a device; call it once, before any model is built.

    Args:
        device: `auto` selects CUDA if available.
        num_threads: Threads of CPU operators; None keeps torch's default. Ray sets OMP_NUM_THREADS=1 in its workers,
            so a worker on the CPU passes its number of cores.
        index: CUDA device of this process among the visible ones.

    Returns:
        The device for tensors.

    Raises:
        ConfigError: CUDA is requested but not available.
    """
    if num_threads is not None:
        torch.set_num_threads(num_threads)
    if device is Device.CUDA and not torch.cuda.is_available():
        raise ConfigError("megatron_training.device: there is no CUDA device, got 'cuda'. Use 'cpu' or 'auto'.")
    if device is not Device.CPU and torch.cuda.is_available():
        torch.cuda.set_device(index)
        return torch.device("cuda", index)
    _run_megatron_on_cpu()
    _keep_freed_memory()
    return torch.device("cpu")


def _keep_freed_memory() -> None:
    """Make the C library reuse freed memory instead of returning it to the system.

    By default glibc returns blocks of 32 MB and more, and the free end of the heap, at once. The next micro-batch then
    pays for new zeroed pages, a tenth of the time of an update.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_THRESHOLD, 1 << 30)
        libc.mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1)


class _CudaOnCpu(ModuleType):
    """Replaces `torch.cuda` in Megatron's modules."""

    def __getattr__(self, name: str) -> Any:
        return getattr(torch.cuda, name)

    def current_device(self) -> str:
        return "cpu"

    def synchronize(self, device: Any = None) -> None:
        return None


class _TorchOnCpu(ModuleType):
    """Replaces `torch` in Megatron's modules: factories called with device `cuda` make CPU tensors."""

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


@functools.cache
def _run_megatron_on_cpu() -> None:
    stand_in = _TorchOnCpu("torch")
    stand_in.__dict__["cuda"] = _CudaOnCpu("torch.cuda")
    for factory in ("empty", "zeros", "ones", "full", "tensor", "arange"):
        stand_in.__dict__[factory] = _on_cpu(getattr(torch, factory))
    for name in _MEGATRON_MODULES:
        importlib.import_module(name).__dict__["torch"] = stand_in

    random = importlib.import_module("megatron.core.tensor_parallel.random")
    # All dropouts are 0, so no random state has to be synchronized between ranks or recomputations.
    random.__dict__["_get_cuda_rng_state"] = _no_rng_state
    random.__dict__["_set_cuda_rng_state"] = _no_rng_state
    random.CudaRNGStatesTracker.fork = _fork_nothing
    torch.Tensor.cuda = _tensor_cuda
    torch.Tensor.type = _tensor_type


def _on_cpu(factory: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    @functools.wraps(factory)
    def on_cpu(*args: Any, **kwargs: Any) -> torch.Tensor:
        if "device" in kwargs and str(kwargs["device"]).startswith("cuda"):
            kwargs["device"] = "cpu"
        return factory(*args, **kwargs)

    return on_cpu


def _no_rng_state(*args: Any, **kwargs: Any) -> None:
    return None


@contextlib.contextmanager
def _fork_nothing(tracker: Any, name: str = "") -> Iterator[None]:
    yield


_type_of = torch.Tensor.type


def _tensor_cuda(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    return tensor


def _tensor_type(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
    """Name CPU tensors as CUDA types, as the optimizer and gradient clipping expect; conversions are unchanged."""
    result = _type_of(tensor, *args, **kwargs)
    if isinstance(result, str) and not tensor.is_cuda:
        return result.replace("torch.", "torch.cuda.", 1)
    return result
