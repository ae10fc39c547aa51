import os
import time

import pytest

from rl.services.sandbox import cgroup
from rl.services.sandbox.pool import SandboxPool


@pytest.fixture
def top():
    top = cgroup.make_top_group()
    if top is None:
        pytest.skip("this machine allows no control group")
    path = os.readlink(f"/proc/self/fd/{top.folder}")
    yield top
    top.remove()
    os.close(top.folder)
    assert not os.path.exists(path)


def wait_for(action, group):
    """Run this in a process of the group; returns its wait status."""
    wait, go = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.read(wait, 1)
        action()
        os._exit(0)
    group.admit(pid)
    os.write(go, b"x")
    status = os.waitpid(pid, 0)[1]
    os.close(wait)
    os.close(go)
    return status


def test_group_bounds_its_processes_and_counts_those_killed(top):
    group = cgroup.Group(top, "0")
    group.limit(64 << 20)
    assert (wait_for(lambda: bytearray(16 << 20), group), group.num_killed()) == (0, 0)
    assert (wait_for(lambda: bytearray(128 << 20), group), group.num_killed()) == (9, 1)
    group.limit(256 << 20)
    assert (wait_for(lambda: bytearray(128 << 20), group), group.num_killed()) == (0, 1)
    group.remove()


def test_group_of_a_worker_that_died_is_taken_over(top):
    cgroup.Group(top, "0")
    cgroup.Group(top, "0").remove()


def test_top_group_stays_while_a_worker_has_one(top):
    group = cgroup.Group(top, "0")
    top.remove()
    assert os.listdir(top.folder)
    group.remove()


def test_pool_leaves_no_group_behind(top):
    above = os.path.dirname(os.readlink(f"/proc/self/fd/{top.folder}"))
    pool = SandboxPool(2, preload=())
    path = f"{above}/turnwise-sandbox-{pool._zygotes[()]._process.pid}"
    assert os.path.isdir(path)
    pool.close()
    deadline = time.monotonic() + 20
    while os.path.exists(path):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_groups_of_a_killed_zygote_are_removed_by_the_next(top):
    folder = os.path.dirname(os.readlink(f"/proc/self/fd/{top.folder}"))
    pid = os.fork()
    if pid == 0:
        left = cgroup.make_top_group()
        cgroup.Group(left, "3")
        os._exit(0)
    os.waitpid(pid, 0)
    path = f"{folder}/turnwise-sandbox-{pid}"
    assert os.path.isdir(f"{path}/3")
    cgroup.remove_abandoned_groups(folder)
    assert not os.path.exists(path)
    assert os.path.exists(f"{folder}/turnwise-sandbox-{os.getpid()}")


@pytest.mark.parametrize(
    ("own_control", "above_control", "own_limit", "expected"),
    [
        ("memory pids", "", "max", ["work"]),
        ("", "cpu memory", "max", ["work", "."]),
        ("", "cpu memory", "1073741824", ["work"]),
        ("", "cpu", "max", ["work"]),
    ],
)
def test_unified_groups_lie_below_ours_or_beside_one_without_a_limit(
    tmp_path, own_control, above_control, own_limit, expected
):
    own = tmp_path / "work"
    own.mkdir()
    (own / "cgroup.subtree_control").write_text(own_control)
    (own / "memory.max").write_text(own_limit)
    (tmp_path / "cgroup.subtree_control").write_text(above_control)
    found = list(cgroup._unified_folders(str(own)))
    assert found == [str(tmp_path / name) if name != "." else str(tmp_path) for name in expected]
