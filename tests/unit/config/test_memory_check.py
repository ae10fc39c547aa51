"""What a run needs of GPUs and their host against what is free, with numbers by hand."""

from __future__ import annotations

import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rl.config import machine
from rl.config import memory_check as module
from rl.config.device_memory import DeviceMemory, device_memory
from rl.config.estimates import GIB
from rl.config.load import load_config
from rl.config.machine import free_device_memory
from rl.config.memory_check import device_problems, memory_problems
from rl.config.schema import Config, Device, ModelConfig
from rl.errors import ConfigError

QWEN25_7B = ModelConfig("qwen2", 28, 3584, 18944, 28, 4, None, 152064, False)


def need(*, learning: float = 50, resident: float = 2, engine: float = 18, share: float = 0.5) -> DeviceMemory:
    """In GiB."""
    return DeviceMemory(int(learning * GIB), int(resident * GIB), int(engine * GIB), share, 0, 0)


def on_devices(*free_and_total: tuple[float, float], num: int = 1, apart: bool = False, **sizes: float) -> list[str]:
    config = Config()
    config.rl_config.actor_resource.num_devices = num
    config.rl_config.use_integrated_worker = not apart
    devices = [(int(free * GIB), int(total * GIB)) for free, total in free_and_total]
    return [problem.text for problem in device_problems(config, need(**sizes), devices)]


def test_devices_that_hold_each_phase_are_no_problem() -> None:
    assert on_devices((79, 80)) == []
    assert on_devices((52, 52), learning=52, engine=26, resident=26) == []  # to the byte


def test_an_update_that_does_not_fit_says_what_to_lower() -> None:
    (text,) = on_devices((49, 80), share=0.4)
    assert text.startswith(
        "actor_config.load: an update needs about 50.0 GiB of each device, 49.0 GiB are free. Lower "
    )


def test_an_engine_that_does_not_fit_beside_what_stays_of_the_actor_is_told() -> None:
    (text,) = on_devices((70, 80), share=0.8, resident=8)
    assert "an engine takes 64.0 GiB of each device beside 8.0 GiB of the actor that stay, 70.0 GiB are free." in text
    (text,) = on_devices((60, 80), (60, 80), apart=True, share=0.8, resident=0)
    assert "an engine takes 64.0 GiB of each device, 60.0 GiB are free." in text


def test_a_share_too_small_for_the_model_is_told() -> None:
    (text,) = on_devices((80, 80), share=0.2)
    assert "an engine needs at least 18.0 GiB of each device, 0.2 of 80.0 GiB are 16.0. Raise it" in text


def test_the_freest_devices_count_since_ray_chooses_among_all() -> None:
    assert on_devices((10, 80), (79, 80)) == []
    assert len(on_devices((10, 80), (79, 80), num=2)) == 2
    assert on_devices((79, 80), num=2) == []  # too few: told elsewhere


def shipped(**changes: Any) -> Config:
    config = load_config("dapo_qwen25_7b_multi_turn", ["megatron_training.device=cuda"])
    for key, value in changes.items():
        setattr(config.generate_config, key, value)
    return config


def problems_on(
    monkeypatch: pytest.MonkeyPatch, config: Config, *, device: float, host: float, shm: float
) -> list[str]:
    monkeypatch.setattr(module, "free_device_memory", lambda: [(int(device * GIB), int(80 * GIB))] * 8)
    monkeypatch.setattr(module, "free_memory_bytes", lambda: int(host * GIB))
    monkeypatch.setattr(module, "free_shared_bytes", lambda: int(shm * GIB))
    return [problem.text for problem in memory_problems(config)]


def test_shipped_7b_fits_on_eight_gpus_of_80_gb_with_room_to_spare(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("dapo_qwen25_7b_multi_turn", "dapo_qwen25_7b_search"):
        config = load_config(name, ["megatron_training.device=cuda"])
        assert problems_on(monkeypatch, config, device=79, host=500, shm=16) == []
        assert 1.2 * device_memory(config, QWEN25_7B).smallest_device_bytes < 79 * GIB  # estimates are so exact


def test_host_and_shared_memory_are_looked_at_on_cuda_too(monkeypatch: pytest.MonkeyPatch) -> None:
    host, shared = problems_on(monkeypatch, shipped(), device=79, host=100, shm=64 / 1024)
    # 8 actors: parameters 7.09 GiB and a quarter of 42.55; published once, 7,615 M in bfloat16.
    assert host.startswith(
        "generate_config.offload_train_*: 141.8 GiB of host memory hold the actor while engines sample, and 14.2 GiB "
        "the published weights; 100.0 GiB are free."
    )
    assert "published weights need 14.18 GiB of shared memory, 0.06 GiB are free in /dev/shm." in shared
    assert "`--shm-size=22g`" in shared
    kept = shipped(offload_train_optimizer=False, offload_train_param=False)
    assert problems_on(monkeypatch, kept, device=79, host=100, shm=16) == []


def test_devices_that_do_not_answer_are_a_problem_and_no_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> list[tuple[int, int]]:
        raise ConfigError("megatron_training.device: the accelerators do not answer, got 'x'.")

    monkeypatch.setattr(module, "free_device_memory", refuse)
    monkeypatch.setattr(module, "free_memory_bytes", lambda: 10**15)
    monkeypatch.setattr(module, "free_shared_bytes", lambda: 10**15)
    assert [p.text for p in memory_problems(shipped())] == [
        "megatron_training.device: the accelerators do not answer, got 'x'."
    ]


def test_free_device_memory_reads_what_the_child_process_prints(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_ASK_DEVICES", "print('[[1, 2], [3, 4]]')")
    assert free_device_memory() == [(1, 2), (3, 4)]
    monkeypatch.setattr(machine, "_ASK_DEVICES", "raise RuntimeError('no driver')")
    with pytest.raises(ConfigError, match=r"do not answer, got 'RuntimeError: no driver'. Look at `nvidia-smi`"):
        free_device_memory()
    slow = subprocess.TimeoutExpired(["python"], 120)
    monkeypatch.setattr(machine, "subprocess", SimpleNamespace(run=lambda *a, **k: (_ for _ in ()).throw(slow), **{
        name: getattr(subprocess, name) for name in ("CalledProcessError", "TimeoutExpired")
    }))  # fmt: skip
    with pytest.raises(ConfigError, match="timed out after 120 seconds"):
        free_device_memory()


def test_free_device_memory_asks_for_no_gpu_where_there_is_none() -> None:
    import torch

    assert len(free_device_memory()) == torch.cuda.device_count()


def test_cold_start_and_evaluation_need_less() -> None:
    config = shipped()
    whole = device_memory(config, QWEN25_7B)
    alone = device_memory(config, QWEN25_7B, with_engines=False)
    engines = device_memory(config, QWEN25_7B, with_actor=False)
    assert alone.learning_bytes == whole.learning_bytes - 2 * GIB  # no engine's process
    assert (alone.pinned_bytes, alone.published_bytes, alone.engine_bytes, alone.resident_bytes) == (0, 0, 0, 0)
    assert (engines.learning_bytes, engines.pinned_bytes, engines.published_bytes) == (0, 0, 0)
    assert engines.engine_bytes == whole.engine_bytes


def test_memory_of_another_machine_is_not_judged_by_this_one(tmp_path: Path) -> None:
    config = shipped()
    config.rl_config.ray_address = "auto"
    config.megatron_training.device = Device.CUDA
    assert list(memory_problems(config)) == []
