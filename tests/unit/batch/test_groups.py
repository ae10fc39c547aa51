from __future__ import annotations

import math

import pytest

from rl.batch.plan import share_of
from rl.config.schema import Config
from rl.types import Group, Prompt, StopReason, TokenSequence, ToolResult, ToolStatus, Trajectory, Turn
from tests.samples import make_plan, make_samples


def make_group(name: str, scores: list[float | None], *, lengths: list[int] | None = None) -> Group:
    """Trajectories whose prompt is [1, 5] and whose response is 7s, with the last of two or more not sampled."""
    prompt = Prompt(name, [{"role": "user", "content": "q"}], "42", "test")
    trajectories = []
    for i, score in enumerate(scores):
        length = lengths[i] if lengths else 3
        sequence = TokenSequence([1, 5])
        sequence.append_sampled([7] * (length - 1), [-0.5] * (length - 1), 0)
        sequence.append_context([9])
        trajectories.append(Trajectory(prompt, i, [sequence], [], StopReason.FINISHED, score=score))
    return Group(prompt, trajectories)


def test_make_samples_gives_each_sampled_token_its_trajectory_advantage():
    # Scores 1 and 0: mean 0.5, sample standard deviation sqrt(0.5), so advantages of 0.5 / 0.70710678 = 0.7071058.
    metrics: dict[str, float] = {}
    first, second = make_samples([make_group("a", [1.0, 0.0])], Config(), metrics)
    assert first.token_ids.tolist() == [1, 5, 7, 7, 9]
    assert first.loss_mask.tolist() == [0, 0, 1, 1, 0]
    assert first.rollout_logprobs.tolist() == [0, 0, -0.5, -0.5, 0]
    expected = 0.5 / (math.sqrt(0.5) + 1e-6)
    assert [round(a, 5) for a in first.advantages.tolist()] == [0, 0, round(expected, 5), round(expected, 5), 0]
    assert second.advantages.tolist() == [-a for a in first.advantages.tolist()]
    assert (first.trajectory_id, first.group_id, second.trajectory_id) == ("a/0", "a", "a/1")
    assert metrics["critic/rewards/mean"] == 0.5
    assert round(metrics["critic/advantages/max"], 5) == round(expected, 5)
    assert (metrics["training/num_samples"], metrics["training/empty_batch"]) == (2, 0)


def test_make_samples_leaves_out_and_counts_what_teaches_nothing():
    groups = [make_group("same", [1.0, 1.0]), make_group("failed", [None, 0.0]), make_group("good", [1.0, 0.0, None])]
    metrics: dict[str, float] = {}
    samples = make_samples(groups, Config(), metrics)
    assert [sample.trajectory_id for sample in samples] == ["good/0", "good/1"]
    assert metrics["training/dropped_groups"] == 2
    assert metrics["training/masked_trajectories"] == 2
    assert metrics["critic/rewards/mean"] == 0.6000000238418579  # 3 of 5, in float32


def test_make_samples_without_any_difference_is_empty():
    metrics: dict[str, float] = {}
    assert make_samples([make_group("same", [0.0, 0.0])], Config(), metrics) == []
    assert (metrics["training/empty_batch"], metrics["training/dropped_groups"]) == (1, 1)
    assert make_samples([make_group("failed", [None])], Config(), {}) == []
    assert make_samples([], Config(), {}) == []


def test_make_samples_shapes_by_length_before_it_compares():
    # Full punishment of 1 from 10 tokens on, beginning after 6: lengths 6, 8, 10 lose 0, 0.5, 1.
    config = Config()
    config.rl_config.overlong_buffer_enable = True
    config.rl_config.rollout_max_tokens, config.rl_config.overlong_buffer = 10, 4
    config.rl_config.norm_adv_by_std = False
    metrics: dict[str, float] = {}
    group = make_group("a", [1.0, 1.0, 1.0], lengths=[6, 8, 10])
    samples = make_samples([group], config, metrics)
    assert [float(sample.advantages[2]) for sample in samples] == [0.5, 0.0, -0.5]
    assert (metrics["critic/rewards/max"], metrics["critic/rewards/min"]) == (1.0, 0.0)
    config.rl_config.filter_groups_enable = True
    assert make_samples([group], config, {}) == []


def test_make_samples_filters_by_the_named_reward():
    config = Config()
    config.rl_config.filter_groups_enable, config.rl_config.filter_groups_metric = True, "acc"
    group = make_group("a", [1.0, 0.5])
    for trajectory in group.trajectories:
        trajectory.rewards["acc"] = 1.0
    assert make_samples([group], config, {}) == []
    group.trajectories[0].rewards["acc"] = 0.0
    assert len(make_samples([group], config, {})) == 2


def test_make_samples_gives_a_sample_for_each_sequence():
    group = make_group("a", [1.0, 0.0])
    unfinished = TokenSequence([1, 5, 7])  # a rewritten prefix that the engine never answered
    again = TokenSequence([1, 6])
    again.append_sampled([8], [-0.1], 0)
    group.trajectories[0].sequences += [again, unfinished]
    samples = make_samples([group], Config(), {})
    assert [sample.token_ids.tolist() for sample in samples] == [[1, 5, 7, 7, 9], [1, 6, 8], [1, 5, 7, 7, 9]]
    assert samples[1].advantages[2] == samples[0].advantages[2]


def test_make_samples_takes_the_kl_penalty_off_the_score():
    config = Config()
    config.rl_config.norm_adv_by_std = False
    config.rl_config.use_kl_in_reward, config.rl_config.init_kl_coef = True, 0.1
    group = make_group("a", [1.0, 1.0])
    metrics: dict[str, float] = {}
    samples = make_samples([group], config, metrics, kl_penalties={"a/0": 0.5})
    assert [float(sample.advantages[2]) for sample in samples] == [-0.25, 0.25]  # rewards 0.5 and 1
    assert metrics["critic/rewards/mean"] == 0.75


def test_make_samples_masks_truncated_trajectories_where_asked():
    config = Config()
    config.rl_config.norm_adv_by_std = False
    group = make_group("a", [1.0, 0.0, -4.0])
    group.trajectories[2].stop_reason = StopReason.LENGTH
    assert len(make_samples([group], config, {})) == 3
    config.rl_config.overlong_filter_enable = True
    metrics: dict[str, float] = {}
    samples = make_samples([group], config, metrics)
    assert [sample.trajectory_id for sample in samples] == ["a/0", "a/1"]
    assert [float(sample.advantages[2]) for sample in samples] == [0.5, -0.5]  # the truncated one is in no mean
    assert (metrics["training/masked_trajectories"], metrics["critic/rewards/min"]) == (1, 0.0)


def multi_turn_group(tool_rewards: list[list[float | None]], scores: list[float]) -> Group:
    """Trajectories of turns of 2, 3, 4, ... sampled tokens, with a tool token after each and a reward for its call."""
    prompt = Prompt("m", [{"role": "user", "content": "q"}], "42", "test")
    trajectories = []
    for i, (rewards, score) in enumerate(zip(tool_rewards, scores, strict=True)):
        sequence, turns = TokenSequence([1]), []
        for k, reward in enumerate(rewards):
            sequence.append_sampled([7] * (k + 2), [-0.5] * (k + 2), 0)
            sequence.append_context([9])
            turns.append(Turn("", k + 2, results=[ToolResult("t", "", ToolStatus.OK, reward=reward)]))
        trajectories.append(Trajectory(prompt, i, [sequence], turns, StopReason.FINISHED, score=score))
    return Group(prompt, trajectories)


def test_turn_credit_gives_tokens_the_returns_of_their_turn_beside_the_outcome():
    config = Config()
    config.rl_config.norm_adv_by_std = False
    config.rl_config.turn_credit_coef, config.rl_config.turn_reward_discount = 2.0, 0.5
    # Scores 3 and 1: outcome advantages 1 and -1. Turn rewards 0, 4 and 0, none: returns 2, 4 and 0, 0.
    # First turns differ from their mean by 1 and -1, second turns by 2 and -2; twice that beside the outcome.
    group = multi_turn_group([[0.0, 4.0], [0.0, None]], [3.0, 1.0])
    first, second = make_samples([group], config, {})
    assert first.loss_mask.tolist() == [0, 1, 1, 0, 1, 1, 1, 0]
    assert first.advantages.tolist() == [0, 3, 3, 0, 5, 5, 5, 0]
    assert second.advantages.tolist() == [0, -3, -3, 0, -5, -5, -5, 0]


def test_turn_credit_adds_what_reward_functions_gave_to_turns():
    config = Config()
    config.rl_config.norm_adv_by_std = False
    config.rl_config.turn_credit_coef = 1.0
    group = multi_turn_group([[1.0], [1.0]], [0.0, 0.0])
    group.trajectories[0].turn_rewards = [2.0]
    first, second = make_samples([group], config, {})
    assert (first.advantages[1], second.advantages[1]) == (1.0, -1.0)  # 3 and 1


def test_turn_credit_keeps_the_outcome_of_a_turn_without_a_counterpart():
    config = Config()
    config.rl_config.norm_adv_by_std = False
    config.rl_config.turn_credit_coef = 1.0
    first, second = make_samples([multi_turn_group([[0.0, 8.0], [0.0]], [1.0, 0.0])], config, {})
    assert first.advantages.tolist() == [0, 4.5, 4.5, 0, 0.5, 0.5, 0.5, 0]  # returns 8, 8 and 0
    assert second.advantages.tolist() == [0, -4.5, -4.5, 0]


@pytest.mark.parametrize("estimator", ["group_norm", "rloo", "reinforce_plus_plus", "reinforce_plus_plus_baseline"])
def test_turn_credit_without_rewards_of_turns_changes_nothing(estimator: str):
    config = Config()
    config.rl_config.adv_estimator = estimator
    group = multi_turn_group([[None, None], [0.0], [None]], [1.0, 0.0, 0.5])
    plain = make_samples([group], config, {})
    config.rl_config.turn_credit_coef = 1.0
    for one, other in zip(plain, make_samples([group], config, {}), strict=True):
        assert one.advantages.tolist() == other.advantages.tolist()


def test_turn_credit_trains_on_a_group_whose_turns_alone_differ():
    group = multi_turn_group([[1.0], [0.0]], [1.0, 1.0])
    config = Config()
    assert make_samples([group], config, {}) == []
    config.rl_config.turn_credit_coef = 1.0
    assert len(make_samples([group], config, {})) == 2


def test_turn_credit_follows_turns_across_sequences():
    config = Config()
    config.rl_config.norm_adv_by_std = False
    config.rl_config.turn_credit_coef, config.rl_config.turn_reward_discount = 1.0, 0.0
    group = multi_turn_group([[2.0, 4.0], [0.0, 0.0]], [0.0, 0.0])
    rewritten = group.trajectories[0]
    whole = rewritten.sequences[0]
    again = TokenSequence([1, 9])
    again.append_sampled(whole.token_ids[4:7], whole.logprobs[4:7], 0)
    cut = TokenSequence([1])
    cut.append_sampled(whole.token_ids[1:3], whole.logprobs[1:3], 0)
    rewritten.sequences = [cut, again]
    samples = make_samples([group], config, {})
    assert [sample.advantages.tolist() for sample in samples[:2]] == [[0, 1, 1], [0, 0, 2, 2, 2]]


def test_reinforce_plus_plus_whitens_over_the_sampled_tokens_of_all_groups():
    # Scores 1 and 0 with 2 sampled tokens each, of two prompts: mean 1/2, std 1/2.
    config = Config()
    config.rl_config.adv_estimator = "reinforce_plus_plus"
    samples = make_samples([make_group("a", [1.0]), make_group("b", [0.0])], config, {})
    assert [round(float(sample.advantages[2]), 4) for sample in samples] == [1.0, -1.0]


@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_turn_credit_keeps_a_tools_reward_that_is_not_finite_in_the_advantages(number: float):
    """So that the update finds it, skips the step and names the trajectories; the other group is as without it."""
    config = Config()
    config.rl_config.turn_credit_coef, config.rl_config.norm_adv_by_std = 1.0, False
    bad, good = multi_turn_group([[number], [1.0]], [1.0, 0.0]), multi_turn_group([[2.0], [0.0]], [1.0, 0.0])
    first, second, *others = make_samples([bad, good], config, {})
    assert not any(math.isfinite(float(sample.advantages[1])) for sample in (first, second))
    assert [float(sample.advantages[1]) for sample in others] == [1.5, -1.5]


def test_groups_that_the_kl_penalty_leaves_without_advantage_are_in_no_mini_batch():
    """Two groups of two, and two whose second reward failed: one optimizer step on both, as without the lone ones."""
    config = Config()
    config.rl_config.use_kl_in_reward, config.rl_config.init_kl_coef, config.rl_config.mini_batch_size = True, 0.1, 2
    groups = [make_group(name, [1.0, 0.0]) for name in "ab"] + [make_group(name, [1.0, None]) for name in "cd"]
    metrics: dict[str, float] = {}
    plan = make_plan([groups[2], groups[0], groups[3], groups[1]], config, metrics, kl_penalties={"a/0": 0.25})
    (mini_batch,) = plan.mini_batches
    assert [plan.trajectory_ids[plan.rows[i].trajectory] for i in mini_batch.rows] == ["a/0", "a/1", "b/0", "b/1"]
    assert (mini_batch.num_trajectories, mini_batch.num_loss_tokens) == (4, 8)
    assert plan.weights == [0.125] * 4
    assert [round(float(a.values[0]), 4) for a in plan.advantages] == [0.7071, -0.7071, 0.7071, -0.7071]
    assert (metrics["training/dropped_groups"], metrics["training/num_samples"]) == (2, 4)
    assert metrics["critic/rewards/mean"] == pytest.approx((0.75 + 0 + 1 + 0 + 1 + 1) / 6)


def test_a_batch_whose_advantages_the_kl_penalty_makes_0_is_empty():
    config = Config()
    config.rl_config.use_kl_in_reward, config.rl_config.init_kl_coef = True, 0.1
    metrics: dict[str, float] = {}
    plan = make_plan([make_group("a", [1.0, 0.0])], config, metrics, kl_penalties={"a/0": 1.0})
    assert (plan.rows, plan.mini_batches, metrics["training/empty_batch"]) == ([], [], 1)


def test_rows_are_planned_for_two_ranks_and_shares_have_their_own_sources_alone():
    config = Config()
    config.rl_config.share_prompt_prefix = False
    plan = make_plan([make_group(name, [1.0, 0.0]) for name in "ab"], config, {}, num_data_parallel=2)
    shares = [share_of(plan, rank) for rank in range(2)]
    assert sorted(number for share in shares for number in share.rows) == [0, 1, 2, 3]
    for share in shares:
        assert len(share.sources) == len({source for source, _ in share.rows.values()})
