from __future__ import annotations

import json

import pytest

from rl.config.schema import MegatronTraining
from rl.data.cursor import PromptCursor
from rl.errors import CheckpointError, DataError


def test_prompt_cursor_takes_each_prompt_once_an_epoch_in_a_new_order():
    cursor = PromptCursor(50, seed=7)
    first, second = cursor.take(50), cursor.take(50)
    assert sorted(first) == sorted(second) == list(range(50))
    assert first != second
    assert cursor.epoch == 2
    assert PromptCursor(50, seed=7).take(50) == first
    assert PromptCursor(50, seed=8).take(50) != first


@pytest.mark.parametrize("num_taken", [0, 2, 5, 7, 10, 23])
def test_prompt_cursor_resumed_goes_on_as_if_uninterrupted(num_taken: int):
    uninterrupted, killed, resumed = (PromptCursor(5, seed=1) for _ in range(3))
    expected = uninterrupted.take(num_taken + 12)[num_taken:]
    killed.take(num_taken)
    assert killed.epoch == num_taken // 5
    resumed.load_state_dict(json.loads(json.dumps(killed.state_dict())))
    assert [i for n in (3, 8, 1) for i in resumed.take(n)] == expected


def test_prompt_cursor_rejects_the_state_of_other_data():
    state = PromptCursor(5, seed=1).state_dict()
    with pytest.raises(CheckpointError, match=r"megatron_training.data_path: must have the 5 rows of .*, got 6\."):
        PromptCursor(6, seed=1).load_state_dict(state)
    with pytest.raises(CheckpointError, match=r"megatron_training.seed: must be that of .*, 1, got 2\. Set 1"):
        PromptCursor(5, seed=2).load_state_dict(state)
    with pytest.raises(DataError, match="at least one prompt"):
        PromptCursor(0, seed=1)


def test_prompt_cursor_returns_the_epoch_of_each_index():
    visits = PromptCursor(3, seed=1).take_with_epochs(7)
    assert [epoch for _, epoch in visits] == [0, 0, 0, 1, 1, 1, 2]
    assert [index for index, _ in visits] == PromptCursor(3, seed=1).take(7)
    assert len(set(visits)) == 7


def test_prompt_cursor_rejects_other_rows_of_the_same_number():
    training = MegatronTraining(seed=1)
    state = PromptCursor.over(["a", "b"], training).state_dict()
    PromptCursor.over(["a", "b"], training).load_state_dict(state)
    with pytest.raises(CheckpointError, match="must have the 2 rows of the run to resume, got other rows"):
        PromptCursor.over(["a", "c"], training).load_state_dict(state)
    del state["fingerprint"]  # an earlier version's
    PromptCursor.over(["a", "c"], training).load_state_dict(state)


def test_prompt_cursor_ends_after_its_epochs_even_if_resumed():
    cursor = PromptCursor(5, seed=1, total_epochs=2)
    assert (len(cursor.take(7)), cursor.num_left) == (7, 3)
    resumed = PromptCursor(5, seed=1, total_epochs=2)
    resumed.load_state_dict(cursor.state_dict())
    rest = resumed.take(7)
    assert rest == cursor.take(7) and len(rest) == 3
    assert resumed.num_left == len(resumed.take(1)) == 0
    longer = PromptCursor(5, seed=1, total_epochs=3)
    longer.load_state_dict(resumed.state_dict())
    assert longer.num_left == 5
    assert PromptCursor(5, seed=1).num_left == float("inf")


@pytest.mark.parametrize(
    ("num_prompts", "epochs", "num_steps"),
    [(48, 2, 12), (3, 2, 1), (100, 1, 13), (8, 1, 1)],  # 96 / 8; 6 / 8; 12.5; 1
)
def test_expected_steps_without_a_filter_are_the_same_from_the_start_to_the_end(
    num_prompts: int, epochs: int, num_steps: int
):
    cursor = PromptCursor(num_prompts, seed=1, batch_size=8, total_epochs=epochs)
    found = [cursor.expected_steps(0)]
    while cursor.num_left:
        cursor.take(8)
        found.append(cursor.expected_steps(len(found)))
    assert found == [num_steps] * (num_steps + 1)


def test_expected_steps_follow_what_a_step_needed():
    cursor = PromptCursor(10, seed=1, batch_size=2, total_epochs=1)
    assert cursor.expected_steps(0) == 5
    cursor.take(4)
    assert cursor.expected_steps(1, num_over=1) == 4  # 4 prompts for 1.5 batches
    assert cursor.expected_steps(1) == 3  # 4 prompts for one
    cursor.take(6)
    assert cursor.expected_steps(2, num_over=0) == 2
    assert cursor.expected_steps(2, num_over=1) == 3  # nothing to take is left, but a group to train on
    assert PromptCursor(10, seed=1, batch_size=2).expected_steps(7) is None
