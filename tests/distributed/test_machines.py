"""Two Ray nodes on this machine stand for two machines: processes go where they belong, and weights follow them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
import torch
from ray.cluster_utils import Cluster

from rl.cluster.nodes import Nodes, machines, on_node
from rl.cluster.placement import place
from rl.cluster.relay import relay, remove_folder
from rl.config.schema import Config
from rl.types import WeightUpdate
from rl.weight_sync.shared_memory import publish, read_tensors


@pytest.fixture(scope="module")
def two_nodes() -> Iterator[list[str]]:
    """The ids of both nodes, the driver's first."""
    size = {"num_cpus": 2, "object_store_memory": 128 * 1024**2}
    cluster = Cluster(initialize_head=True, head_node_args=size)
    cluster.add_node(**size)
    try:
        ray.init(address=cluster.address, log_to_driver=False)
        yield [machine.id for machine in machines()]
    finally:
        ray.shutdown()
        cluster.shutdown()


def test_nodes_put_engines_apart_on_the_other_machine(two_nodes: list[str]) -> None:
    config = Config()
    config.rl_config.use_integrated_worker = False
    here, there = machines()
    layout = place(config, cores=here.cores, other_cores=(there.cores,), on_cuda=False, with_reference=False)
    nodes = Nodes(layout, [here, there])
    (actor,), (rollout,) = layout.actors, layout.rollouts
    assert [nodes.node_of(actor), nodes.node_of(rollout)] == two_nodes
    assert rollout.cores == (0, 1)
    where = ray.remote(lambda: ray.get_runtime_context().get_node_id())
    for process, expected in zip((actor, rollout), two_nodes, strict=True):
        task = where.options(scheduling_strategy=nodes.options(process, {})["scheduling_strategy"])
        assert ray.get(task.remote(), timeout=60) == expected
    assert nodes.rendezvous(actor).startswith("tcp://")


def test_relay_copies_files_to_machines_that_lack_them(
    two_nodes: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rl.cluster.relay._PIECE_BYTES", 100_000)  # of the driver: more pieces than one
    here, there = two_nodes
    for version in (1, 2):  # the second is written over the first
        weights = {"a": torch.full((300, 100), float(version)), "b": torch.arange(40_000.0) * version}
        shard = publish(iter(weights.items()), tmp_path, version=version)
        update = WeightUpdate(version, (str(shard.path),), None, (here,), (shard.num_bytes,))
        updates = relay(update, [there, here, there])
        assert updates[here] == update
        (copy,) = updates[there].paths
        assert copy == str(tmp_path / there / "weights-0.safetensors")
        arrived = dict(read_tensors((copy,), version=version))
        assert all(torch.equal(arrived[name], value) for name, value in weights.items())
    remove_folder(tmp_path / there, [there])
    assert not (tmp_path / there).exists()


def test_on_node_refuses_a_machine_that_is_gone(two_nodes: list[str]) -> None:
    task = ray.remote(num_cpus=0)(lambda: 1).options(scheduling_strategy=on_node("0" * 56))
    with pytest.raises(ray.exceptions.TaskUnschedulableError):
        ray.get(task.remote(), timeout=60)
