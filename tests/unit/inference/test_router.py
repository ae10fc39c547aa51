import pytest
from hypothesis import given
from hypothesis import strategies as st

from rl.errors import RolloutError
from rl.inference.router import Router


def test_router_places_new_sessions_on_the_least_loaded_replica():
    router = Router([0, 1, 2])
    assert [router.route(s) for s in "abcd"] == [0, 1, 2, 0]
    router.release("b")
    assert router.route("e") == 1


def test_router_keeps_a_session_on_its_replica():
    router = Router([0, 1])
    assert [router.route("a"), router.route("b"), router.route("c"), router.route("a")] == [0, 1, 0, 0]


def test_router_moves_sessions_of_a_removed_replica():
    router = Router([0, 1])
    for session in "abcd":
        router.route(session)
    assert router.remove(0) == ["a", "c"]
    assert (router.route("a"), router.route("b"), router.num_sessions(1)) == (1, 1, 3)
    assert router.replicas == [1]


def test_router_ignores_a_second_removal_and_a_release_of_an_orphan():
    router = Router([0, 1])
    router.route("a")
    router.remove(0)
    assert router.remove(0) == []
    router.release("a")
    assert router.num_sessions(1) == 0


def test_router_without_replicas_raises():
    router = Router([0])
    router.remove(0)
    with pytest.raises(RolloutError, match="no engine replica"):
        router.route("a")


@given(st.lists(st.tuples(st.sampled_from(["route", "release"]), st.integers(0, 20)), max_size=60))
def test_router_loads_add_up_to_the_open_sessions(actions):
    router = Router(range(3))
    is_open: set[str] = set()
    for action, number in actions:
        session = str(number)
        if action == "route":
            router.route(session)
            is_open.add(session)
        else:
            router.release(session)
            is_open.discard(session)
    assert sum(router.num_sessions(r) for r in router.replicas) == len(is_open)
