import json
import random
from dataclasses import replace
from datetime import date
from decimal import Decimal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rl.errors import CheckpointError
from rl.rollout.buffer import GroupBuffer
from rl.types import GroupHeader, Prompt, StopReason, TokenSequence, ToolCall, ToolResult, ToolStatus, Trajectory, Turn
from tests.samples import group_of


def at_hand(value):
    """Rows and records are not behind references here."""
    return value


def make_group(number: int, *, useful: bool) -> GroupHeader:
    prompt = Prompt(f"p{number}", [], "", "test")
    scores = (1.0, 0.0) if useful else (1.0, 1.0)
    return group_of(*(Trajectory(prompt, i, [], [], StopReason.FINISHED, score=s) for i, s in enumerate(scores)))


def names(groups: list[GroupHeader]) -> list[str]:
    return [group.prompt.id for group in groups]


class Source:
    """Prompts p0, p1, ... of which `useful` tells which differ; groups end in a random order."""

    def __init__(self, useful: list[bool], order: random.Random) -> None:
        self.useful, self.order, self.next = useful, order, 0

    def fill(self, buffer: GroupBuffer, num_wanted: int, limit: int) -> list[GroupHeader]:
        filling = buffer.begin(num_wanted, limit)
        first, running = self.next, []
        while True:
            num = filling.num_to_start()
            running += range(self.next, self.next + num)
            self.next += num
            if not running:
                return buffer.end(filling)
            ended = running.pop(self.order.randrange(len(running)))
            filling.add(ended - first, make_group(ended, useful=self.useful[ended % len(self.useful)]))


def test_fill_starts_a_prompt_for_each_useless_group_as_soon_as_it_is_known():
    filling = GroupBuffer("score").begin(2, limit=10)
    assert filling.num_to_start() == 2
    filling.add(1, make_group(1, useful=False))
    assert filling.num_to_start() == 1  # p0 is still under way
    filling.add(2, make_group(2, useful=True))
    assert filling.num_to_start() == 0
    assert filling.num_filled == 1


def test_fill_takes_the_first_useful_groups_and_carries_the_rest_over():
    buffer = GroupBuffer("score")
    buffer.useful_share = 0.5  # 4 prompts for 2 groups
    source = Source([True, False, True, True, True], random.Random(0))
    assert names(source.fill(buffer, 2, limit=10)) == ["p0", "p1", "p2"]
    assert names(list(buffer.surplus)) == ["p3"]
    assert buffer.useful_share == (0.5 + 3 / 4) / 2
    assert names(source.fill(buffer, 2, limit=10)) == ["p3", "p4"]  # 1 missing / 0.625 starts p4 and p5
    assert names(list(buffer.surplus)) == ["p5"]


def test_fill_needs_no_prompt_where_enough_is_left_over():
    buffer = GroupBuffer("score")
    buffer.surplus.extend(make_group(n, useful=True) for n in range(3))
    source = Source([True], random.Random(0))
    assert names(source.fill(buffer, 2, limit=10)) == ["p0", "p1"]
    assert source.next == 0 and names(list(buffer.surplus)) == ["p2"]


def test_fill_never_carries_over_more_than_one_batch():
    buffer = GroupBuffer("score")
    buffer.useful_share = 0.01
    Source([True], random.Random(0)).fill(buffer, 3, limit=100)
    assert names(list(buffer.surplus)) == ["p3", "p4", "p5"]


@pytest.mark.parametrize("num_wanted", [1, 3])
def test_fill_gives_up_at_the_limit(num_wanted: int):
    buffer, source = GroupBuffer("score"), Source([False], random.Random(0))
    filling = buffer.begin(num_wanted, limit=7)
    assert len(source.fill(buffer, num_wanted, limit=7)) == 7
    assert filling.num_filled == 0 and buffer.useful_share > 0


def test_fill_without_a_metric_takes_every_group():
    assert names(Source([False], random.Random(0)).fill(GroupBuffer(None), 3, limit=3)) == ["p0", "p1", "p2"]


def test_fill_replaces_a_group_in_which_only_masked_trajectories_differ():
    group = make_group(0, useful=True)
    group.trajectories[1].stop_reason = StopReason.LENGTH
    for drop_overlong, num_more in ((False, 0), (True, 1)):
        filling = GroupBuffer("score", drop_overlong=drop_overlong).begin(1, limit=10)
        assert filling.num_to_start() == 1
        filling.add(0, group)
        assert (filling.num_filled, filling.num_to_start()) == (1 - num_more, num_more)


@settings(deadline=None)
@given(
    useful=st.lists(st.booleans(), min_size=1, max_size=12),
    wanted=st.lists(st.integers(1, 5), min_size=1, max_size=4),
    seeds=st.tuples(st.integers(), st.integers()),
    resumed_after=st.integers(0, 3),
)
def test_fill_does_not_depend_on_the_order_of_endings_or_on_a_resume(
    useful: list[bool], wanted: list[int], seeds: tuple[int, int], resumed_after: int
):
    outcomes = []
    for seed in seeds:
        buffer, source = GroupBuffer("score"), Source(useful, random.Random(seed))
        batches = []
        for step, num_wanted in enumerate(wanted):
            if step == resumed_after and seed == seeds[1]:
                state = json.loads(json.dumps(buffer.state_dict(at_hand)))
                buffer = GroupBuffer("score")
                buffer.load_state_dict(state, [make_group(n, useful=True).prompt for n in range(source.next)], at_hand)
            assert len(buffer.surplus) <= max(wanted)
            batches.append((names(source.fill(buffer, num_wanted, limit=4 * num_wanted)), names(list(buffer.surplus))))
        outcomes.append((batches, source.next))
    assert outcomes[0] == outcomes[1]


def surplus_trajectory(prompt: Prompt, call: ToolCall) -> Trajectory:
    sequence = TokenSequence([5, 6])
    sequence.append_sampled([7, 8], [-0.1, -1e-9], policy_version=3)
    sequence.append_context([9])
    turn = Turn("text", 2, [call], [ToolResult("add", "2", ToolStatus.OK, reward=0.5, metrics={"m": 1.0})])
    return Trajectory(prompt, 0, [sequence], [turn], StopReason.LENGTH, 1 / 3, {"acc": 1.0}, wall_s=1.5)


def test_state_keeps_trajectories_whole_and_takes_prompts_from_the_data():
    row = Prompt("p-1", [{"role": "user", "content": "é"}], "42", "test", {"level": 3})
    buffer, again = GroupBuffer("score"), GroupBuffer("score")
    buffer.surplus.append(
        group_of(surplus_trajectory(replace(row, id="p-1@1"), ToolCall("add", {"a": [1, None]}, raw="{}")))
    )
    again.load_state_dict(json.loads(json.dumps(buffer.state_dict(at_hand))), [row], at_hand)
    (kept,), (restored,) = buffer.surplus, again.surplus
    assert (restored.prompt, restored.trajectories, restored.record) == (kept.prompt, kept.trajectories, kept.record)
    assert restored.trajectories[0].stop_reason is StopReason.LENGTH
    assert restored.prompt_ids.tolist() == [5, 6]
    (row_kept,) = restored.rows
    assert row_kept.token_ids.tolist() == [5, 6, 7, 8, 9] and row_kept.loss_mask.tolist() == [0, 0, 1, 1, 0]
    assert row_kept.versions.tolist() == [-1, -1, 3, 3, -1]
    assert row_kept.rollout_logprobs.tolist() == kept.rows[0].rollout_logprobs.tolist()
    assert (row_kept.token_ids.dtype, row_kept.loss_mask.dtype) == (np.int32, np.uint8)
    with pytest.raises(CheckpointError, match=r"data_path: must hold the rows .*, got none for 'p-1@1'"):
        again.load_state_dict(buffer.state_dict(at_hand), [replace(row, id="p-2")], at_hand)


def test_state_takes_rows_with_any_column_and_numbers_of_any_library():
    extra = {
        "image": b"\xff\xd8\x00",
        "price": Decimal("1.10"),
        "day": date(2024, 2, 29),
        "array": np.arange(3, dtype=np.float32),
        "nested": [{"bytes": b"\x80", "set": {1, 2}}],
    }
    row = Prompt("p-1", [{"role": "user", "content": "?"}], "42", "test", extra)
    trajectory = surplus_trajectory(row, ToolCall("add", {"a": "\ud800", "b": float("nan")}))
    trajectory.score = np.float32(0.5)
    trajectory.rewards = {"acc": np.float64(1.0), "ok": np.bool_(True)}
    trajectory.turns[0].results[0].metrics = {"n": np.int64(3), ("a", "tuple"): 1.0}
    buffer, again = GroupBuffer("score"), GroupBuffer("score")
    buffer.surplus.append(group_of(trajectory))
    again.load_state_dict(json.loads(json.dumps(buffer.state_dict(at_hand))), [row], at_hand)
    (restored,) = again.surplus[0].record
    assert restored.prompt.extra is extra
    assert (restored.score, restored.rewards) == (0.5, {"acc": 1.0, "ok": 1.0})
    assert restored.turns[0].results[0].metrics == {"n": 3.0}
    assert restored.turns[0].calls[0].arguments["a"] == "\ud800"
