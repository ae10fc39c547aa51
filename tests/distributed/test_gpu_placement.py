"""Ray with eight pretended GPUs: every process gets its own devices, named as the machine names them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from ray.util.placement_group import remove_placement_group

from rl.cluster.nodes import Nodes, _device_order, machines
from rl.cluster.placement import Placement, place
from rl.config.schema import Config
from rl.inference.environment import engine_environment

NAMES = [f"GPU-{letter * 8}-0000-0000-0000-000000000000" for letter in "abcdefgh"]
"""UUIDs, as some clusters and every MIG slice have them; Ray does not look whether they are there."""


@pytest.fixture(scope="module", autouse=True)
def eight_gpus() -> Iterator[None]:
    before = os.environ.get("CUDA_VISIBLE_DEVICES")
    os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(NAMES)
    try:
        ray.init(
            address="local", num_gpus=8, num_cpus=8, include_dashboard=False, log_to_driver=False,
            configure_logging=False, object_store_memory=128 * 1024**2,
        )  # fmt: skip
        yield
    finally:
        ray.shutdown()
        del os.environ["CUDA_VISIBLE_DEVICES"]
        if before is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = before


@ray.remote
class Reporter:
    """Stands for a worker."""

    def look(self) -> tuple[str, str | None, str | None]:
        variables = (os.environ.get("VLLM_WORKER_MULTIPROC_METHOD"), os.environ.get("CUDA_DEVICE_MAX_CONNECTIONS"))
        return os.environ["CUDA_VISIBLE_DEVICES"], *variables


def layout_of(*, actor: int, rollout: int = 1, tp: int = 1, colocated: bool, with_reference: bool = False) -> Placement:
    config = Config()
    config.rl_config.actor_resource.num_devices = actor
    config.rl_config.rollout_resource.num_devices = rollout
    config.rl_config.use_integrated_worker = colocated
    config.generate_config.infer_tensor_parallel_size = tp
    return place(config, cores=(), on_cuda=True, with_reference=with_reference)


def given_devices(layout: Placement) -> dict[str, list[str]]:
    """The devices that each process is told, by role, as the letters of their names."""
    nodes = Nodes(layout, machines())
    found: dict[str, list[str]] = {}
    for process in (*layout.actors, *layout.references, *layout.rollouts):
        options = nodes.options(process, {})
        visible = options["runtime_env"]["env_vars"]["CUDA_VISIBLE_DEVICES"].split(",")
        found.setdefault(process.role, []).append("".join(name[4] for name in visible))
    remove_placement_group(nodes._group)
    return found


@pytest.mark.parametrize(
    ("layout", "expected"),
    [
        (
            layout_of(actor=8, tp=4, colocated=True, with_reference=True),
            {"actor": list("abcdefgh"), "reference": list("abcdefgh"), "rollout": ["abcd", "efgh"]},
        ),
        (layout_of(actor=2, rollout=6, tp=3, colocated=False), {"actor": ["a", "b"], "rollout": ["cde", "fgh"]}),
    ],
    ids=["colocated", "apart"],
)
def test_processes_are_told_their_devices(layout: Placement, expected: dict[str, list[str]]) -> None:
    assert given_devices(layout) == expected


def test_actors_and_engines_see_their_devices_and_no_others(tmp_path: Path) -> None:
    """Real Ray actors in one placement group: neither Ray nor an empty share of GPUs takes the devices away."""
    layout = layout_of(actor=2, rollout=4, tp=2, colocated=False)
    nodes = Nodes(layout, machines())
    workers = [
        Reporter.options(  # type: ignore[attr-defined]
            **nodes.options(process, engine_environment(Config(), (), tmp_path))
        ).remote()
        for process in (*layout.actors, *layout.rollouts)
    ]
    seen = ray.get([worker.look.remote() for worker in workers], timeout=120)
    assert [visible for visible, *_ in seen] == [NAMES[0], NAMES[1], ",".join(NAMES[2:4]), ",".join(NAMES[4:6])]
    assert {tuple(rest) for _, *rest in seen} == {("spawn", "1")}
    for worker in workers:
        ray.kill(worker)
    remove_placement_group(nodes._group)


def test_devices_are_in_the_order_of_their_numbers_or_names() -> None:
    assert sorted(["10", "2", "0"], key=_device_order) == ["0", "2", "10"]
    slices = [f"MIG-{letter}0000000-0000-0000-0000-000000000000" for letter in "cab"]
    assert [name[4] for name in sorted(slices, key=_device_order)] == ["a", "b", "c"]
