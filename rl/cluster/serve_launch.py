"""Start and end what a service needs: engines and the HTTP server first, an actor for each training."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray

from rl.cluster.actors import ActorGroup
from rl.cluster.endings import ignore_interrupts, terminated_like_interrupted
from rl.cluster.health import get_all
from rl.cluster.launch import Site, needs_reference, open_site, shut_down, start_actor, start_rollouts, wait_for
from rl.cluster.nodes import Nodes, machines, on_node
from rl.cluster.placement import place
from rl.cluster.rollout_workers import RayWorkers
from rl.cluster.served_rollouts import ServedRollouts
from rl.cluster.serving import Front, ServingWorker
from rl.cluster.turns import Turns
from rl.config.device import runs_on_cuda
from rl.config.schema import Config

_START_TIMEOUT_S = 120.0


class ServiceHandle:
    """The running service, for the driver.

    Args:
        site: Where workers are placed.
        workers: The engines.
        front: The service.
        address: Address of its HTTP server.
    """

    def __init__(self, site: Site, workers: RayWorkers, front: Front, address: str) -> None:
        self.front, self.address = front, address
        self._site, self._workers = site, workers

    @contextmanager
    def training(
        self,
        config: Config,
        run_directory: Path,
        on_group: Callable[[int, int], None],
        journals: Sequence[Path] = (),
    ) -> Iterator[tuple[ActorGroup, ServedRollouts]]:
        """Start an actor, and end it after the block; the engines go on.

        Args:
            config: The training's.
            run_directory: Its run directory.
            on_group: See `ServedRollouts`.
            journals: See `ServedRollouts`.
        """
        site = self._site_of(config)
        rollouts = ServedRollouts(
            self._workers, self.front, config, run_directory, journals=journals, on_group=on_group
        )
        with ExitStack() as stack:
            if is_colocated(config):
                rollouts.leave_devices()
            actor = start_actor(site, "policy", {}, stack)
            if is_colocated(config):
                actor.turns = rollouts.turns = Turns(actor)
            yield actor, rollouts

    def _site_of(self, config: Config) -> Site:
        """The site with the actor's places for a configuration. Engines keep theirs."""
        here, *others = machines()
        layout = place(
            config,
            cores=here.cores,
            on_cuda=runs_on_cuda(config),
            with_reference=needs_reference(config, "policy"),
            other_cores=tuple(m.cores for m in others),
        )
        if layout.num_devices:  # the accelerators are reserved; the actor's are the same
            return replace(self._site, config=config, layout=replace(layout, rollouts=self._site.layout.rollouts))
        return replace(self._site, config=config, layout=layout, nodes=Nodes(layout, [here, *others]))


def is_colocated(config: Config) -> bool:
    """Whether actor and engines share accelerators."""
    return runs_on_cuda(config) and config.rl_config.use_integrated_worker


@contextmanager
def launch_service(config: Config, *, log_directory: Path, begins: bool) -> Iterator[ServiceHandle]:
    """Start the engines and the service, and always end all processes on exit.

    Args:
        config: A validated configuration.
        log_directory: Folder for each worker's log file.
        begins: The training begins without waiting for a client.

    Raises:
        TurnwiseError: A worker could not start; the message is its own.
    """
    with ExitStack() as stack:
        stack.enter_context(terminated_like_interrupted())
        with_notes = stack.enter_context(ExitStack())
        site = open_site(config, log_directory, stack, with_notes, with_reference=needs_reference(config, "policy"))
        workers, starts = start_rollouts(site, Path(config.actor_config.load), {}, stack)
        front, address = _start_front(site, workers, starts, stack, begins=begins)
        with_notes.close()
        stack.callback(ignore_interrupts)  # runs before all other exit callbacks
        yield ServiceHandle(site, workers, front, address)


def _start_front(
    site: Site, workers: RayWorkers, starts: dict[str, ray.ObjectRef], stack: ExitStack, *, begins: bool
) -> tuple[Front, str]:
    options: dict[str, Any] = {
        "max_concurrency": 100_000,
        "num_cpus": 0,
        "max_restarts": 0,
        "scheduling_strategy": on_node(site.here),
        "runtime_env": {"env_vars": {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}},
    }
    worker = ServingWorker.options(**options).remote(  # type: ignore[attr-defined]
        site.config,
        log_file=site.logs / "service.log",
        workers=list(workers.workers.values()),
        reward_workers=workers.rewards,
    )
    stack.push(shut_down([worker]))
    wait_for(starts)
    (address,) = get_all([worker.start.remote(begins)], what="starting the service", timeout_s=_START_TIMEOUT_S)
    return Front(worker), address
