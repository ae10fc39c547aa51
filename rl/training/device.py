"""The one place that knows whether models run on CUDA or on the CPU.

Megatron-Core 0.16 names CUDA in a handful of places even where nothing needs it: `device="cuda"`,
`torch.cuda.current_device()`, `torch.cuda.synchronize()`, `Tensor.cuda()`, comparisons of `Tensor.type()` with
`torch.cuda.*Tensor`, and the random states that activation recomputation and sequence parallelism save. On the CPU
`setup_device` points these at the CPU, in Megatron's modules and in two methods of `Tensor`. Where CUDA is in use it
changes nothing.
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
"""Modules whose name `torch` is replaced on the CPU."""


_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
"""From malloc.h of glibc."""


def setup_device(device: Device, *, num_threads: int | None = None, index: int = 0) -> torch.device:
    """Make this process train on a device; call it once, before any model is built.

    Args:
        device: `auto` takes CUDA where there is one.
        num_threads: Threads of CPU operators; None leaves torch's own number. Ray sets OMP_NUM_THREADS=1 in its
            workers, so a worker on the CPU gives its cores here.
        index: The CUDA device of this process among the visible ones.

    Returns:
        The torch device that tensors belong on.

    Raises:
        ConfigError: CUDA is asked for and there is none.
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
    """Let this process keep what it frees, for its next allocation.

    By default the C library gives blocks of 32 MB and more, and the free end of the heap, back to the system at once,
    and the next micro-batch has every page of them made and zeroed anew: a tenth of an update's time.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_THRESHOLD, 1 << 30)
        libc.mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1)


class _CudaOnCpu(ModuleType):
    """Stands for `torch.cuda` in Megatron's modules."""

    def __getattr__(self, name: str) -> Any:
        return getattr(torch.cuda, name)

    def current_device(self) -> str:
        return "cpu"

    def synchronize(self, device: Any = None) -> None:
        return None


class _TorchOnCpu(ModuleType):
    """Stands for `torch` in Megatron's modules: factories that are told `cuda` make CPU tensors."""

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
    # All dropouts are 0, so there is no random state to keep in step between ranks or recomputations.
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
    """`Tensor.type()` as on CUDA, which the optimizer and gradient clipping insist on; conversions as ever."""
    result = _type_of(tensor, *args, **kwargs)
    if isinstance(result, str) and not tensor.is_cuda:
        return result.replace("torch.", "torch.cuda.", 1)
    return result
