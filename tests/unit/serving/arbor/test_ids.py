"""The ids, against a queue as the clients have it."""

from __future__ import annotations

import random
from collections import deque

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rl.serving.arbor.ids import BatchIds
from rl.serving.errors import ApiError


class Client:
    """The queue of `dspy/teleprompt/grpo.py`, 3.0.4: what it sends for some ids."""

    def __init__(self) -> None:
        self.queue: deque[str] = deque()
        self.rng = random.Random(0)

    def send(self, groups: list[str], num_ids: int) -> list[str]:
        need = num_ids - len(self.queue)
        while need > 0 and groups:
            self.queue.extend(self.rng.sample(groups, k=len(groups)))
            need -= len(groups)
        return [self.queue.popleft() for _ in range(num_ids)]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 7)), min_size=1, max_size=12), st.integers(2, 5))
def test_every_group_is_sent_in_its_own_step_whatever_was_counted_too_much(
    steps: list[tuple[int, int]], size: int
) -> None:
    ids, client, seen, completions = BatchIds(size), Client(), set(), 0
    for number, (num_groups, num_extra) in enumerate(steps):
        assert len(ids.offer(completions)) == 1
        completions += num_groups * size + num_extra
        offered = ids.offer(completions)
        groups = [f"{number}/{group}" for group in range(num_groups)]
        sent = client.send(groups, len(offered))
        for batch_id, group in zip(offered, sent, strict=True):
            ids.check(batch_id)
            ids.take(batch_id, is_copy=group in seen)
            seen.add(group)
        assert set(groups) <= set(sent)
        assert ids.is_complete
        ids.begin_step()


def test_as_many_ids_as_groups_where_nothing_was_repeated() -> None:
    ids = BatchIds(4)
    assert ids.offer(100) == [0]
    assert ids.offer(132) == [0, 1, 2, 3, 4, 5, 6, 7]
    ids.take(0, is_copy=False)
    assert ids.offer(200) == [1, 2, 3, 4, 5, 6, 7]  # the client goes by what it was told
    assert not ids.is_complete


def test_ids_of_other_steps_are_refused() -> None:
    ids = BatchIds(4)
    ids.offer(0)
    ids.take(0, is_copy=False)
    ids.begin_step()
    ids.offer(4)
    for batch_id, words in ((0, "is used"), (2, "was not offered"), (-1, "is used")):
        with pytest.raises(ApiError, match=words):
            ids.check(batch_id)
    ids.check(1)
