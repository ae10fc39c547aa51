"""Which groups a step takes while others are under way."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rl.batches import GroupHeader
from rl.rollout.ahead import Choice, RunAhead
from rl.rollout.headers import header_of_group
from rl.types import Group, Prompt, StopReason, Trajectory

NUM_WANTED = 4


def group_of(prompt: Prompt, scores: tuple[float, ...] = (1.0, 0.0)) -> GroupHeader:
    return header_of_group(
        Group(prompt, [Trajectory(prompt, i, [], [], StopReason.FINISHED, score=s) for i, s in enumerate(scores)])
    )


def prompts(start: int, num: int) -> list[Prompt]:
    return [Prompt(f"p-{i}", [], "", "test") for i in range(start, start + num)]


def started(ahead: RunAhead, version: int, num_steps: int = 1000) -> list[int]:
    """Start what may start, and give the numbers."""
    num, first = ahead.num_to_start(NUM_WANTED, num_steps), ahead.num_started
    ahead.start(prompts(first, num), version)
    return list(range(first, first + num))


def complete(ahead: RunAhead, *numbers: int, scores: tuple[float, ...] = (1.0, 0.0)) -> None:
    for number in numbers:
        ahead.add(number, group_of(ahead.open[number].prompt, scores))


def test_the_first_step_starts_the_groups_of_all_steps_that_may_run_ahead() -> None:
    ahead = RunAhead(None, max_staleness=2)
    assert started(ahead, 0) == list(range(12))
    assert started(ahead, 0) == []


def test_no_group_starts_that_no_step_is_left_for() -> None:
    ahead = RunAhead(None, max_staleness=2, over_sample_rate=0.5)
    assert started(ahead, 0, num_steps=2) == list(range(8))


def test_a_step_waits_for_its_own_prompts_though_later_ones_are_complete() -> None:
    ahead = RunAhead(None, max_staleness=1)
    started(ahead, 0)
    complete(ahead, 0, 2, 3, 4, 5, 6, 7)
    assert ahead.choose(NUM_WANTED, 4, 0) is None
    complete(ahead, 1)
    assert ahead.choose(NUM_WANTED, 4, 0) == Choice((0, 1, 2, 3))


def test_an_uninformative_group_is_taken_with_the_step_and_replaced() -> None:
    ahead = RunAhead("score", max_staleness=1)
    started(ahead, 0)
    complete(ahead, 0, 2, 3, 4)
    complete(ahead, 1, scores=(1.0, 1.0))
    assert started(ahead, 0) == [8]
    choice = ahead.choose(NUM_WANTED, 40, 0)
    assert choice == Choice((0, 1, 2, 3, 4))
    assert [group.prompt.id for group in ahead.take(choice)] == ["p-0", "p-1", "p-2", "p-3", "p-4"]
    assert list(ahead.open) == [5, 6, 7, 8]


def test_a_step_takes_no_more_than_its_limit() -> None:
    ahead = RunAhead("score", max_staleness=1)
    started(ahead, 0)
    complete(ahead, *range(8), scores=(0.0, 0.0))
    assert ahead.choose(NUM_WANTED, 6, 0) == Choice(tuple(range(6)))


def test_at_the_end_of_the_data_a_step_takes_what_is_left() -> None:
    ahead = RunAhead(None, max_staleness=1)
    ahead.start(prompts(0, 3), 0)
    complete(ahead, 0, 2)
    assert ahead.choose(NUM_WANTED, 4, 0) is None
    complete(ahead, 1)
    assert ahead.choose(NUM_WANTED, 4, 0) == Choice((0, 1, 2))


def test_drop_gives_up_a_group_only_at_the_bound_and_only_when_others_fill_the_batch() -> None:
    ahead = RunAhead(None, max_staleness=1, drops_late=True)
    started(ahead, 0)
    complete(ahead, 1, 2, 3, 4, 5)
    assert ahead.choose(NUM_WANTED, 4, 0) is None  # group 0 may still come in this step or the next
    complete(ahead, 0)
    choice = ahead.choose(NUM_WANTED, 4, 0)
    assert choice is not None
    ahead.take(choice)
    started(ahead, 1)
    complete(ahead, 7)
    assert ahead.choose(NUM_WANTED, 4, 1) is None  # without 6 there are three
    complete(ahead, 8)
    choice = ahead.choose(NUM_WANTED, 4, 1)
    assert choice == Choice((4, 5, 7, 8), late=(6,))
    ahead.take(choice)
    assert 6 not in ahead.open


def test_over_sampling_passes_over_what_is_not_complete_once() -> None:
    ahead = RunAhead(None, max_staleness=0, over_sample_rate=0.5)
    assert started(ahead, 0) == list(range(6))
    complete(ahead, 1, 2, 3, 5)
    choice = ahead.choose(NUM_WANTED, 4, 0)
    assert choice == Choice((1, 2, 3, 5))
    ahead.take(choice)
    assert started(ahead, 1) == [6, 7, 8, 9]
    complete(ahead, 6, 7, 8, 9)
    assert ahead.choose(NUM_WANTED, 4, 1) is None  # 0 and 4 must come now
    complete(ahead, 0, 4)
    assert ahead.choose(NUM_WANTED, 4, 1) == Choice((0, 4, 6, 7))


@given(
    data=st.data(),
    max_staleness=st.integers(0, 3),
    rate=st.sampled_from([0.0, 0.25, 0.5, 1.0]),
    metric=st.sampled_from([None, "score"]),
    drops_late=st.booleans(),
)
@settings(max_examples=150, deadline=None)
def test_every_group_is_taken_once_or_dropped_and_none_is_older_than_the_bound(
    data: st.DataObject, max_staleness: int, rate: float, metric: str | None, drops_late: bool
) -> None:
    ahead = RunAhead(metric, max_staleness=max_staleness, over_sample_rate=rate, drops_late=drops_late)
    version, fates = 0, Counter[str]()
    for _ in range(12):
        started(ahead, version)
        while (choice := ahead.choose(NUM_WANTED, 3 * NUM_WANTED, version)) is None:
            under_way = [number for number, one in ahead.open.items() if one.group is None]
            number = data.draw(st.sampled_from(under_way))
            complete(ahead, number, scores=data.draw(st.sampled_from([(1.0, 0.0), (0.0, 1.0), (1.0, 1.0)])))
            started(ahead, version)
        assert not (choice.late and not drops_late)
        for number in choice.taken:
            assert version - ahead.open[number].version <= max_staleness + (rate > 0)
        fates.update(ahead.open[number].prompt.id for number in (*choice.taken, *choice.late))
        informative = [ahead.open[number].is_informative for number in choice.taken]
        assert sum(informative) == NUM_WANTED or len(informative) == 3 * NUM_WANTED
        ahead.take(choice)
        version += data.draw(st.integers(0, 1))  # a step without an update publishes nothing
    assert len(ahead.open) <= (max_staleness + 2 + rate) * 3 * NUM_WANTED
    assert set(fates.values()) <= {1}
    assert len(fates) + len(ahead.open) == ahead.num_started


@pytest.mark.parametrize("max_staleness", [0, 1, 3])
def test_what_is_trained_on_does_not_depend_on_how_long_it_took(max_staleness: int) -> None:
    """The first steps would hold nearly all short groups if the first to end were taken."""
    lengths = [1 + 99 * (i % 3 == 0) for i in range(400)]
    ahead = RunAhead(None, max_staleness=max_staleness)
    clock = 0.0
    ends: dict[int, float] = {}
    trained: list[int] = []
    for version in range(40):
        ends |= {number: clock + lengths[number] for number in started(ahead, version)}
        while (choice := ahead.choose(NUM_WANTED, NUM_WANTED, version)) is None:
            number = min((n for n, one in ahead.open.items() if one.group is None), key=ends.__getitem__)
            clock = max(clock, ends[number])
            complete(ahead, number)
        trained += choice.taken
        ahead.take(choice)
        sampled = [lengths[i] for i in range(len(trained))]
        assert [lengths[number] for number in trained] == sampled


def test_a_checkpoint_keeps_complete_groups_and_starts_the_others_again() -> None:
    ahead = RunAhead("score", max_staleness=1)
    started(ahead, 3)
    complete(ahead, 1, scores=(1.0, 1.0))
    complete(ahead, 2, 5)
    state = json.loads(json.dumps(ahead.state_dict(lambda value: value)))
    resumed = RunAhead("score", max_staleness=1)
    resumed.load_state_dict(state, prompts(0, 8), lambda value: value)
    again = resumed.start_again(5)
    assert [(number, prompt.id) for number, prompt in again] == [
        (0, "p-0"), (3, "p-3"), (4, "p-4"), (6, "p-6"), (7, "p-7"),
    ]  # fmt: skip
    assert [one.version for one in resumed.open.values()] == [5, 3, 3, 5, 5, 3, 5, 5]
    assert [one.is_informative for one in resumed.open.values()] == [one.is_informative for one in ahead.open.values()]
    assert resumed.num_started == 8
    complete(resumed, 0, 3, 4)
    assert resumed.choose(NUM_WANTED, 40, 5) == Choice((0, 1, 2, 3, 4))


def test_rows_of_uninformative_groups_are_kept_only_where_they_are_recorded() -> None:
    rows: list[Any] = [object()]
    for kept, is_recorded in itertools.product((True, False), repeat=2):
        ahead = RunAhead("score", max_staleness=0)
        ahead.start(prompts(0, 1), 0)
        group = group_of(ahead.open[0].prompt, (1.0, 1.0))
        group.rows = list(rows)
        ahead.add(0, group, keeps_all_rows=kept)
        (taken,) = ahead.take(Choice((0,)), keeps_all_rows=is_recorded)
        assert bool(taken.rows) == (kept and is_recorded)
