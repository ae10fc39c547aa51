import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rl.batch.balance import CostModel, balance, karmarkar_karp
from rl.config.schema import ModelConfig


def test_karmarkar_karp_worked_example():
    # 8 | 7 and 6 | 5, then 4 joins 7: 11 | 8, then 11 + 5 = 16 | 8 + 6 = 14. Longest first gives 17 | 13.
    assert karmarkar_karp([8, 7, 6, 5, 4], 2) == [[1, 3, 4], [0, 2]]


def test_karmarkar_karp_of_three_parts():
    # 8 | 7 | 6 and 5 | 4 | 0: 8 + 0, 7 + 4, 6 + 5.
    assert karmarkar_karp([8, 7, 6, 5, 4], 3) == [[2, 3], [1, 4], [0]]


def test_karmarkar_karp_with_fewer_rows_than_parts():
    assert karmarkar_karp([3.0], 3) == [[0], [], []]
    assert karmarkar_karp([], 2) == [[], []]


@settings(max_examples=50, deadline=None)
@given(costs=st.lists(st.floats(0, 1000), max_size=40), num_parts=st.integers(1, 8))
def test_karmarkar_karp_keeps_each_row_once_and_parts_close(costs: list[float], num_parts: int):
    parts = karmarkar_karp(costs, num_parts)
    assert sorted(row for part in parts for row in part) == list(range(len(costs)))
    totals = [sum(costs[row] for row in part) for part in parts]
    assert max(totals) - min(totals) <= max(costs, default=0) + 1e-6


def test_cost_worked_example():
    # A prompt of 3 and answers of 2 and 1 tokens: 6 tokens; pairs 1 + 2 + 3, 4 + 5, and 4.
    model = CostModel(attention=0.1, head=0.5)
    assert model.cost([5, 4], [0, 3], num_loss_tokens=3) == pytest.approx(6 + 0.1 * 19 + 0.5 * 3)


def test_cost_of_a_tree_counts_each_token_and_pair_once():
    # Sequences of 5, 4 and 6 tokens that begin with 3 and then 2 of the ones before: 5 + 1 + 4 tokens; pairs 15, and 4,
    # and 3 + 4 + 5 + 6.
    model = CostModel(attention=0.1)
    assert model.cost([5, 4, 6], [0, 3, 2], 0) == pytest.approx(10 + 0.1 * 37)


def test_cost_of_an_unknown_architecture_counts_tokens():
    assert CostModel.of(None).cost([5, 4], [0, 3], num_loss_tokens=3) == 6


def test_cost_model_of_smollm2():
    facts = ModelConfig(
        hidden_size=576,
        num_hidden_layers=30,
        intermediate_size=1536,
        num_attention_heads=9,
        num_key_value_heads=3,
        vocab_size=49152,
    )
    # 3.54 million parameters in a layer; a head of 28.3 million against 106 million in all layers.
    model = CostModel.of(facts)
    assert model.attention == pytest.approx(2 * 576 / 3_540_096)
    assert model.head == pytest.approx(0.2666, abs=1e-4)


def test_balance_worked_example():
    # Costs 5 | 4 and 3 | 2, joined so that 5 meets 2.
    assert balance([5, 4, 3, 2], [5, 4, 3, 2], num_ranks=2, max_tokens=7) == [[[0, 3]], [[1, 2]]]


def test_balance_lets_a_row_over_the_limit_stand_alone():
    assert balance([3, 50, 3], [3, 50, 3], num_ranks=1, max_tokens=10) == [[[1], [0, 2]]]


def test_balance_gives_every_rank_as_many_bins():
    # By cost one rank gets the long row and the other both short ones, which need two bins.
    assert balance([8, 5, 5], [20, 5, 5], num_ranks=2, max_tokens=8) == [[[0], []], [[1], [2]]]


def test_balance_rounds_the_number_of_bins_up():
    assert balance([5, 4, 3], [5, 4, 3], num_ranks=1, max_tokens=8, num_bins_multiple=2) == [[[1, 2], [0]]]
    assert balance([5], [5], num_ranks=1, max_tokens=8, num_bins_multiple=2) == [[[0], []]]
