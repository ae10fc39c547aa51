from __future__ import annotations

import pytest
from ray.exceptions import OutOfMemoryError, RayActorError, RayTaskError

from rl.cluster.health import get_all, result
from rl.errors import RewardError, RolloutError, WorkerDiedError
from tests.unit.cluster.conftest import Ref


def test_get_all_keeps_the_order_of_the_calls() -> None:
    assert get_all([Ref("a"), Ref("b"), Ref("c")], what="letters", timeout_s=1) == ["a", "b", "c"]


def test_get_all_says_what_it_waited_for() -> None:
    with pytest.raises(RolloutError, match=r"1 of 2 workers have not answered within 0 s \(the update, worker 1\)"):
        get_all([Ref("a"), Ref(never=True)], what="the update", timeout_s=0)


def test_get_all_names_those_that_have_not_started_and_of_many_the_first() -> None:
    names = ["starting the reward worker", *(f"starting engine {i}" for i in range(6))]
    refs = [Ref("a"), *(Ref(never=True) for _ in range(6))]
    said = (
        r"^the workers' start: 6 of 7 workers have not answered within 0 s \(starting engine 0, starting engine 1, "
        r"starting engine 2, starting engine 3, \.\.\.\)\. Look"
    )
    with pytest.raises(RolloutError, match=said):
        get_all(refs, what="the workers' start", names=names, timeout_s=0)


def test_get_all_says_which_worker_died() -> None:
    with pytest.raises(WorkerDiedError, match=r"^the update, worker 1: the worker process died"):
        get_all([Ref(never=True), Ref(error=RayActorError())], what="the update", timeout_s=60)


def test_get_all_fails_with_the_first_failure_though_another_never_ends() -> None:
    error = RayTaskError("update", "traceback", RewardError("reward: wrong."))
    with pytest.raises(RewardError, match=r"^reward: wrong\.$"):
        get_all([Ref(never=True), Ref(error=error)], what="the update", timeout_s=60)


def test_result_finds_the_error_in_a_group_of_tasks() -> None:
    group = ExceptionGroup("tasks", [ValueError("a"), ExceptionGroup("more", [RewardError("reward: died.")])])
    with pytest.raises(RewardError, match=r"^reward: died\.$"):
        result(Ref(error=RayTaskError("run_group", "traceback", group)), what="worker 0")


def test_result_leaves_a_bug_with_its_traceback() -> None:
    with pytest.raises(RayTaskError):
        result(Ref(error=RayTaskError("update", "traceback", ValueError("a bug"))), what="worker 0")


@pytest.mark.parametrize("error", [RayActorError(), OutOfMemoryError("killed for want of memory")])
def test_result_of_a_dead_worker(error: Exception) -> None:
    with pytest.raises(WorkerDiedError, match="worker 0: the worker process died"):
        result(Ref(error=error), what="worker 0")


def test_result_of_a_dead_worker_gives_the_detail_of_what_ray_says() -> None:
    said = (
        "The actor died.\n\tpid: 7\nIts worker has died. Worker exit type: SYSTEM_ERROR Worker exit detail: No memory."
    )
    with pytest.raises(WorkerDiedError, match=r"worker 0: the worker process died \(No memory\)\. Look"):
        result(Ref(error=RayActorError(error_msg=said)), what="worker 0")
