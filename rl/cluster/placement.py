"""Which process runs where, as a pure function of the configuration and the machines."""

from __future__ import annotations

from dataclasses import dataclass

from rl.config.schema import Config
from rl.errors import ConfigError


@dataclass(slots=True, frozen=True)
class Process:
    """One worker process."""

    role: str
    """actor, reference, rollout or reward."""
    index: int
    """Rank of an actor or reference, replica of a rollout, number of a reward worker."""
    cores: tuple[int, ...] = ()
    """Cores its threads may use, on CPU."""
    devices: tuple[int, ...] = ()
    """Accelerators it sees, as indices into the placement's devices."""
    machine: int = 0
    """Its machine on CPU: 0 is the driver's, 1 the first of the others."""


@dataclass(slots=True, frozen=True)
class Placement:
    """All worker processes of a run, and the number of accelerators to reserve for them (0 on CPU)."""

    actors: tuple[Process, ...]
    references: tuple[Process, ...]
    rollouts: tuple[Process, ...]
    rewards: tuple[Process, ...]
    num_devices: int


def place(
    config: Config,
    *,
    cores: tuple[int, ...],
    on_cuda: bool,
    with_reference: bool,
    other_cores: tuple[tuple[int, ...], ...] = (),
) -> Placement:
    """Place the workers.

    On CUDA each actor rank has one device. Colocated engines take the actor's devices in order,
    `infer_tensor_parallel_size` each; otherwise they take the `rollout_resource.num_devices` after the actor's.
    On CPU the actor's ranks split the cores, and `rollout_resource.num_devices` engines split the same cores: the
    phases take turns, so each has the whole machine. In a cluster of several machines without accelerators,
    `use_integrated_worker: false` distributes the engines over the other machines, round-robin.

    Args:
        config: A validated configuration.
        cores: Cores of the driver's machine, for processes on CPU.
        on_cuda: Models run on accelerators.
        with_reference: A KL term needs the reference; it shares the actor's devices.
        other_cores: Cores of each other machine.

    Raises:
        ConfigError: The engines cannot divide the devices evenly.
    """
    rl, generate = config.rl_config, config.generate_config
    world_size = rl.actor_resource.num_devices
    tp = generate.infer_tensor_parallel_size
    rewards = tuple(Process("reward", i) for i in range(rl.num_reward_workers))
    if not on_cuda:
        actor_cores = _split(cores, world_size, rl.actor_resource.num_cpus)
        return Placement(
            actors=tuple(Process("actor", i, cores=c) for i, c in enumerate(actor_cores)),
            references=tuple(Process("reference", i, cores=c) for i, c in enumerate(actor_cores) if with_reference),
            rollouts=_engines_on_cpu(config, cores, () if rl.use_integrated_worker else other_cores),
            rewards=rewards,
            num_devices=0,
        )
    colocated = rl.use_integrated_worker
    num_rollout_devices = world_size if colocated else rl.rollout_resource.num_devices
    if num_rollout_devices % tp:
        where = "rl_config.actor_resource" if colocated else "rl_config.rollout_resource"
        raise ConfigError(
            f"{where}.num_devices: {num_rollout_devices} devices cannot be shared by engines of "
            f"generate_config.infer_tensor_parallel_size {tp}. Make the one a multiple of the other."
        )
    first = 0 if colocated else world_size
    starts = range(first, first + num_rollout_devices, tp)
    return Placement(
        actors=tuple(Process("actor", i, devices=(i,)) for i in range(world_size)),
        references=tuple(Process("reference", i, devices=(i,)) for i in range(world_size) if with_reference),
        rollouts=tuple(
            Process("rollout", i, devices=tuple(range(start, start + tp))) for i, start in enumerate(starts)
        ),
        rewards=rewards,
        num_devices=world_size if colocated else world_size + num_rollout_devices,
    )


def _engines_on_cpu(
    config: Config, cores: tuple[int, ...], other_cores: tuple[tuple[int, ...], ...]
) -> tuple[Process, ...]:
    resource = config.rl_config.rollout_resource
    machines = list(enumerate(other_cores, start=1)) or [(0, cores)]
    engines: list[Process] = []
    for k, (machine, its_cores) in enumerate(machines):
        mine = range(k, resource.num_devices, len(machines))
        if mine:
            shares = _split(its_cores, len(mine), resource.num_cpus)
            engines += [Process("rollout", i, cores=c, machine=machine) for i, c in zip(mine, shares, strict=True)]
    return tuple(sorted(engines, key=lambda process: process.index))


def _split(cores: tuple[int, ...], num_processes: int, num_cpus: int | None) -> list[tuple[int, ...]]:
    """Give each process its own cores; with fewer cores than processes they share, round-robin."""
    share = min(num_cpus or len(cores), max(1, len(cores) // num_processes))
    return [tuple(cores[(i * share + k) % len(cores)] for k in range(share)) for i in range(num_processes)]
