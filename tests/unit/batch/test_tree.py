"""The tree of a group's rows, and the micro-batches that hold each of its tokens once."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from rl.batch.layout import PackingLayout
from rl.batch.packing import pack_samples, plan_samples, token_aligned
from rl.batch.tree import num_shared, paths_of
from rl.batches import MicroBatch, Sample
from tests.trees import tree_samples


def sample(name: str, ids: list[int], mask: list[int], advantage: float = 1.0) -> Sample:
    """The part of `name` before the slash is its group."""
    loss_mask = np.array(mask, np.uint8)
    return Sample(
        name,
        name.split("/")[0],
        np.array(ids, np.int32),
        loss_mask,
        loss_mask * np.float32(advantage),
        -0.1 * loss_mask,
    )


def paths(*rows: tuple[list[int], list[int]]) -> list[tuple[tuple[int, int], ...]]:
    return paths_of([np.array(ids) for ids, _ in rows], [np.array(mask, np.uint8) for _, mask in rows])


def test_paths_of_worked_example():
    found = paths(([1, 2, 3], [0] * 3), ([1, 2, 4, 5], [0] * 4), ([1, 2, 4, 6], [0] * 4))
    assert found == [((0, 0), (1, 2), (2, 3)), ((0, 0), (1, 2), (3, 3), (4, 4)), ((0, 0), (1, 2), (3, 3), (5, 4))]
    assert [num_shared(found[a], found[b]) for a, b in ((0, 1), (0, 2), (1, 2), (2, 2))] == [2, 2, 3, 4]


def test_rows_share_what_one_of_them_sampled_but_not_what_both_did():
    first, copy, other = ([1, 7, 8, 9], [0, 1, 1, 0]), ([1, 7, 8, 5], [0, 0, 0, 1]), ([1, 7, 8, 9], [0, 1, 1, 0])
    found = paths(first, copy, other)
    assert [num_shared(found[a], found[b]) for a, b in ((0, 1), (0, 2), (1, 2))] == [3, 1, 1]
    found = paths(copy, first, other)  # the copy stands before what it is a copy of
    assert [num_shared(found[a], found[b]) for a, b in ((0, 1), (0, 2), (1, 2))] == [3, 1, 1]


def test_rows_find_the_turn_that_they_repeat_among_equal_ones_wherever_they_stand():
    # Two choices begin with the same token 7; the first row repeats the second choice and goes on from it.
    going_on, one, other = ([1, 7, 8, 5], [0, 0, 0, 1]), ([1, 7, 9], [0, 1, 1]), ([1, 7, 8], [0, 1, 1])
    found = paths(going_on, one, other)
    assert [num_shared(found[a], found[b]) for a, b in ((0, 1), (0, 2), (1, 2))] == [1, 3, 1]


def test_rows_that_end_within_another_share_all_their_tokens():
    found = paths(([1, 2], [0, 1]), ([1, 2, 3], [0, 0, 1]), ([1, 2], [0, 0]))
    assert [num_shared(found[a], found[b]) for a, b in ((0, 1), (0, 2), (1, 2))] == [2, 2, 2]


def layout(max_tokens: int = 1000, num_ranks: int = 1, *, share: bool = True) -> PackingLayout:
    return PackingLayout(num_ranks, max_tokens, mini_batch_prompts=99, share_prefix=share)


def test_pack_samples_holds_the_turns_that_a_trajectory_branches_from_once():
    # Prompt [1, 5], turn [7, 2]. Then result [6], turn [8]; or result [9], turn [4], and behind that [3] and turn [8].
    # The second and third are of the same trajectory as the first, their beginnings are copies.
    samples = [
        sample("a/0", [1, 5, 7, 2, 6, 8], [0, 0, 1, 1, 0, 1], advantage=0.5),
        sample("a/0", [1, 5, 7, 2, 9, 4], [0, 0, 0, 0, 0, 1], advantage=0.5),
        sample("a/0", [1, 5, 7, 2, 9, 4, 3, 8], [0, 0, 0, 0, 0, 0, 0, 1], advantage=0.5),
        sample("a/1", [1, 5, 7, 3], [0, 0, 1, 1], advantage=-1.0),
    ]
    ((micro,),) = pack_samples(samples, layout()).mini_batches[0].micro_batches
    bounds = micro.cu_seqlens.tolist()
    held = [micro.token_ids[a:b].tolist() for a, b in pairwise(bounds)]
    # [1] is of all; of the trajectory 0 up to the last token before it branches; [4] ends the second row.
    assert held == [[1], [5, 7], [2, 6, 8], [2, 9], [4], [4, 3, 8], [5, 7, 3]]
    assert micro.prefix_ids.tolist() == [-1, 0, 1, 1, 3, 3, 0]
    assert micro.position_ids.tolist() == [0, 1, 2, 3, 4, 5, 3, 4, 5, 5, 6, 7, 1, 2, 3]
    assert micro.target_ids.tolist() == [5, 7, 2, 6, 8, 0, 9, 4, 0, 3, 8, 0, 7, 3, 0]
    assert micro.loss_mask.tolist() == [0, 1, 1, 0, 1, 0, 0, 1, 0, 0, 1, 0, 1, 1, 0]
    assert micro.sample_ids.tolist() == [-1, 0, 0, -1, 0, -1, -1, 1, -1, -1, 2, -1, 3, 3, -1]
    assert micro.advantages.tolist() == [0, 0.5, 0.5, 0, 0.5, 0, 0, 0.5, 0, 0, 0.5, 0, -1, -1, 0]
    assert micro.loss_weights.tolist() == pytest.approx([m / 7 for m in micro.loss_mask.tolist()])


def test_pack_samples_repeats_the_prefix_of_a_tree_that_is_too_long_and_trains_it_once():
    samples = [
        sample("a/0", [1, 5, 7, 2, 6, 8], [0, 0, 1, 1, 0, 1]),
        sample("a/0", [1, 5, 7, 2, 9, 4], [0, 0, 0, 0, 0, 1]),
    ]
    (micros,) = pack_samples(samples, layout(max_tokens=7)).mini_batches[0].micro_batches
    assert [m.token_ids.tolist() for m in micros] == [[1, 5, 7, 2, 6, 8], [1, 5, 7, 2, 9, 4]]
    assert [m.loss_mask.tolist() for m in micros] == [[0, 1, 1, 0, 1, 0], [0, 0, 0, 0, 1, 0]]


SEEDS = range(12)


@pytest.mark.parametrize("seed", SEEDS)
def test_pack_samples_holds_each_node_of_random_trees_once(seed: int):
    """Nodes by what they predict. A row's last token predicts nothing, and is held for each row."""
    samples = tree_samples(seed)
    ((micro,),) = pack_samples(samples, layout()).mini_batches[0].micro_batches
    predictions = {(s.group_id, *s.token_ids[: i + 2].tolist()) for s in samples for i in range(len(s.token_ids) - 1)}
    assert micro.num_tokens == len(predictions) + len(samples)
    unshared = sum(len(s.token_ids) for s in samples)
    assert micro.num_tokens < unshared


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("vocab_size", [500, 6])
@pytest.mark.parametrize(("max_tokens", "num_ranks"), [(1000, 1), (60, 1), (25, 1), (40, 3)])
def test_pack_samples_trains_each_sampled_token_once(seed: int, vocab_size: int, max_tokens: int, num_ranks: int):
    """With its own context, log-prob, advantage and weight; with six words many sequences agree by chance."""
    samples = tree_samples(seed, vocab_size=vocab_size)
    found, expected = (
        sorted(
            entry
            for rank in pack_samples(samples, layout(max_tokens, num_ranks, share=share)).mini_batches[0].micro_batches
            for micro in rank
            for entry in trained(micro)
        )
        for share in (True, False)
    )
    assert found == expected
    assert len(found) == sum(int(s.loss_mask[1:].sum()) for s in samples)


def trained(micro: MicroBatch) -> list[tuple[object, ...]]:
    """Each loss token: its context and itself, its sample and its columns."""
    assert micro.loss_weights is not None and micro.advantages is not None
    entries: list[tuple[object, ...]] = []
    texts: list[list[int]] = []
    bounds = micro.cu_seqlens.tolist()
    for number, (start, end) in enumerate(pairwise(bounds)):
        prefix = int(micro.prefix_ids[number])
        before = texts[prefix] if prefix >= 0 else []
        texts.append(before + micro.token_ids[start:end].tolist())
        assert micro.position_ids[start:end].tolist() == list(range(len(before), len(texts[-1])))
        for t in (t for t in range(start, end) if micro.loss_mask[t] > 0):
            context = (*texts[-1][: len(before) + t - start + 1], int(micro.target_ids[t]))
            columns = (micro.rollout_logprobs, micro.advantages, micro.loss_weights)
            entries.append((context, int(micro.sample_ids[t]), *(float(column[t]) for column in columns)))
        assert (micro.sample_ids[start:end] >= 0).tolist() == (micro.loss_mask[start:end] > 0).tolist()
    return entries


@pytest.mark.parametrize("seed", SEEDS)
def test_token_aligned_gives_each_row_what_it_trains_on(seed: int):
    samples = tree_samples(seed)
    plan = plan_samples(samples, layout(max_tokens=60))
    batch = pack_samples(samples, layout(max_tokens=60))
    (mini,), masks = plan.mini_batches, {i: s.loss_mask for i, s in enumerate(samples)}
    found: dict[int, np.ndarray] = {}
    for micro_plan, micro in zip(mini.micro_batches[0], batch.mini_batches[0].micro_batches[0], strict=True):
        part = token_aligned(micro_plan, micro.rollout_logprobs, {i: masks[n] for i, n in enumerate(mini.rows)})
        assert not part.keys() & found.keys()
        found |= part
    for i, number in enumerate(mini.rows):
        np.testing.assert_array_equal(found[i], samples[number].rollout_logprobs)
