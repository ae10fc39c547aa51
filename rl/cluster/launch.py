"""Start and end everything a run needs: Ray, embedded services, the workers and the folder in shared memory."""

from __future__ import annotations

import logging
import os
import shutil
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import ray
from ray.util.placement_group import PlacementGroup, placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from rl.cluster.actors import ActorGroup
from rl.cluster.embedded_services import embedded_services
from rl.cluster.endings import (
    adopting_orphans,
    descendants,
    ignore_interrupts,
    interrupt_on_sigterm,
    terminated_like_interrupted,
)
from rl.cluster.health import get_all
from rl.cluster.placement import Placement, Process, place
from rl.cluster.rollouts import RolloutGroup
from rl.config.device import runs_on_cuda
from rl.config.schema import Config
from rl.inference.environment import engine_environment
from rl.types import Prompt

logger = logging.getLogger(__name__)

_START_TIMEOUT_S = 900.0
_SHUTDOWN_TIMEOUT_S = 10.0
_OWN_RAY: dict[str, Any] = {
    "include_dashboard": False,
    "object_store_memory": 512 * 1024**2,
}
_SHARED_MEMORY = Path("/dev/shm")


@dataclass(slots=True)
class Cluster:
    """The running workers; `actor` or `rollouts` is None where the run asked for none."""

    actor: ActorGroup | None
    rollouts: RolloutGroup | None


@contextmanager
def launch(
    config: Config,
    *,
    log_directory: Path,
    prompts: list[Prompt] | None = None,
    loss: str | None = "policy",
    model_folder: Path | None = None,
    on_group: Callable[[int, int], None] = lambda done, wanted: None,
) -> Iterator[Cluster]:
    """Start the workers of a run, and end every process of it on the way out, whatever happened.

    Args:
        config: A validated configuration.
        log_directory: Each worker's output goes to a file of its own there.
        prompts: Training prompts for the rollout; None starts no rollout.
        loss: `policy` or `sft`: what the actor minimizes; None starts no actor.
        model_folder: The model the engines load; by default `actor_config.load`.
        on_group: See `RolloutGroup`.

    Yields:
        The workers.

    Raises:
        TurnwiseError: A worker could not start; the message is its own.
    """
    on_cuda = runs_on_cuda(config)
    with_reference = loss == "policy" and config.rl_config.init_kl_coef > 0
    cores = tuple(sorted(os.sched_getaffinity(0)))
    layout = place(config, cores=cores, on_cuda=on_cuda, with_reference=with_reference)
    colocated = on_cuda and config.rl_config.use_integrated_worker and loss is not None and prompts is not None
    model_folder = model_folder or Path(config.actor_config.load)
    with ExitStack() as stack:
        stack.enter_context(terminated_like_interrupted())
        overrides = stack.enter_context(embedded_services(config)) if prompts is not None else {}
        shards = stack.enter_context(_shard_directory())
        stack.enter_context(adopting_orphans())
        stack.enter_context(_ray(config))
        interrupt_on_sigterm()  # again: Ray has set a handler of its own
        stack.callback(ignore_interrupts)  # a second Ctrl-C must not leave processes behind
        nodes = _Nodes(layout)
        rollouts = actor = None
        if prompts is not None:
            reward, workers = _start_rollouts(config, layout, nodes, log_directory, model_folder, overrides)
            stack.push(_shut_down([*workers, reward]))
            rollouts = RolloutGroup(workers, prompts, config, sleep_between=colocated, on_group=on_group)
        if loss is not None:
            actors = _start_actors(config, layout.actors, nodes, log_directory, loss=loss)
            references = _start_actors(config, layout.references, nodes, log_directory, loss="reference")
            stack.push(_shut_down(actors + references))
            actor = ActorGroup(actors, references, config, shards, offload=colocated)
        stack.callback(ignore_interrupts)  # the first of all endings
        yield Cluster(actor, rollouts)


class _Nodes:
    """Where the bundles of the placement lie: their nodes' addresses and accelerators."""

    def __init__(self, layout: Placement) -> None:
        self.group: PlacementGroup | None = None
        self.devices: list[str] = []
        if layout.num_devices:
            self.group = placement_group([{"GPU": 1, "CPU": 1}] * layout.num_devices, strategy="PACK")
            get_all([self.group.ready()], what=f"{layout.num_devices} accelerators", timeout_s=_START_TIMEOUT_S)
            probe = ray.remote(num_gpus=1, num_cpus=0)(lambda: ray.get_gpu_ids()[0])
            refs = [probe.options(scheduling_strategy=self._bundle(i)).remote() for i in range(layout.num_devices)]
            ids = get_all(refs, what="asking for the accelerators", timeout_s=_START_TIMEOUT_S)
            self.devices = [str(i) for i in ids]

    def options(self, process: Process, environment: dict[str, str]) -> dict[str, Any]:
        """Ray's options for a worker process; the bundle reserves the accelerators, the environment names them."""
        environment = environment | _COMMON_ENVIRONMENT
        options: dict[str, Any] = {"num_cpus": 0, "max_restarts": 0}
        if process.devices and self.group is not None:
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(self.devices[i] for i in process.devices)
            options["scheduling_strategy"] = self._bundle(process.devices[0])
        return options | {"runtime_env": {"env_vars": environment}}

    def rendezvous(self, process: Process) -> str:
        """An address where the ranks of a process group can meet: a free port beside rank 0."""
        task = ray.remote(num_cpus=0)(_free_address)
        if process.devices and self.group is not None:
            task = task.options(scheduling_strategy=self._bundle(process.devices[0]))
        address: str = get_all([task.remote()], what="choosing a port", timeout_s=_START_TIMEOUT_S)[0]
        return address

    def _bundle(self, index: int) -> PlacementGroupSchedulingStrategy:
        return PlacementGroupSchedulingStrategy(self.group, placement_group_bundle_index=index)


_COMMON_ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "CUDA_DEVICE_MAX_CONNECTIONS": "1",
    "RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES": "1",
}


def _start_actors(
    config: Config, processes: tuple[Process, ...], nodes: _Nodes, log_directory: Path, *, loss: str
) -> list[Any]:
    from rl.cluster.workers import ActorWorker  # imports Megatron: only where an actor is wanted

    if not processes:
        return []
    init_method = nodes.rendezvous(processes[0])
    workers = [
        ActorWorker.options(**nodes.options(process, {})).remote(  # type: ignore[attr-defined]
            config,
            log_file=log_directory / f"{process.role}-{process.index}.log",
            rank=process.index,
            world_size=len(processes),
            init_method=init_method,
            loss=loss,
            num_threads=len(process.cores) or None,
        )
        for process in processes
    ]
    get_all([w.start.remote() for w in workers], what=f"starting the {processes[0].role}", timeout_s=_START_TIMEOUT_S)
    return workers


def _start_rollouts(
    config: Config,
    layout: Placement,
    nodes: _Nodes,
    log_directory: Path,
    model_folder: Path,
    overrides: dict[str, dict],
) -> tuple[Any, list[Any]]:
    """The reward worker and the engines."""
    from rl.cluster.workers import RewardWorker, RolloutWorker  # imports vLLM: only where an engine is wanted

    reward = RewardWorker.options(  # type: ignore[attr-defined]
        max_concurrency=100_000, **nodes.options(layout.reward, {})
    ).remote(config, log_file=log_directory / f"reward-{layout.reward.index}.log")
    workers = [
        RolloutWorker.options(  # type: ignore[attr-defined]
            max_concurrency=100_000, **nodes.options(process, engine_environment(config, process.cores))
        ).remote(
            config,
            log_file=log_directory / f"rollout-{process.index}.log",
            replica=process.index,
            model_folder=model_folder,
            reward_worker=reward,
            tool_overrides=overrides,
        )
        for process in layout.rollouts
    ]
    get_all([reward.start.remote()], what="starting the reward worker", timeout_s=_START_TIMEOUT_S)
    get_all([w.start.remote() for w in workers], what="starting the engines", timeout_s=_START_TIMEOUT_S)
    return reward, workers


@contextmanager
def _ray(config: Config) -> Iterator[None]:
    """A Ray of our own on this machine, or a connection to a running cluster.

    Engines put processes of their own under Ray's workers, which outlive a killed worker: all descendants of this
    process that Ray added are ended by process id.
    """
    address = config.rl_config.ray_address
    before = {p.pid for p in psutil.Process().children()}
    try:
        ray.init(
            address=address or "local", log_to_driver=False, configure_logging=False, **({} if address else _OWN_RAY)
        )
        yield
    finally:
        children = [p for p in psutil.Process().children() if p.pid not in before]
        ours = [p for child in children for p in (child, *descendants(child))]
        ray.shutdown()
        _, alive = psutil.wait_procs(ours, timeout=3)
        for process in alive:
            process.kill()
        psutil.wait_procs(alive, timeout=3)


def _shut_down(workers: list[Any]) -> Callable[..., None]:
    """An exit callback that asks workers to end their own processes.

    After an error or Ctrl-C they may be busy for minutes: they are not asked, and end with Ray.
    """

    def leave(kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        if kind is not None:
            return
        refs = [w.shutdown.remote() for w in workers]
        _, late = ray.wait(refs, num_returns=len(refs), timeout=_SHUTDOWN_TIMEOUT_S)
        if late:
            logger.warning("%d workers did not shut down within %.0f s; killing them", len(late), _SHUTDOWN_TIMEOUT_S)

    return leave


@contextmanager
def _shard_directory() -> Iterator[Path]:
    """A folder in shared memory for published weights; those that killed runs left behind are removed first."""
    for stale in _SHARED_MEMORY.glob("turnwise-*"):
        pid = stale.name.removeprefix("turnwise-")
        if pid.isdigit() and not psutil.pid_exists(int(pid)):
            shutil.rmtree(stale, ignore_errors=True)
    directory = _SHARED_MEMORY / f"turnwise-{os.getpid()}"
    directory.mkdir()
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _free_address() -> str:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return f"tcp://{ray.util.get_node_ip_address()}:{probe.getsockname()[1]}"
