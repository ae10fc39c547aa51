"""Start and end everything a run needs: Ray, embedded services, the workers and the folder in shared memory."""

from __future__ import annotations

import logging
import re
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import psutil
import ray
import ray._private.worker as ray_worker

from rl.cluster.actors import ActorGroup
from rl.cluster.ahead_rollouts import AheadRollouts
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
from rl.cluster.health import get_all, result
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
from rl.rollout.replay import RecordedStep, Replay
from rl.services.owned_folder import owned_folder
from rl.types import Prompt

logger = logging.getLogger(__name__)
ray_log = logging.getLogger("raylet")
"""Neither a child of `ray`, whose warnings the log file drops, nor of `rl`, whose warnings the terminal shows."""

_START_TIMEOUT_S = 900.0
_SHUTDOWN_TIMEOUT_S = 10.0
_CONNECT_TIMEOUT_S = 10.0
_FOLDER = "turnwise-run-"
_LONGEST_PARENT = 20
"""Maximum characters of the parent folder; the longest path in a run's folder, of a Ray socket, has 86 more."""
_HOST_AND_PORT = re.compile(r"(ray://)?(?P<host>[^:/]+):(?P<port>\d+)")


@contextmanager
def launch(
    config: Config,
    *,
    log_directory: Path,
    prompts: list[Prompt] | None = None,
    loss: Literal["policy", "sft"] | None = "policy",
    model_folder: Path | None = None,
    replay: Sequence[RecordedStep] | None = None,
    on_group: Callable[[int, int], None] = lambda done, wanted: None,
) -> Iterator[Cluster]:
    """Start the workers of a run, and always end all its processes on exit.

    Args:
        config: A validated configuration.
        log_directory: Folder for each worker's log file.
        prompts: Training prompts for the rollout; None starts no rollout.
        loss: The actor's loss, `policy` or `sft`; None starts no actor.
        model_folder: Model that the engines load; by default `actor_config.load`.
        replay: Recorded steps that take the place of rollouts.
        on_group: See `RolloutGroup`.

    Yields:
        The workers.

    Raises:
        TurnwiseError: A worker could not start; the message is its own.
    """
    model_folder = model_folder or Path(config.actor_config.load)
    with ExitStack() as stack:
        stack.enter_context(terminated_like_interrupted())
        overrides = stack.enter_context(embedded_services(config)) if prompts is not None else {}
        if config.rl_config.in_process:
            cluster = stack.enter_context(
                launch_locally(config, prompts, loss, model_folder, overrides, on_group=on_group)
            )
            yield cluster if replay is None else Cluster(cluster.actor, Replay(replay))
            return
        with_notes = stack.enter_context(ExitStack())
        site = open_site(config, log_directory, stack, with_notes, with_reference=needs_reference(config, loss))
        rollouts = actor = None
        starts: dict[str, ray.ObjectRef] = {}
        colocated = runs_on_cuda(config) and config.rl_config.use_integrated_worker and loss and prompts is not None
        if prompts is not None:
            workers, starts = start_rollouts(site, model_folder, overrides, stack)
            kind = AheadRollouts if config.rl_config.runs_ahead and loss is not None else RolloutGroup
            rollouts = kind(workers, prompts, config, on_group=on_group)
            if colocated:  # the engines free their memory before the actor loads; apart, both start in parallel
                wait_for(starts)
                rollouts.leave_devices()
                starts = {}
        if loss is not None:
            actor = start_actor(site, loss, starts, stack)
            if colocated and rollouts is not None:
                actor.turns = rollouts.turns = Turns(actor)
        else:
            wait_for(starts)
        with_notes.close()
        stack.callback(ignore_interrupts)  # runs before all other exit callbacks
        recorded = Replay(replay, keep=ray.put, fetch=partial(result, what="the object store")) if replay else None
        yield Cluster(actor, rollouts or recorded)


@dataclass(slots=True, frozen=True)
class Site:
    """Where the workers of a run are placed, and the folders they share."""

    config: Config
    layout: Placement
    nodes: Nodes
    logs: Path
    shards: Path
    """Folder in shared memory for published weights."""
    sockets: Path
    here: str
    """Ray's id of the driver's machine."""


def needs_reference(config: Config, loss: str | None) -> bool:
    """Whether a KL term needs the reference."""
    return loss == "policy" and config.rl_config.init_kl_coef > 0


def open_site(
    config: Config, log_directory: Path, stack: ExitStack, with_notes: ExitStack, *, with_reference: bool
) -> Site:
    """Start Ray or connect to it, and place the workers."""
    shards, sockets = stack.enter_context(_own_place(config, log_directory))
    with_notes.enter_context(noting_belongings(shards))
    interrupt_on_termination()  # again, because Ray replaced the handler
    stack.callback(ignore_interrupts)  # a second Ctrl-C must not leave processes behind
    here, *others = machines()
    layout = place(
        config,
        cores=here.cores,
        on_cuda=runs_on_cuda(config),
        with_reference=with_reference,
        other_cores=tuple(m.cores for m in others),
    )
    nodes = Nodes(layout, [here, *others])
    away = {nodes.node_of(p) for p in (*layout.actors, *layout.rollouts)} - {here.id}
    for path in (shards, sockets):
        stack.callback(remove_folder, path, away)
    return Site(config, layout, nodes, log_directory, shards, sockets, here.id)


def start_actor(
    site: Site, loss: Literal["policy", "sft"], starts: dict[str, ray.ObjectRef], stack: ExitStack
) -> ActorGroup:
    """Start the actor's ranks, wait for them and for `starts`, then start the reference's ranks."""
    actors, loads = _start_ranks(site, site.layout.actors, loss=loss)
    stack.push(shut_down(actors))
    wait_for(starts | loads)
    references, loads = _start_ranks(site, site.layout.references, loss="reference")
    stack.push(shut_down(references))
    wait_for(loads)
    homes = [site.nodes.node_of(process) for process in site.layout.actors]
    reference = RayRanks(references) if references else None
    return ActorGroup(RayRanks(actors), reference, site.config, site.shards, nodes=homes)


def _start_ranks(
    site: Site, processes: tuple[Process, ...], *, loss: str
) -> tuple[list[Any], dict[str, ray.ObjectRef]]:
    """Create the ranks; returns them and the ref of each start, by name."""
    if not processes:
        return [], {}
    init_method = site.nodes.rendezvous(processes[0])
    workers = [
        ActorWorker.options(**site.nodes.options(process, {})).remote(  # type: ignore[attr-defined]
            site.config,
            log_file=site.logs / f"{process.role}-{process.index}.log",
            rank=process.index,
            world_size=len(processes),
            init_method=init_method,
            loss=loss,
            num_threads=len(process.cores) or None,
        )
        for process in processes
    ]
    return workers, {f"starting {p.role} {p.index}": w.start.remote() for p, w in zip(processes, workers, strict=True)}


def start_rollouts(
    site: Site, model_folder: Path, overrides: dict[str, dict], stack: ExitStack
) -> tuple[RayWorkers, dict[str, ray.ObjectRef]]:
    """Create reward workers and engines; returns the engines and the ref of each start, by name."""
    config, layout, nodes = site.config, site.layout, site.nodes
    homes = [nodes.node_of(process) for process in layout.rollouts]
    _check_services_reach(overrides, set(homes) - {site.here})
    rate_limits = start_rate_limits(config, len(layout.rollouts))
    rewards = [
        RewardWorker.options(  # type: ignore[attr-defined]
            max_concurrency=100_000, **nodes.options(process, {})
        ).remote(config, log_file=site.logs / f"reward-{process.index}.log")
        for process in layout.rewards
    ]
    engines = [
        RolloutWorker.options(  # type: ignore[attr-defined]
            max_concurrency=100_000, **nodes.options(process, engine_environment(config, process.cores, site.sockets))
        ).remote(
            config,
            log_file=site.logs / f"rollout-{process.index}.log",
            replica=process.index,
            model_folder=model_folder,
            socket_folder=site.sockets,
            reward_workers=rewards,
            tool_overrides=overrides,
            rate_limits=rate_limits,
        )
        for process in layout.rollouts
    ]
    stack.push(shut_down([*engines, *rewards]))
    workers = RayWorkers(engines, config, nodes=homes, rewards=rewards)
    stack.push(finish_writing(workers))
    starts = {f"starting reward worker {i}": worker.start.remote() for i, worker in enumerate(rewards)}
    starts |= {f"starting engine {i}": worker.start.remote() for i, worker in enumerate(engines)}
    return workers, starts


def wait_for(starts: dict[str, ray.ObjectRef]) -> None:
    """Wait until all workers have started or one has failed."""
    get_all(list(starts.values()), what="the workers' start", names=list(starts), timeout_s=_START_TIMEOUT_S)


@contextmanager
def _own_place(config: Config, log_directory: Path) -> Iterator[tuple[Path, Path]]:
    """Start Ray and make folders for published weights and sockets; all of it is removed after the block."""
    with ExitStack() as stack:
        stack.callback(remove_stale_marks)
        shards = stack.enter_context(owned_folder(_FOLDER, SHARED_MEMORY, on_abandoned=end_belongings))
        folder = stack.enter_context(owned_folder(_FOLDER, _short_folder()))
        stack.enter_context(adopting_orphans())
        stack.enter_context(_ray(config, folder, log_directory))
        yield shards, folder


def _short_folder() -> Path:
    """Parent of a run's folder, short because a socket's path has at most 107 bytes."""
    usual = Path(tempfile.gettempdir())
    return usual if len(str(usual)) <= _LONGEST_PARENT else Path("/tmp")


@contextmanager
def _ray(config: Config, folder: Path, log_directory: Path) -> Iterator[None]:
    """Start Ray on this machine, or connect to a running cluster.

    A local Ray keeps its sockets and logs in `folder`; after a failure its logs are copied to the run's.

    Engines start processes under Ray's workers that outlive a killed worker, so all descendants of this process that
    Ray added are ended by process id.
    """
    before = {p.pid for p in psutil.Process().children()}
    try:
        _connect(config, folder)
        yield
    except Exception:
        _keep_logs(folder, log_directory / "ray")
        raise
    finally:
        ignore_interrupts()  # also if Ray has not started yet
        children = [p for p in psutil.Process().children() if p.pid not in before]
        ours = [p for child in children for p in (child, *descendants(child))]
        kill_owners_of_trackers(ours)
        ray.shutdown()
        end_processes(ours)


def _keep_logs(folder: Path, target: Path) -> None:
    """Copy Ray's logs. An error here, such as a full disk, must not hide the run's failure."""
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
        if found := _HOST_AND_PORT.fullmatch(address):  # Ray itself would retry for many minutes
            socket.create_connection((found["host"], int(found["port"])), timeout=_CONNECT_TIMEOUT_S).close()
        ray.init(address=address, **quiet)
    except (OSError, OverflowError, RuntimeError, ValueError) as error:  # Ray raises the last two and ConnectionError
        reason = str(error).partition("\n")[0].rstrip(".")
        raise ConfigError(
            f"rl_config.ray_address: no Ray cluster answers there, got '{address}' ({reason}). Start one with "
            "`ray start --head`, or remove the key: the run then starts its own."
        ) from error


def _log_ray_message(data: dict[str, Any], ignore_prefix: bool = False) -> None:
    """Log Ray's own messages instead of printing them; they fill pages when a worker dies.

    Ray has a setting for the output of workers (`log_to_driver`), but none for these messages.
    """
    ray_log.warning("%s", "\n".join(data["lines"]))


def finish_writing(workers: RayWorkers) -> Callable[..., None]:
    """An exit callback that waits until the last trajectories are written; only briefly after a failure."""

    def wait(kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        if kind is None:
            workers.finish_writing()
        elif issubclass(kind, Exception):  # not Ctrl-C
            with suppress(Exception):  # the run's own failure is reported
                workers.finish_writing(_SHUTDOWN_TIMEOUT_S)

    return wait


def shut_down(workers: list[Any]) -> Callable[..., None]:
    """An exit callback that asks workers to end their own processes.

    After an error or Ctrl-C workers may be busy for minutes, so they are not asked and end with Ray.
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
    """Embedded services listen on localhost only, since a sandbox must not be open to a network."""
    if overrides and away:
        raise ConfigError(
            f"rl_config.tool_config_path: {', '.join(overrides)} is set to `embedded`, but engines run on "
            f"{len(away)} other machines. Start the service by itself (`python -m rl sandbox|retriever --host "
            "ADDRESS`), and give its address in the tool YAML."
        )
