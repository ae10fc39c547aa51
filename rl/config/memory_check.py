"""Compares the estimated memory of a run with the free memory of this machine."""

from __future__ import annotations

from collections.abc import Iterator

from rl.config.device import runs_on_cuda
from rl.config.device_memory import DeviceMemory, device_memory
from rl.config.estimates import GIB, memory_estimate, object_store_bytes
from rl.config.machine import free_device_memory, free_memory_bytes, free_shared_bytes
from rl.config.model_facts import find_model_facts
from rl.config.problems import Problem, error
from rl.config.schema import Config, ModelConfig
from rl.errors import ConfigError


def memory_problems(config: Config, *, with_actor: bool = True, with_engines: bool = True) -> Iterator[Problem]:
    """Check devices, host and shared memory of a run on this machine; other machines of a cluster are not checked."""
    facts, _ = find_model_facts(config)
    if facts is None or config.rl_config.ray_address is not None:
        return
    need = device_memory(config, facts, with_actor=with_actor, with_engines=with_engines)
    if runs_on_cuda(config):
        try:
            yield from device_problems(config, need, free_device_memory())
        except ConfigError as failure:
            yield error(str(failure))
        yield from host_problems(config, need)
    else:
        yield from cpu_problems(config, facts, with_actor=with_actor, with_engines=with_engines)
    store = object_store_bytes(config) if with_engines else 0
    if need.published_bytes + store > (free := free_shared_bytes()):
        yield error(
            f"actor_config.load: published weights need {need.published_bytes / GIB:.2f} GiB of shared memory and a "
            f"step's trajectories {store / GIB:.2f} GiB, {free / GIB:.2f} GiB are free in /dev/shm. Free some; a "
            f"container gets more with `--shm-size={int((need.published_bytes + store) / GIB) + 8}g`."
        )


def device_problems(config: Config, need: DeviceMemory, devices: list[tuple[int, int]]) -> Iterator[Problem]:
    """Check each phase on accelerators.

    Args:
        config: The run's configuration.
        need: Its memory.
        devices: Free and total bytes of each. Ray chooses among them, so the freest are checked.
    """
    rl, share = config.rl_config, need.engine_share
    wanted = rl.actor_resource.num_devices + (0 if rl.use_integrated_worker else rl.rollout_resource.num_devices)
    if wanted > len(devices):
        return  # reported by the check of the number of devices
    free, total = sorted(devices, reverse=True)[wanted - 1]
    if need.learning_bytes > free:
        yield error(
            f"actor_config.load: an update needs about {need.learning_bytes / GIB:.1f} GiB of each device, "
            f"{free / GIB:.1f} GiB are free. Lower rl_config.max_packing_token_size, raise "
            "actor_config.tensor_model_parallel_size, or set recompute_granularity to full."
        )
    if not need.engine_bytes:
        return
    if need.engine_bytes > share * total:
        yield error(
            f"generate_config.gpu_memory_utilization: an engine needs at least {need.engine_bytes / GIB:.1f} GiB of "
            f"each device, {share:g} of {total / GIB:.1f} GiB are {share * total / GIB:.1f}. Raise it, or "
            "infer_tensor_parallel_size."
        )
    if share * total + need.resident_bytes > free:
        beside = f" beside {need.resident_bytes / GIB:.1f} GiB of the actor that stay" if need.resident_bytes else ""
        yield error(
            f"generate_config.gpu_memory_utilization: an engine takes {share * total / GIB:.1f} GiB of each "
            f"device{beside}, {free / GIB:.1f} GiB are free. Lower it, offload more of the actor, or end what else "
            "runs there."
        )


def host_problems(config: Config, need: DeviceMemory) -> Iterator[Problem]:
    """Check the host memory of offloaded tensors and published weights; /dev/shm is host memory too."""
    pinned = need.pinned_bytes * config.rl_config.actor_resource.num_devices
    if pinned + need.published_bytes > (free := free_memory_bytes()):
        yield error(
            f"generate_config.offload_train_*: {pinned / GIB:.1f} GiB of host memory hold the actor while engines "
            f"sample, and {need.published_bytes / GIB:.1f} GiB the published weights; {free / GIB:.1f} GiB are free. "
            "Set some of those keys to false, or give the container more memory."
        )


def cpu_problems(config: Config, facts: ModelConfig, *, with_actor: bool, with_engines: bool) -> Iterator[Problem]:
    """Check the memory of models on CPU, where no phase frees any."""
    rl, generate = config.rl_config, config.generate_config
    estimate = memory_estimate(config, facts)
    engine = estimate.engine_parameter_bytes * generate.infer_tensor_parallel_size + generate.kv_cache_memory_gb * GIB
    need = estimate.actor_bytes * rl.actor_resource.num_devices if with_actor else 0
    need += int(engine) * rl.rollout_resource.num_devices if with_engines else 0
    if need > (free := free_memory_bytes()):
        yield error(
            f"actor_config.load: the run needs about {need / GIB:.1f} GiB of memory, {free / GIB:.1f} GiB are free. "
            "Lower rl_config.max_packing_token_size or generate_config.kv_cache_memory_gb, or take a smaller model."
        )
