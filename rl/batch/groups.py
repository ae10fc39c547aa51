"""Plans a step's batch from scored groups and estimates the rows' advantages, from headers alone."""

from __future__ import annotations

from collections.abc import MutableMapping, Sequence, Set
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rl.algorithms.advantages import ADVANTAGES
from rl.algorithms.filters import drop_uninformative_groups, exclusion, takes_part
from rl.algorithms.shaping import overlong_penalty
from rl.algorithms.turns import turn_advantages, turn_returns
from rl.batch.layout import PackingLayout
from rl.batch.plan import plan_mini_batches, row_weights
from rl.batches import BatchPlan, Exclusion, GroupHeader, RowAdvantages, RowPlace, TrajectoryHeader
from rl.config.schema import Config, RLConfig


@dataclass(slots=True, frozen=True)
class _Runs:
    """Advantages of the sampled tokens of one trajectory, in runs of equal values."""

    values: Tensor
    """[K] float32."""
    num_tokens: list[int]

    def mean(self) -> float:
        """Mean over the sampled tokens."""
        counts = torch.tensor(self.num_tokens, dtype=torch.float64)
        return float((self.values * counts).sum() / counts.sum())


def plan_batch(
    groups: Sequence[GroupHeader], config: Config, layout: PackingLayout, metrics: MutableMapping[str, float]
) -> BatchPlan:
    """Choose the rows to train on, and split them into mini-batches, ranks and micro-batches.

    It drops and counts trajectories without a score (the reward or the infrastructure failed), trajectories that the
    token budget cut off (with `overlong_filter_enable`), groups whose trajectories do not differ in
    `filter_groups_metric` (with `filter_groups_enable`), and groups whose advantages are all 0. With the KL term in the
    reward, advantages need the reference's log-probs, so `estimate_advantages` drops those.

    Args:
        groups: Scored. Each trajectory gets its `reward`, `advantage` and `exclusion`, as `estimate_advantages` does.
        config: The run's.
        layout: The sizes.
        metrics: Gets `training/dropped_groups`, `training/masked_trajectories`, `training/num_samples`,
            `training/empty_batch` (1 without rows), and mean, max and min of `critic/rewards/*`: scores after length
            shaping, over all trajectories that take part.

    Returns:
        The plan, without rows if there is nothing to learn from.
    """
    rl = config.rl_config
    everything = _members(groups, rl)
    kept = list(groups)
    if rl.filter_groups_enable:
        kept, _ = drop_uninformative_groups(groups, rl.filter_groups_metric, drop_overlong=rl.overlong_filter_enable)
    members = _members(kept, rl)
    numbers = {id(group): number for number, group in enumerate(groups)}
    plan = BatchPlan(
        rows=[],
        sources=[group.rows for group in groups],
        mini_batches=[],
        epochs=layout.epochs,
        trajectory_ids=[trajectory.id for _, trajectory in members],
        members=[trajectory for _, trajectory in members],
        group_ids=[numbers[id(group)] for group, _ in members],
    )
    runs = _estimate(plan, rl)
    if rl.use_kl_in_reward and rl.init_kl_coef > 0:
        informative = set(plan.group_ids)
    else:
        informative = _informative_groups(plan.group_ids, runs)
    for number, (trajectory, group) in enumerate(zip(plan.members, plan.group_ids, strict=True)):
        if group in informative:
            first = _first_row(groups[group], trajectory)
            rows = [RowPlace(h, number, group, first + i) for i, h in enumerate(trajectory.rows)]
            plan.rows += rows
    _cut(plan, groups, layout)
    _note_exclusions(groups, rl)
    _note_uses(plan, runs, informative)
    metrics["training/masked_trajectories"] = float(sum(len(g.trajectories) for g in groups) - len(everything))
    _report(plan, groups, rl, metrics)
    return plan


def estimate_advantages(
    plan: BatchPlan,
    groups: Sequence[GroupHeader],
    config: Config,
    layout: PackingLayout,
    metrics: MutableMapping[str, float],
) -> None:
    """Fill the advantages of every row, from scores, length shaping and the KL penalty.

    With the KL term in the reward, it drops groups whose advantages are all 0 and splits the others again.

    Args:
        plan: Its trajectories' `kl_penalty` is filled.
        groups: As in `plan_batch`.
        config: The run's.
        layout: As in `plan_batch`.
        metrics: Gets mean, max and min of `critic/advantages/*` (over trained tokens, each trajectory counted once)
            and, with the KL term in the reward, corrected values of `plan_batch`.
    """
    rl = config.rl_config
    runs = _estimate(plan, rl)
    if rl.use_kl_in_reward and rl.init_kl_coef > 0:
        informative = _informative_groups(plan.group_ids, runs)
        _note_uses(plan, runs, informative)
        plan.rows = [row for row in plan.rows if plan.group_ids[row.trajectory] in informative]
        _cut(plan, groups, layout)
        _report(plan, groups, rl, metrics)
    plan.advantages = _row_advantages(plan, runs)
    trained = sorted({row.trajectory for row in plan.rows})
    _summarize(metrics, "critic/advantages", torch.tensor([runs[i].mean() for i in trained]))


def _cut(plan: BatchPlan, groups: Sequence[GroupHeader], layout: PackingLayout) -> None:
    """Split a plan's rows into mini-batches, and set their weights."""
    row_groups = [row.source for row in plan.rows]
    prompts = {group: groups[group].prompt_ids for group in set(row_groups)}
    plan.mini_batches = plan_mini_batches(plan.rows, row_groups, prompts, layout)
    plan.weights = row_weights(plan, layout)


def _note_exclusions(groups: Sequence[GroupHeader], rl: RLConfig) -> None:
    """Note why trajectories take no part; `_note_uses` corrects this for those that do."""
    for trajectory in (trajectory for group in groups for trajectory in group.trajectories):
        own = exclusion(trajectory, drop_overlong=rl.overlong_filter_enable)
        trajectory.exclusion = own or Exclusion.UNIFORM_GROUP


def _note_uses(plan: BatchPlan, runs: Sequence[_Runs], informative: Set[int]) -> None:
    """Note each member's advantage, and why those that are left out are."""
    for trajectory, group, run in zip(plan.members, plan.group_ids, runs, strict=True):
        trajectory.advantage = run.mean() if trajectory.num_sampled else 0.0
        trajectory.exclusion = None if group in informative else Exclusion.ZERO_ADVANTAGE
        if not trajectory.rows:
            trajectory.exclusion = Exclusion.NOTHING_SAMPLED


def _report(plan: BatchPlan, groups: Sequence[GroupHeader], rl: RLConfig, metrics: MutableMapping[str, float]) -> None:
    members = [t for _, t in _members(groups, rl)]
    rewards = _rewards(members, rl)
    for trajectory, reward in zip(members, rewards.tolist(), strict=True):
        trajectory.reward = reward
    _summarize(metrics, "critic/rewards", rewards)
    metrics["training/dropped_groups"] = float(len(groups) - len({row.source for row in plan.rows}))
    metrics["training/num_samples"] = float(len(plan.rows))
    metrics["training/empty_batch"] = float(not plan.rows)


def _members(groups: Sequence[GroupHeader], rl: RLConfig) -> list[tuple[GroupHeader, TrajectoryHeader]]:
    """The trajectories that take part, each with its group."""
    return [(g, t) for g in groups for t in g.trajectories if takes_part(t, drop_overlong=rl.overlong_filter_enable)]


def _first_row(group: GroupHeader, trajectory: TrajectoryHeader) -> int:
    """Index of the trajectory's first row in the group."""
    before = 0
    for other in group.trajectories:
        if other is trajectory:
            return before
        before += len(other.rows)
    raise AssertionError("the trajectory is of this group")


def _rewards(trajectories: Sequence[TrajectoryHeader], rl: RLConfig) -> Tensor:
    """[N] float32, scores after length shaping and the KL penalty, for advantages."""
    rewards = torch.tensor([t.score for t in trajectories], dtype=torch.float32)
    rewards -= torch.tensor([t.kl_penalty for t in trajectories], dtype=torch.float32)
    if rl.overlong_buffer_enable:
        rewards = rewards + overlong_penalty(
            torch.tensor([t.response_length for t in trajectories], dtype=torch.int64),
            max_tokens=rl.rollout_max_tokens,
            buffer=rl.overlong_buffer,
            factor=rl.overlong_buffer_penalty_factor,
        )
    return rewards


def _estimate(plan: BatchPlan, rl: RLConfig) -> list[_Runs]:
    """Advantages of each member: one value, or with `turn_credit_coef` one for each turn."""
    estimate = ADVANTAGES[rl.adv_estimator]
    group_ids = torch.tensor(plan.group_ids, dtype=torch.int64)
    num_tokens = [t.num_sampled for t in plan.members]
    of_trajectories = estimate(
        _rewards(plan.members, rl),
        group_ids,
        num_tokens=torch.tensor(num_tokens, dtype=torch.int64),
        divide_by_std=rl.norm_adv_by_std,
    )
    if not rl.turn_credit_coef or not plan.members:
        return [_Runs(value[None], [count]) for value, count in zip(of_trajectories, num_tokens, strict=True)]
    of_turns = turn_advantages(
        [turn_returns(torch.tensor(t.turn_rewards), rl.turn_reward_discount) for t in plan.members],
        group_ids,
        [torch.tensor(t.turn_tokens, dtype=torch.int64) for t in plan.members],
        estimate,
        divide_by_std=rl.norm_adv_by_std,
    )
    return [
        _Runs(value + rl.turn_credit_coef * turns, t.turn_tokens)
        for t, value, turns in zip(plan.members, of_trajectories, of_turns, strict=True)
    ]


def _informative_groups(group_ids: Sequence[int], runs: Sequence[_Runs]) -> set[int]:
    """Groups with an advantage other than 0 on a sampled token."""
    return {
        group
        for group, run in zip(group_ids, runs, strict=True)
        if bool((run.values * torch.tensor(run.num_tokens)).any())
    }


def _row_advantages(plan: BatchPlan, runs: Sequence[_Runs]) -> list[RowAdvantages]:
    """Split each trajectory's advantages over its rows, by sampled tokens."""
    cut: list[RowAdvantages] = []
    position: dict[int, int] = {}
    for row in plan.rows:
        run, count = runs[row.trajectory], row.header.num_loss_tokens
        start = position.get(row.trajectory, 0)
        position[row.trajectory] = start + count
        ends = np.cumsum(run.num_tokens)
        begins = ends - run.num_tokens
        own = np.minimum(ends, start + count) - np.maximum(begins, start)
        cut.append(RowAdvantages(run.values.numpy()[own > 0], own[own > 0].astype(np.int32)))
    return cut


def _summarize(metrics: MutableMapping[str, float], name: str, values: Tensor) -> None:
    if len(values):
        metrics[f"{name}/mean"] = float(values.mean())
        metrics[f"{name}/max"] = float(values.max())
        metrics[f"{name}/min"] = float(values.min())
