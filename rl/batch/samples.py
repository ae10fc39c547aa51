"""Scored groups to training samples: shaped rewards, advantages, and what is left out and counted."""

from __future__ import annotations

from collections.abc import MutableMapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rl.algorithms.advantages import ADVANTAGES
from rl.algorithms.filters import drop_uninformative_groups, takes_part
from rl.algorithms.shaping import overlong_penalty
from rl.algorithms.turns import turn_advantages, turn_returns
from rl.config.schema import Config, RLConfig
from rl.types import Group, Sample, TokenSequence, Trajectory


@dataclass(slots=True)
class _Scored:
    """The trajectories that take part, of all groups. N trajectories."""

    trajectories: list[Trajectory]
    group_ids: Tensor
    """[N] int64."""
    rewards: Tensor
    """[N] float32, scores after length shaping and the KL penalty: what advantages are made of."""


def make_samples(groups: list[Group], config: Config, metrics: MutableMapping[str, float]) -> list[Sample]:
    """Turn groups into training rows.

    Left out and counted are trajectories without a score (their reward or the infrastructure failed), with
    `overlong_filter_enable` those that the token budget cut off, groups whose trajectories do not differ in
    `filter_groups_metric` (with `filter_groups_enable`), and groups whose advantages are all 0.

    Args:
        groups: As sampled and scored.
        config: The run's configuration.
        metrics: Gets mean, max and min of `critic/rewards/*` (scores after length shaping and the KL penalty, of all
            trajectories that take part) and `critic/advantages/*` (of the tokens trained on, a trajectory counting
            once), `training/dropped_groups`, `training/masked_trajectories`, `training/num_samples`, and
            `training/empty_batch`, 1 without any sample.

    Returns:
        A sample for each token sequence of each trajectory that is left. Empty where nothing is.
    """
    rl = config.rl_config
    num_trajectories = sum(len(group.trajectories) for group in groups)
    everything = _score(groups, rl)
    kept = groups
    if rl.filter_groups_enable:
        kept, _ = drop_uninformative_groups(groups, rl.filter_groups_metric, drop_overlong=rl.overlong_filter_enable)
    scored = _score(kept, rl)
    advantages = _advantages(scored, rl)
    informative = {int(g) for g, a in zip(scored.group_ids, advantages, strict=True) if bool(a.any())}
    trained = [
        (trajectory, advantage)
        for trajectory, group, advantage in zip(scored.trajectories, scored.group_ids, advantages, strict=True)
        if int(group) in informative and len(advantage)
    ]
    samples = [sample for trajectory, advantage in trained for sample in _to_samples(trajectory, advantage)]
    _summarize(metrics, "critic/rewards", everything.rewards)
    _summarize(metrics, "critic/advantages", torch.tensor([float(advantage.mean()) for _, advantage in trained]))
    metrics["training/dropped_groups"] = float(len(groups) - len(informative))
    metrics["training/masked_trajectories"] = float(num_trajectories - len(everything.trajectories))
    metrics["training/num_samples"] = float(len(samples))
    metrics["training/empty_batch"] = float(not samples)
    return samples


def sampled_rows(trajectories: Sequence[Trajectory]) -> list[Sample]:
    """Rows of what was sampled, without advantages: for log-probs alone.

    Args:
        trajectories: Scored or not.

    Returns:
        A sample for each token sequence with sampled tokens.
    """
    return [row for t in trajectories for row in _to_samples(t, torch.zeros(t.num_sampled))]


def _score(groups: Sequence[Group], rl: RLConfig) -> _Scored:
    drop_overlong = rl.overlong_filter_enable
    members = [
        (i, t)
        for i, group in enumerate(groups)
        for t in group.trajectories
        if takes_part(t, drop_overlong=drop_overlong)
    ]
    trajectories = [trajectory for _, trajectory in members]
    rewards = torch.tensor([t.score for t in trajectories], dtype=torch.float32)
    rewards -= torch.tensor([t.kl_penalty for t in trajectories], dtype=torch.float32)
    if rl.overlong_buffer_enable:
        lengths = torch.tensor([t.response_length for t in trajectories], dtype=torch.int64)
        rewards = rewards + overlong_penalty(
            lengths,
            max_tokens=rl.rollout_max_tokens,
            buffer=rl.overlong_buffer,
            factor=rl.overlong_buffer_penalty_factor,
        )
    group_ids = torch.tensor([i for i, _ in members], dtype=torch.int64)
    return _Scored(trajectories, group_ids, rewards)


def _advantages(scored: _Scored, rl: RLConfig) -> list[Tensor]:
    """Advantages of the sampled tokens of each trajectory: its own, and with `turn_credit_coef` those of its turns."""
    estimate = ADVANTAGES[rl.adv_estimator]
    num_tokens = torch.tensor([t.num_sampled for t in scored.trajectories], dtype=torch.int64)
    of_trajectories = estimate(
        scored.rewards, scored.group_ids, num_tokens=num_tokens, divide_by_std=rl.norm_adv_by_std
    )
    advantages = [a.repeat(int(n)) for a, n in zip(of_trajectories, num_tokens, strict=True)]
    if not rl.turn_credit_coef or not scored.trajectories:
        return advantages
    turn_tokens = [torch.tensor([turn.num_tokens for turn in t.turns], dtype=torch.int64) for t in scored.trajectories]
    of_turns = turn_advantages(
        [turn_returns(_turn_rewards(t), rl.turn_reward_discount) for t in scored.trajectories],
        scored.group_ids,
        turn_tokens,
        estimate,
        divide_by_std=rl.norm_adv_by_std,
    )
    return [
        advantage + rl.turn_credit_coef * turns.repeat_interleave(tokens)
        for advantage, turns, tokens in zip(advantages, of_turns, turn_tokens, strict=True)
    ]


def _turn_rewards(trajectory: Trajectory) -> Tensor:
    """[K] float32, what the tools and the reward functions gave to each turn."""
    given = trajectory.turn_rewards or [0.0] * len(trajectory.turns)
    pairs = zip(trajectory.turns, given, strict=True)
    return torch.tensor([reward + sum(r.reward or 0.0 for r in turn.results) for turn, reward in pairs])


def _to_samples(trajectory: Trajectory, advantages: Tensor) -> list[Sample]:
    """A row for each sequence that has sampled tokens; `advantages` are those of all sampled tokens, in order."""
    sequences = [sequence for sequence in trajectory.sequences if sequence.num_sampled > 0]
    parts = advantages.split([sequence.num_sampled for sequence in sequences])
    return [_to_sample(trajectory, sequence, part) for sequence, part in zip(sequences, parts, strict=True)]


def _to_sample(trajectory: Trajectory, sequence: TokenSequence, advantages: Tensor) -> Sample:
    loss_mask = torch.tensor(sequence.loss_mask, dtype=torch.float32)
    return Sample(
        trajectory_id=trajectory.id,
        group_id=trajectory.prompt.id,
        token_ids=torch.tensor(sequence.token_ids, dtype=torch.int64),
        loss_mask=loss_mask,
        advantages=torch.zeros_like(loss_mask).masked_scatter(loss_mask > 0, advantages),
        rollout_logprobs=torch.tensor(sequence.logprobs, dtype=torch.float32),
    )


def _summarize(metrics: MutableMapping[str, float], name: str, values: Tensor) -> None:
    if len(values):
        metrics[f"{name}/mean"] = float(values.mean())
        metrics[f"{name}/max"] = float(values.max())
        metrics[f"{name}/min"] = float(values.min())
