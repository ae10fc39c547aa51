"""Arguments passed to vLLM on CUDA and on the CPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import ray
from vllm import AsyncEngineArgs
from vllm.config import ParallelConfig

from rl.config.schema import Config, Device
from rl.inference.engine import _engine_arguments


def arguments(device: Device, **generate: object) -> AsyncEngineArgs:
    config = Config()
    config.megatron_training.device = device
    for key, value in generate.items():
        setattr(config.generate_config, key, value)
    return _engine_arguments(config, Path("model"), seed=1, on_cuda=device is Device.CUDA)


def test_only_a_cuda_engine_sleeps_and_captures_graphs() -> None:
    cuda, cpu = arguments(Device.CUDA), arguments(Device.CPU)
    assert (cuda.enable_sleep_mode, cuda.enforce_eager, cuda.gpu_memory_utilization) == (True, False, 0.5)
    assert (cpu.enable_sleep_mode, cpu.enforce_eager, cpu.kv_cache_memory_bytes) == (False, True, 2 << 30)
    assert arguments(Device.CUDA, enforce_eager=True).enforce_eager
    assert not arguments(Device.CPU, enforce_eager=False).enforce_eager


def test_engine_in_a_placement_group_runs_its_workers_as_child_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """By default vLLM would let Ray place them on the first bundles of the group, which belong to another engine."""
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(ray.util, "get_current_placement_group", object)
    assert ParallelConfig(tensor_parallel_size=2).distributed_executor_backend == "ray"
    ours = arguments(Device.CUDA, infer_tensor_parallel_size=2).distributed_executor_backend
    assert (
        ParallelConfig(tensor_parallel_size=2, distributed_executor_backend=ours).distributed_executor_backend == "mp"
    )
    alone = arguments(Device.CUDA).distributed_executor_backend
    assert ParallelConfig(distributed_executor_backend=alone).distributed_executor_backend == "uni"
