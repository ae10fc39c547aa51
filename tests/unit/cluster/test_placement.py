from __future__ import annotations

import pytest

from rl.cluster.placement import Placement, place
from rl.config.schema import Config
from rl.errors import ConfigError


def placed(
    *,
    actor: int = 1,
    rollout: int = 1,
    tp: int = 1,
    colocated: bool = True,
    on_cuda: bool = True,
    cores: tuple[int, ...] = (),
    num_cpus: int | None = None,
    with_reference: bool = False,
) -> Placement:
    config = Config()
    config.rl_config.actor_resource.num_devices = actor
    config.rl_config.actor_resource.num_cpus = num_cpus
    config.rl_config.rollout_resource.num_devices = rollout
    config.rl_config.use_integrated_worker = colocated
    config.generate_config.infer_tensor_parallel_size = tp
    return place(config, cores=cores, on_cuda=on_cuda, with_reference=with_reference)


def test_place_on_cpu_gives_each_phase_all_cores() -> None:
    layout = placed(actor=2, on_cuda=False, cores=(3, 5, 7, 9), with_reference=True)
    assert [p.cores for p in layout.actors] == [(3, 5), (7, 9)]
    assert [p.cores for p in layout.references] == [(3, 5), (7, 9)]
    assert [p.cores for p in layout.rollouts] == [(3, 5, 7, 9)]
    assert layout.num_devices == 0


def test_place_on_cpu_shares_cores_that_are_too_few_in_turn() -> None:
    layout = placed(actor=3, on_cuda=False, cores=(0, 1))
    assert [p.cores for p in layout.actors] == [(0,), (1,), (0,)]


def test_place_on_cpu_keeps_to_the_cores_of_a_process() -> None:
    layout = placed(actor=2, on_cuda=False, cores=(0, 1, 2, 3, 4, 5), num_cpus=2)
    assert [p.cores for p in layout.actors] == [(0, 1), (2, 3)]


def test_place_colocated_engines_share_the_actors_devices() -> None:
    layout = placed(actor=4, rollout=1, tp=2, with_reference=True)
    assert [p.devices for p in layout.actors] == [(0,), (1,), (2,), (3,)]
    assert [p.devices for p in layout.references] == [(0,), (1,), (2,), (3,)]
    assert [(p.index, p.devices) for p in layout.rollouts] == [(0, (0, 1)), (1, (2, 3))]
    assert layout.num_devices == 4


def test_place_apart_engines_follow_the_actor() -> None:
    layout = placed(actor=2, rollout=4, tp=2, colocated=False)
    assert [p.devices for p in layout.actors] == [(0,), (1,)]
    assert [p.devices for p in layout.rollouts] == [(2, 3), (4, 5)]
    assert layout.references == ()
    assert layout.num_devices == 6


@pytest.mark.parametrize(("colocated", "section"), [(True, "actor_resource"), (False, "rollout_resource")])
def test_place_devices_that_engines_cannot_share_are_an_error(colocated: bool, section: str) -> None:
    with pytest.raises(ConfigError, match=rf"rl_config\.{section}\.num_devices: 3 devices .*size 2"):
        placed(actor=3, rollout=3, tp=2, colocated=colocated)
