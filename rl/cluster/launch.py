"""Start and end everything a run needs: Ray, embedded services, the workers and the folder in shared memory."""

from __future__ import annotations

import logging
import os
import re
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import ray

from rl.cluster.actors import ActorGroup
from rl.cluster.embedded_services import embedded_services
from rl.cluster.endings import (
    SHARED_MEMORY,
    adopting_orphans,
    descendants,
    end_processes,
    ignore_interrupts,
    interrupt_on_termination,
    kill_owners_of_trackers,
    note_shared_memory,
    remove_run_memory,
    remove_stale_shared_memory,
    terminated_like_interrupted,
)
from rl.cluster.health import get_all
from rl.cluster.nodes import Nodes, machines
from rl.cluster.placement import Placement, Process, place
from rl.cluster.rate_limits import start_rate_limits
from rl.cluster.relay import remove_folder
from rl.cluster.rollouts import RolloutGroup
from rl.cluster.turns import Turns
from rl.config.device import runs_on_cuda
from rl.config.schema import Config
from rl.errors import ConfigError
from rl.inference.environment import engine_environment
from rl.types import Prompt

logger = logging.getLogger(__name__)

_START_TIMEOUT_S = 900.0
_SHUTDOWN_TIMEOUT_S = 10.0
_CONNECT_TIMEOUT_S = 10.0
_HOST_AND_PORT = re.compile(r"(ray://)?(?P<host>[^:/]+):(?P<port>\d+)")
_OWN_RAY: dict[str, Any] = {
    "include_dashboard": False,
    "object_store_memory": 512 * 1024**2,
}


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
    num_steps: int | None = None,
    model_folder: Path | None = None,
    on_group: Callable[[int, int], None] = lambda done, wanted: None,
) -> Iterator[Cluster]:
    """Start the workers of a run, and end every process of it on the way out, whatever happened.

    Args:
        config: A validated configuration.
        log_directory: Each worker's output goes to a file of its own there.
        prompts: Training prompts for the rollout; None starts no rollout.
        loss: `policy` or `sft`: what the actor minimizes; None starts no actor.
        num_steps: Steps of the run, over which the learning rate decays; None: `train_iters`.
        model_folder: The model the engines load; by default `actor_config.load`.
        on_group: See `RolloutGroup`.

    Yields:
        The workers.

    Raises:
        TurnwiseError: A worker could not start; the message is its own.
    """
    on_cuda = runs_on_cuda(config)
    with_reference = loss == "policy" and config.rl_config.init_kl_coef > 0
    colocated = on_cuda and config.rl_config.use_integrated_worker and loss is not None and prompts is not None
    model_folder = model_folder or Path(config.actor_config.load)
    with ExitStack() as stack:
        stack.enter_context(terminated_like_interrupted())
        overrides = stack.enter_context(embedded_services(config)) if prompts is not None else {}
        shards = stack.enter_context(_shard_directory())
        stack.enter_context(adopting_orphans())
        stack.enter_context(_ray(config))
        interrupt_on_termination()  # again: Ray has set a handler of its own
        stack.callback(ignore_interrupts)  # a second Ctrl-C must not leave processes behind
        here, *others = machines()
        layout = place(
            config,
            cores=here.cores,
            on_cuda=on_cuda,
            with_reference=with_reference,
            other_cores=tuple(m.cores for m in others),
        )
        nodes = Nodes(layout, [here, *others])
        away = {nodes.node_of(p) for p in (*layout.actors, *layout.rollouts)} - {here.id}
        stack.callback(remove_folder, shards, away)
        rollouts = actor = None
        if prompts is not None:
            reward, workers = _start_rollouts(config, layout, nodes, log_directory, model_folder, overrides)
            stack.push(_shut_down([*workers, reward]))
            homes = [nodes.node_of(process) for process in layout.rollouts]
            _check_services_reach(overrides, set(homes) - {here.id})
            rollouts = RolloutGroup(workers, prompts, config, nodes=homes, on_group=on_group)
            if colocated:
                rollouts.leave_devices()  # before the actor loads its model beside them
        if loss is not None:
            actors = _start_actors(config, layout.actors, nodes, log_directory, loss=loss, num_steps=num_steps)
            references = _start_actors(config, layout.references, nodes, log_directory, loss="reference")
            stack.push(_shut_down(actors + references))
            homes = [nodes.node_of(process) for process in layout.actors]
            actor = ActorGroup(actors, references, config, shards, nodes=homes)
            if colocated and rollouts is not None:
                actor.turns = rollouts.turns = Turns(actor)
        note_shared_memory(shards)
        stack.callback(ignore_interrupts)  # the first of all endings
        yield Cluster(actor, rollouts)


def _start_actors(
    config: Config,
    processes: tuple[Process, ...],
    nodes: Nodes,
    log_directory: Path,
    *,
    loss: str,
    num_steps: int | None = None,
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
            num_steps=num_steps,
        )
        for process in processes
    ]
    get_all([w.start.remote() for w in workers], what=f"starting the {processes[0].role}", timeout_s=_START_TIMEOUT_S)
    return workers


def _start_rollouts(
    config: Config,
    layout: Placement,
    nodes: Nodes,
    log_directory: Path,
    model_folder: Path,
    overrides: dict[str, dict],
) -> tuple[Any, list[Any]]:
    """The reward worker and the engines."""
    from rl.cluster.workers import RewardWorker, RolloutWorker  # imports vLLM: only where an engine is wanted

    rate_limits = start_rate_limits(config, len(layout.rollouts))
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
            rate_limits=rate_limits,
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
        _connect(address)
        yield
    finally:
        children = [p for p in psutil.Process().children() if p.pid not in before]
        ours = [p for child in children for p in (child, *descendants(child))]
        kill_owners_of_trackers(ours)
        ray.shutdown()
        end_processes(ours)


def _connect(address: str | None) -> None:
    quiet = {"log_to_driver": False, "configure_logging": False}
    if address is None:
        ray.init(address="local", **quiet, **_OWN_RAY)
        return
    try:
        if found := _HOST_AND_PORT.fullmatch(address):  # Ray itself would try for many minutes
            socket.create_connection((found["host"], int(found["port"])), timeout=_CONNECT_TIMEOUT_S).close()
        ray.init(address=address, **quiet)
    except (OSError, OverflowError, RuntimeError, ValueError) as error:  # Ray: any of the last two and ConnectionError
        reason = str(error).partition("\n")[0].rstrip(".")
        raise ConfigError(
            f"rl_config.ray_address: no Ray cluster answers there, got '{address}' ({reason}). Start one with "
            "`ray start --head`, or remove the key: the run then starts its own."
        ) from error


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


def _check_services_reach(overrides: dict[str, dict], away: set[str]) -> None:
    """An embedded service answers on its own machine alone: what runs programs must not listen to a network."""
    if overrides and away:
        raise ConfigError(
            f"rl_config.tool_config_path: {', '.join(overrides)} is set to `embedded`, but engines run on "
            f"{len(away)} other machines. Start the service by itself (`python -m rl sandbox|retriever --host "
            "ADDRESS`), and give its address in the tool YAML."
        )


@contextmanager
def _shard_directory() -> Iterator[Path]:
    """A folder in shared memory for published weights; what killed processes left behind is removed."""
    remove_stale_shared_memory()
    directory = SHARED_MEMORY / f"turnwise-{os.getpid()}"
    directory.mkdir()
    try:
        yield directory
    finally:
        remove_run_memory(directory)
        remove_stale_shared_memory()
