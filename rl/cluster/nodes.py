"""The machines of a Ray cluster: each process's node, accelerators and cores."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group, placement_group_table
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy, PlacementGroupSchedulingStrategy

from rl.cluster.health import get_all
from rl.cluster.placement import Placement, Process
from rl.errors import ConfigError

_TIMEOUT_S = 900.0
_ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "CUDA_DEVICE_MAX_CONNECTIONS": "1",
    "RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES": "1",
}


@dataclass(slots=True, frozen=True)
class Machine:
    """One node of the cluster."""

    id: str
    """Ray's node id."""
    cores: tuple[int, ...]
    """Cores that processes may use."""


def machines() -> list[Machine]:
    """The cluster's nodes: the driver's own first, then the others by id."""
    own = ray.get_runtime_context().get_node_id()
    others = sorted(
        (node["NodeID"], int(node["Resources"].get("CPU", 1)))
        for node in ray.nodes()
        if node["Alive"] and node["NodeID"] != own
    )
    here = Machine(own, tuple(sorted(os.sched_getaffinity(0))))
    return [here, *(Machine(node_id, tuple(range(num_cores))) for node_id, num_cores in others)]


class Nodes:
    """Where the processes of a placement run. Accelerators are reserved; on CPU a process is tied to its machine.

    Args:
        layout: The processes.
        machines: The result of `machines()`.

    Raises:
        ConfigError: The accelerators of one engine are on two machines.
        RolloutError: The cluster does not have the accelerators.
    """

    def __init__(self, layout: Placement, machines: list[Machine]) -> None:
        self.machines = machines
        self._group: PlacementGroup | None = None
        self._bundles: list[int] = []
        """Indexed by the placement's devices; those of one machine are adjacent."""
        self._node_ids: list[str] = []
        self._devices: list[str] = []
        if layout.num_devices:
            self._reserve(layout.num_devices)
            for process in layout.rollouts:
                self._check_on_one_machine(process)

    def node_of(self, process: Process) -> str:
        """Ray's id of the node where a process runs."""
        return self._node_ids[process.devices[0]] if process.devices else self.machines[process.machine].id

    def options(self, process: Process, environment: dict[str, str]) -> dict[str, Any]:
        """Ray's options for a worker process: its node and its environment, including its accelerators."""
        environment = environment | _ENVIRONMENT
        if process.devices:
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(self._devices[i] for i in process.devices)
        return {
            "num_cpus": 0,
            "max_restarts": 0,
            "scheduling_strategy": self._strategy(process),
            "runtime_env": {"env_vars": environment},
        }

    def rendezvous(self, process: Process) -> str:
        """The address where the ranks of a process group meet: a free port on rank 0's machine."""
        task = ray.remote(num_cpus=0)(_free_address).options(scheduling_strategy=self._strategy(process))
        address: str = get_all([task.remote()], what="choosing a port", timeout_s=_TIMEOUT_S)[0]
        return address

    def _strategy(self, process: Process) -> Any:
        return self._bundle(self._bundles[process.devices[0]]) if process.devices else on_node(self.node_of(process))

    def _reserve(self, num_devices: int) -> None:
        self._group = placement_group([{"GPU": 1, "CPU": 1}] * num_devices, strategy="PACK")
        get_all([self._group.ready()], what=f"{num_devices} accelerators", timeout_s=_TIMEOUT_S)
        probe = ray.remote(num_gpus=1, num_cpus=0)(lambda: ray.get_gpu_ids()[0])
        refs = [probe.options(scheduling_strategy=self._bundle(i)).remote() for i in range(num_devices)]
        devices = [str(i) for i in get_all(refs, what="asking for the accelerators", timeout_s=_TIMEOUT_S)]
        nodes = placement_group_table(self._group)["bundles_to_node_id"]
        self._bundles = sorted(range(num_devices), key=lambda i: (nodes[i], _device_order(devices[i])))
        self._node_ids = [nodes[i] for i in self._bundles]
        self._devices = [devices[i] for i in self._bundles]

    def _bundle(self, index: int) -> PlacementGroupSchedulingStrategy:
        return PlacementGroupSchedulingStrategy(self._group, placement_group_bundle_index=index)

    def _check_on_one_machine(self, process: Process) -> None:
        if len({self._node_ids[i] for i in process.devices}) > 1:
            raise ConfigError(
                f"generate_config.infer_tensor_parallel_size: the {len(process.devices)} accelerators of engine "
                f"{process.index} lie on two machines. Choose a size that divides the accelerators of each machine."
            )


def on_node(node_id: str) -> NodeAffinitySchedulingStrategy:
    """Ray's option that ties a task or an actor to one node."""
    return NodeAffinitySchedulingStrategy(node_id, soft=False)


def _device_order(device: str) -> tuple[int, str]:
    """Sort key: numbers numerically; UUIDs of GPUs or MIG slices, all equally long, alphabetically."""
    return len(device), device


def _free_address() -> str:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return f"tcp://{ray.util.get_node_ip_address()}:{probe.getsockname()[1]}"
