"""Start and end everything a run needs: Ray, embedded services, the workers and the folder in shared memory."""

from __future__ import annotations

import logging
import re
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Literal

import psutil
import ray
import ray._private.worker as ray_worker

from rl.cluster.actors import ActorGroup
from rl.cluster.cluster import Cluster
from rl.cluster.embedded_services import embedded_services
from rl.cluster.endings import (
    SHARED_MEMORY,
    adopting_orphans,
    descendants,
    end_belongings,
    end_processes,
    ignore_interrupts,
    interrupt_on_termination,
    kill_owners_of_trackers,
    noting_belongings,
    remove_stale_marks,
    terminated_like_interrupted,
)
from rl.cluster.health import get_all
from rl.cluster.local import launch_locally
from rl.cluster.nodes import Nodes, machines
from rl.cluster.placement import Placement, Process, place
from rl.cluster.ranks import RayRanks
from rl.cluster.rate_limits import start_rate_limits
from rl.cluster.relay import remove_folder
from rl.cluster.rollout_workers import RayWorkers
from rl.cluster.rollouts import RolloutGroup
from rl.cluster.turns import Turns
from rl.cluster.workers import ActorWorker, RewardWorker, RolloutWorker
from rl.config.device import runs_on_cuda
from rl.config.estimates import object_store_bytes
from rl.config.schema import Config
from rl.errors import ConfigError
from rl.inference.environment import engine_environment
from rl.services.owned_folder import owned_folder
from rl.types import Prompt

logger = logging.getLogger(__name__)
ray_log = logging.getLogger("raylet")
"""Not below `ray`, of which the log file gets errors alone, nor below `rl`, whose warnings the terminal shows."""

_START_TIMEOUT_S = 900.0
_SHUTDOWN_TIMEOUT_S = 10.0
_CONNECT_TIMEOUT_S = 10.0
_FOLDER = "turnwise-run-"
_LONGEST_PARENT = 20
"""Of the folder of a run, whose longest path, of a socket of Ray, has 86 characters more."""
_HOST_AND_PORT = re.compile(r"(ray://)?(?P<host>[^:/]+):(?P<port>\d+)")


@contextmanager
def launch(
    config: Config,
    *,
    log_directory: Path,
    prompts: list[Prompt] | None = None,
    loss: Literal["policy", "sft"] | None = "policy",
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
    colocated = on_cuda and config.rl_config.use_integrated_worker and loss is not None and prompts is not None
    model_folder = model_folder or Path(config.actor_config.load)
    with ExitStack() as stack:
        stack.enter_context(terminated_like_interrupted())
        overrides = stack.enter_context(embedded_services(config)) if prompts is not None else {}
        if config.rl_config.in_process:
            yield stack.enter_context(launch_locally(config, prompts, loss, model_folder, overrides, on_group=on_group))
            return
        shards, folder = stack.enter_context(_own_place(config, log_directory))
        with_notes = stack.enter_context(ExitStack())
        with_notes.enter_context(noting_belongings(shards))
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
        for path in (shards, folder):
            stack.callback(remove_folder, path, away)
        rollouts = actor = None
        starts: dict[str, ray.ObjectRef] = {}
        if prompts is not None:
            homes = [nodes.node_of(process) for process in layout.rollouts]
            _check_services_reach(overrides, set(homes) - {here.id})
            rewards, workers, starts = _start_rollouts(
                config, layout, nodes, log_directory, model_folder, overrides, folder
            )
            stack.push(_shut_down([*workers, *rewards]))
            ray_workers = RayWorkers(workers, config, nodes=homes, writer=rewards[0])
            stack.push(_finish_writing(ray_workers))
            rollouts = RolloutGroup(ray_workers, prompts, config, on_group=on_group)
            if colocated:  # the actor loads where the engines are; elsewhere they start side by side
                _wait_for(starts)
                rollouts.leave_devices()
                starts = {}
        if loss is not None:
            actors, loads = _start_actors(config, layout.actors, nodes, log_directory, loss=loss)
            stack.push(_shut_down(actors))
            _wait_for(starts | loads)
            references, loads = _start_actors(config, layout.references, nodes, log_directory, loss="reference")
            stack.push(_shut_down(references))
            _wait_for(loads)
            homes = [nodes.node_of(process) for process in layout.actors]
            actor = ActorGroup(
                RayRanks(actors), RayRanks(references) if references else None, config, shards, nodes=homes
            )
            if colocated and rollouts is not None:
                actor.turns = rollouts.turns = Turns(actor)
        else:
            _wait_for(starts)
        with_notes.close()
        stack.callback(ignore_interrupts)  # the first of all endings
        yield Cluster(actor, rollouts)


def _start_actors(
    config: Config,
    processes: tuple[Process, ...],
    nodes: Nodes,
    log_directory: Path,
    *,
    loss: str,
) -> tuple[list[Any], dict[str, ray.ObjectRef]]:
    """The ranks, and the start of each under its name."""
    if not processes:
        return [], {}
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
    return workers, {f"starting {p.role} {p.index}": w.start.remote() for p, w in zip(processes, workers, strict=True)}


def _start_rollouts(
    config: Config,
    layout: Placement,
    nodes: Nodes,
    log_directory: Path,
    model_folder: Path,
    overrides: dict[str, dict],
    folder: Path,
) -> tuple[list[Any], list[Any], dict[str, ray.ObjectRef]]:
    """The reward workers, the engines, and the start of each under its name."""
    rate_limits = start_rate_limits(config, len(layout.rollouts))
    rewards = [
        RewardWorker.options(  # type: ignore[attr-defined]
            max_concurrency=100_000, **nodes.options(process, {})
        ).remote(config, log_file=log_directory / f"reward-{process.index}.log")
        for process in layout.rewards
    ]
    workers = [
        RolloutWorker.options(  # type: ignore[attr-defined]
            max_concurrency=100_000, **nodes.options(process, engine_environment(config, process.cores, folder))
        ).remote(
            config,
            log_file=log_directory / f"rollout-{process.index}.log",
            replica=process.index,
            model_folder=model_folder,
            socket_folder=folder,
            reward_workers=rewards,
            tool_overrides=overrides,
            rate_limits=rate_limits,
        )
        for process in layout.rollouts
    ]
    starts = {f"starting engine {p.index}": w.start.remote() for p, w in zip(layout.rollouts, workers, strict=True)}
    starts |= {
        f"starting reward worker {p.index}": w.start.remote() for p, w in zip(layout.rewards, rewards, strict=True)
    }
    return rewards, workers, starts


def _wait_for(starts: dict[str, ray.ObjectRef]) -> None:
    """Wait until all have started, or one has failed."""
    get_all(list(starts.values()), what="the workers' start", names=list(starts), timeout_s=_START_TIMEOUT_S)


@contextmanager
def _own_place(config: Config, log_directory: Path) -> Iterator[tuple[Path, Path]]:
    """Ray, a folder in shared memory for published weights, and one for sockets; nothing is left after the block."""
    with ExitStack() as stack:
        stack.callback(remove_stale_marks)
        shards = stack.enter_context(owned_folder(_FOLDER, SHARED_MEMORY, on_abandoned=end_belongings))
        folder = stack.enter_context(owned_folder(_FOLDER, _short_folder()))
        stack.enter_context(adopting_orphans())
        stack.enter_context(_ray(config, folder, log_directory))
        yield shards, folder


def _short_folder() -> Path:
    """Where a run's folder lies: sockets in it have paths of at most 107 bytes."""
    usual = Path(tempfile.gettempdir())
    return usual if len(str(usual)) <= _LONGEST_PARENT else Path("/tmp")


@contextmanager
def _ray(config: Config, folder: Path, log_directory: Path) -> Iterator[None]:
    """A Ray of our own on this machine, or a connection to a running cluster.

    Ray of our own keeps its sockets and logs in `folder`; its logs are copied to the run's after a failure.

    Engines put processes of their own under Ray's workers, which outlive a killed worker: all descendants of this
    process that Ray added are ended by process id.
    """
    before = {p.pid for p in psutil.Process().children()}
    try:
        _connect(config, folder)
        yield
    except Exception:
        _keep_logs(folder, log_directory / "ray")
        raise
    finally:
        ignore_interrupts()  # also where Ray was not up yet
        children = [p for p in psutil.Process().children() if p.pid not in before]
        ours = [p for child in children for p in (child, *descendants(child))]
        kill_owners_of_trackers(ours)
        ray.shutdown()
        end_processes(ours)


def _keep_logs(folder: Path, target: Path) -> None:
    """Copy Ray's logs; where that fails, on a full disk for example, the failure that they are kept for is told."""
    try:
        if logs := next(folder.glob("session_*_*/logs"), None):
            shutil.copytree(logs, target, ignore_dangling_symlinks=True, dirs_exist_ok=True)
    except OSError as error:
        logger.warning("%s: Ray's logs could not all be kept (%s)", target, str(error)[:200])


def _connect(config: Config, folder: Path) -> None:
    address = config.rl_config.ray_address
    ray_worker.print_to_stdstream = _log_ray_message
    quiet = {"log_to_driver": False, "configure_logging": False}
    if address is None:
        store = object_store_bytes(config)
        ray.init(
            address="local", _temp_dir=str(folder), include_dashboard=False, object_store_memory=store, **quiet
        )  # fmt: skip
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


def _log_ray_message(data: dict[str, Any], ignore_prefix: bool = False) -> None:
    """Take what Ray would print of its own between the lines of the run, pages long where a worker dies.

    Ray has a setting for what workers print (`log_to_driver`), and none for these messages.
    """
    ray_log.warning("%s", "\n".join(data["lines"]))


def _finish_writing(workers: RayWorkers) -> Callable[..., None]:
    """An exit callback that waits for the last trajectories, unless the run has failed."""

    def wait(kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        if kind is None:
            workers.finish_writing()

    return wait


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
