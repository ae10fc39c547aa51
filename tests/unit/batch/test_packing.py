from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rl.batch.balance import CostModel
from rl.batch.layout import PackingLayout, demonstration_layout, packing_layout
from rl.batch.packing import pack_samples
from rl.batches import MicroBatch, Sample
from rl.config.schema import Config, LossAggregation, ModelConfig


def make_sample(name: str, token_ids: list[int], loss_mask: list[int], *, advantage: float = 1.0) -> Sample:
    """The part of `name` before the slash is its group, the part before the colon its trajectory."""
    mask = torch.tensor(loss_mask, dtype=torch.float32)
    return Sample(
        trajectory_id=name.split(":")[0],
        group_id=name.split("/")[0],
        token_ids=torch.tensor(token_ids),
        loss_mask=mask,
        advantages=mask * advantage,
        rollout_logprobs=-mask * torch.tensor(token_ids) / 10,
    )


def rows(length: int, group: str, first: int = 100) -> Sample:
    return make_sample(f"{group}/{first}", list(range(first, first + length)), [0] + [1] * (length - 1))


def test_pack_samples_shifts_each_sample_to_its_predictions():
    # Prompt [1, 5], sampled [7, 2], a tool's [6], sampled [8]; and a short one.
    samples = [
        make_sample("a/0", [1, 5, 7, 2, 6, 8], [0, 0, 1, 1, 0, 1], advantage=0.5),
        make_sample("a/1", [3, 4], [0, 1]),
    ]
    batch = pack_samples(samples, PackingLayout(num_data_parallel=1, max_tokens=8, mini_batch_prompts=1))
    ((micro,),) = batch.mini_batches[0].micro_batches
    assert micro.token_ids.tolist() == [1, 5, 7, 2, 6, 8, 3, 4]
    assert micro.target_ids.tolist() == [5, 7, 2, 6, 8, 0, 4, 0]
    assert micro.position_ids.tolist() == [0, 1, 2, 3, 4, 5, 0, 1]
    assert micro.cu_seqlens.tolist() == [0, 6, 8]
    assert micro.loss_mask.tolist() == [0, 1, 1, 0, 1, 0, 1, 0]
    assert micro.loss_weights.tolist() == [0, 0.25, 0.25, 0, 0.25, 0, 0.25, 0]
    assert micro.advantages.tolist() == [0, 0.5, 0.5, 0, 0.5, 0, 1, 0]
    torch.testing.assert_close(micro.rollout_logprobs, torch.tensor([0, -0.7, -0.2, 0, -0.8, 0, -0.4, 0]))
    assert micro.old_logprobs is None and micro.ref_logprobs is None
    assert (batch.mini_batches[0].num_loss_tokens, batch.mini_batches[0].num_trajectories) == (4, 2)


def test_pack_samples_holds_the_prompt_of_a_group_once():
    # Prompt [1, 5, 9]; the last token of it stays with each answer, since what it predicts is sampled.
    samples = [
        make_sample("a/0", [1, 5, 9, 7, 2], [0, 0, 0, 1, 1]),
        make_sample("a/1", [1, 5, 9, 8], [0, 0, 0, 1]),
        make_sample("b/0", [1, 5, 9, 8], [0, 0, 0, 1]),
    ]
    layout = PackingLayout(num_data_parallel=1, max_tokens=100, mini_batch_prompts=2, share_prefix=True)
    ((micro,),) = pack_samples(samples, layout).mini_batches[0].micro_batches
    assert micro.token_ids.tolist() == [1, 5, 9, 7, 2, 9, 8, 1, 5, 9, 8]
    assert micro.target_ids.tolist() == [5, 9, 7, 2, 0, 8, 0, 5, 9, 8, 0]
    assert micro.position_ids.tolist() == [0, 1, 2, 3, 4, 2, 3, 0, 1, 2, 3]
    assert micro.cu_seqlens.tolist() == [0, 2, 5, 7, 11]
    assert micro.prefix_ids.tolist() == [-1, 0, 0, -1]
    assert micro.loss_mask.tolist() == [0, 0, 1, 1, 0, 1, 0, 0, 0, 1, 0]
    assert micro.loss_weights.tolist() == [0, 0, 0.25, 0.25, 0, 0.25, 0, 0, 0, 0.25, 0]


def test_pack_samples_cuts_a_group_that_is_too_long_and_repeats_its_prompt():
    samples = [make_sample(f"a/{i}", [1, 5, 9, 7, i], [0, 0, 0, 1, 1]) for i in range(3)]
    layout = PackingLayout(num_data_parallel=1, max_tokens=8, mini_batch_prompts=1, share_prefix=True)
    (micros,) = pack_samples(samples, layout).mini_batches[0].micro_batches
    assert [m.token_ids.tolist() for m in micros] == [[1, 5, 9, 7, 0, 9, 7, 1], [1, 5, 9, 7, 2]]
    assert [m.prefix_ids.tolist() for m in micros] == [[-1, 0, 0], [-1]]


def test_pack_samples_holds_what_all_samples_begin_with_once_in_each_micro_batch():
    # A system prompt of 17 tokens; a group of two with 2 more, a group of one with 1 more. Held once: all but the last
    # token of what is shared.
    system = list(range(100, 117))
    samples = [
        make_sample("a/0", [*system, 5, 9, 7], [0] * 19 + [1]),
        make_sample("a/1", [*system, 5, 9, 8], [0] * 19 + [1]),
        make_sample("b/0", [*system, 6, 4], [0] * 18 + [1]),
    ]
    layout = PackingLayout(num_data_parallel=1, max_tokens=100, mini_batch_prompts=2, share_prefix=True)
    ((micro,),) = pack_samples(samples, layout).mini_batches[0].micro_batches
    assert micro.token_ids.tolist() == [*system, 5, 9, 7, 9, 8, 116, 6, 4]
    assert micro.position_ids.tolist() == [*range(16), 16, 17, 18, 19, 18, 19, 16, 17, 18]
    assert micro.cu_seqlens.tolist() == [0, 16, 18, 20, 22, 25]
    assert micro.prefix_ids.tolist() == [-1, 0, 1, 1, 0]
    assert micro.loss_mask.tolist() == [0] * 18 + [1, 0, 1, 0, 0, 1, 0]
    # 16 + 6 and 16 + 3 tokens, not 16 + 6 + 3.
    layout = PackingLayout(num_data_parallel=1, max_tokens=24, mini_batch_prompts=2, share_prefix=True)
    (micros,) = pack_samples(samples, layout).mini_batches[0].micro_batches
    assert [m.num_tokens for m in micros] == [22, 19]


def test_pack_samples_counts_a_trajectory_of_several_samples_once():
    samples = [
        make_sample("a/0:0", [1, 2], [0, 1]),
        make_sample("a/0:1", [1, 2, 3], [0, 1, 1]),
        make_sample("a/1", [1, 2], [0, 1]),
    ]
    layout = PackingLayout(1, max_tokens=100, mini_batch_prompts=1)
    layout = replace(layout, loss_aggregation=LossAggregation.SEQ_MEAN_TOKEN_MEAN)
    batch = pack_samples(samples, layout)
    ((micro,),) = batch.mini_batches[0].micro_batches
    assert batch.mini_batches[0].num_trajectories == 2
    # The longest sample first: two of trajectory 0's three tokens, then the third, then trajectory 1's only one.
    torch.testing.assert_close(micro.loss_weights, torch.tensor([1 / 6, 1 / 6, 0, 1 / 6, 0, 1 / 2, 0]))


def test_pack_samples_cuts_mini_batches_of_whole_groups_and_weighs_each_alone():
    samples = [rows(3, "a"), rows(4, "b"), rows(5, "a", 200), rows(6, "c")]
    batch = pack_samples(samples, PackingLayout(num_data_parallel=1, max_tokens=100, mini_batch_prompts=2, epochs=2))
    assert [m.num_loss_tokens for m in batch.mini_batches] == [9, 5, 9, 5]  # (2 + 4 + 3), (5), and again
    assert batch.mini_batches[0].micro_batches[0][0] is batch.mini_batches[2].micro_batches[0][0]
    for mini_batch in batch.mini_batches:
        assert sum(float(m.loss_weights.sum()) for m in mini_batch.micro_batches[0]) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("num_groups", "mini_batch_prompts", "sizes"),
    [(17, 16, [9, 8]), (16, 16, [16]), (31, 16, [16, 15]), (33, 16, [11, 11, 11]), (5, 16, [5]), (7, 3, [3, 2, 2])],
)
@pytest.mark.parametrize("num_ranks", [1, 2])
def test_pack_samples_gives_every_group_its_share_of_even_mini_batches(
    num_groups: int, mini_batch_prompts: int, sizes: list[int], num_ranks: int
):
    """Two trajectories of 2 loss tokens in each group: a token has 1 / (4 x the groups of its mini-batch)."""
    samples = [make_sample(f"g{i}/{k}", [1, 2, 3 + i], [0, 1, 1]) for i in range(num_groups) for k in range(2)]
    layout = PackingLayout(num_ranks, max_tokens=20, mini_batch_prompts=mini_batch_prompts)
    batch = pack_samples(samples, layout)
    assert sorted((m.num_trajectories // 2 for m in batch.mini_batches), reverse=True) == sizes
    for mini_batch in batch.mini_batches:
        micros = [micro for rank in mini_batch.micro_batches for micro in rank]
        weights = torch.cat([micro.loss_weights[micro.loss_mask > 0] for micro in micros])
        torch.testing.assert_close(weights, torch.full_like(weights, 1 / (2 * mini_batch.num_trajectories)))
        assert sum(float(m.loss_weights.sum()) for m in micros) == pytest.approx(1.0)
        assert len({len(rank) for rank in mini_batch.micro_batches}) == 1
    trained = [name for mini_batch in batch.mini_batches for name in mini_batch.trajectory_ids]
    assert sorted(trained) == sorted(sample.trajectory_id for sample in samples)


def test_pack_samples_counts_groups_without_loss_tokens_in_no_mini_batch():
    samples = [make_sample(f"g{i}/0", [1, 2, 3], [0, 1, 1] if i % 2 else [0, 0, 0]) for i in range(8)]
    batch = pack_samples(samples, PackingLayout(1, max_tokens=100, mini_batch_prompts=4))
    assert [m.num_trajectories for m in batch.mini_batches] == [4]


def test_pack_samples_leaves_out_samples_without_loss_tokens():
    masked = make_sample("a/1", [1, 2, 3], [0, 0, 0])
    batch = pack_samples([rows(3, "a"), masked], PackingLayout(1, max_tokens=100, mini_batch_prompts=1))
    ((micro,),) = batch.mini_batches[0].micro_batches
    assert micro.num_tokens == 3 and batch.mini_batches[0].num_trajectories == 1
    assert pack_samples([masked], PackingLayout(1, max_tokens=100, mini_batch_prompts=1)).mini_batches == []
    assert pack_samples([], PackingLayout(1, max_tokens=100, mini_batch_prompts=1)).mini_batches == []


def test_pack_samples_fills_up_ranks_without_samples():
    layout = PackingLayout(num_data_parallel=3, max_tokens=100, mini_batch_prompts=1, pad_to_multiple=4)
    ranks = pack_samples([rows(6, "a")], layout).mini_batches[0].micro_batches
    assert [[m.num_tokens for m in rank] for rank in ranks] == [[8], [4], [4]]
    assert ranks[0][0].cu_seqlens.tolist() == [0, 6, 8]  # the padding is a sequence of its own
    assert ranks[0][0].position_ids.tolist() == [0, 1, 2, 3, 4, 5, 0, 1]
    for micro in (ranks[1][0], ranks[2][0]):
        assert float(micro.loss_weights.sum()) == float(micro.loss_mask.sum()) == 0.0


def test_pack_samples_cuts_groups_so_that_ranks_can_be_balanced():
    # One group of four samples, 2 + 4 x 3 tokens: of two ranks neither stays idle. Each holds the prompt.
    samples = [make_sample(f"a/{i}", [1, 5, 9, 7, i], [0, 0, 0, 1, 1]) for i in range(4)]
    layout = PackingLayout(num_data_parallel=2, max_tokens=100, mini_batch_prompts=1, share_prefix=True)
    ranks = pack_samples(samples, layout).mini_batches[0].micro_batches
    assert [[m.num_tokens for m in rank] for rank in ranks] == [[10], [10]]


def test_pack_samples_balances_ranks_by_cost_not_by_tokens():
    # 20 tokens see 210 pairs, 10 tokens 55: with a cost of 1 for a pair the long one is worth three to four short ones.
    samples = [rows(20, "a"), *(rows(10, f"g{i}") for i in range(4))]
    layout = PackingLayout(2, max_tokens=100, mini_batch_prompts=9, cost=CostModel(attention=1.0))
    ranks = pack_samples(samples, layout).mini_batches[0].micro_batches
    assert sorted(sum(m.num_tokens for m in rank) for rank in ranks) == [20, 40]


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(2, 40), min_size=1, max_size=25),
    num_ranks=st.integers(1, 4),
    max_tokens=st.integers(1, 90),
    pad=st.integers(1, 4),
    multiple=st.integers(1, 3),
)
def test_pack_samples_keeps_every_token_once_within_the_budget(
    lengths: list[int], num_ranks: int, max_tokens: int, pad: int, multiple: int
):
    samples = [rows(length, f"g{i // 2}", first=1000 * (i + 1)) for i, length in enumerate(lengths)]
    layout = PackingLayout(
        num_ranks, max_tokens, mini_batch_prompts=99, pad_to_multiple=pad, num_micro_batches_multiple=multiple
    )
    (mini_batch,) = pack_samples(samples, layout).mini_batches
    counts = {len(rank) for rank in mini_batch.micro_batches}
    assert len(counts) == 1 and counts.pop() % multiple == 0
    micros: list[MicroBatch] = [m for rank in mini_batch.micro_batches for m in rank]
    for micro in micros:
        assert micro.num_tokens % pad == 0
        num_samples = sum(int(micro.token_ids[start]) >= 1000 for start in micro.cu_seqlens[:-1])
        assert micro.num_tokens <= max(max_tokens, pad) or num_samples == 1
    targets = torch.cat([m.target_ids[m.loss_mask > 0] for m in micros]).sort().values
    assert targets.tolist() == sorted(t for s in samples for t in s.token_ids[1:].tolist())
    assert sum(float(m.loss_weights.sum()) for m in micros) == pytest.approx(1.0, abs=1e-5)


def test_pack_samples_repeats_itself():
    samples = [rows(n, f"g{n}") for n in (7, 3, 3, 9, 4)]
    layout = PackingLayout(num_data_parallel=2, max_tokens=12, mini_batch_prompts=5)
    one, other = pack_samples(samples, layout), pack_samples(samples, layout)
    for a, b in zip(one.mini_batches[0].micro_batches[1], other.mini_batches[0].micro_batches[1], strict=True):
        assert torch.equal(a.token_ids, b.token_ids)


def test_packing_layout_reads_the_configuration():
    config = Config()
    config.megatron_training.global_batch_size = 12
    config.rl_config.max_packing_token_size = 500
    config.rl_config.epochs, config.rl_config.multi_turn_enable = 3, True
    config.model = ModelConfig(
        hidden_size=2, num_hidden_layers=5, num_attention_heads=1, intermediate_size=3, vocab_size=14
    )
    config.actor_config.load = "a/folder/elsewhere"
    # A layer has 2 x (4 x 2 + 3 x 3 + 2) = 38 parameters; a pair costs 2 x 2 multiply-adds, a loss token 14 x 2.
    cost = CostModel(attention=4 / 38, head=28 / 190)
    expected = PackingLayout(2, 500, mini_batch_prompts=12, epochs=3, loss_scale=2048.0, share_prefix=True, cost=cost)
    assert packing_layout(config, num_data_parallel=2) == expected
    config.rl_config.mini_batch_size = 4
    config.megatron_training.sequence_parallel = True
    config.actor_config.tensor_model_parallel_size = 2
    config.actor_config.pipeline_model_parallel_size = 3
    layout = packing_layout(config, num_data_parallel=2)
    assert (layout.mini_batch_prompts, layout.pad_to_multiple, layout.num_micro_batches_multiple) == (4, 2, 1)
    config.actor_config.num_layers_per_virtual_pipeline_stage = 2
    assert packing_layout(config, num_data_parallel=2).num_micro_batches_multiple == 3


def test_demonstration_layout_is_one_token_mean_whatever_rewards_are_learned_with():
    config = Config()
    config.megatron_training.global_batch_size = 12
    config.rl_config.mini_batch_size, config.rl_config.epochs = 4, 3
    config.rl_config.loss_agg_mode = LossAggregation.SEQ_MEAN_TOKEN_SUM_NORM
    layout = demonstration_layout(config, num_data_parallel=1)
    samples = [make_sample(f"{i}/0", list(range(i + 2)), [0] + [1] * (i + 1)) for i in range(12)]  # 1 to 12 loss tokens
    (mini_batch,) = pack_samples(samples, layout).mini_batches
    weights = torch.cat([m.loss_weights[m.loss_mask > 0] for m in mini_batch.micro_batches[0]])
    torch.testing.assert_close(weights, torch.full((78,), 1 / 78))
