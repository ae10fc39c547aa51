"""Scored groups to training samples: length shaping, advantages, and what is left out and counted."""

from __future__ import annotations

from collections.abc import MutableMapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rl.algorithms.advantages import ADVANTAGES
from rl.algorithms.filters import drop_uninformative_groups
from rl.algorithms.shaping import overlong_penalty
from rl.config.schema import Config, RLConfig
from rl.types import Group, Sample, TokenSequence, Trajectory


@dataclass(slots=True)
class _Scored:
    """The trajectories that have a score, of all groups. N trajectories."""

    trajectories: list[Trajectory]
    group_ids: Tensor
    """[N] int64."""
    rewards: Tensor
    """[N] float32, scores after length shaping: what advantages are made of."""


def make_samples(groups: list[Group], config: Config, metrics: MutableMapping[str, float]) -> list[Sample]:
    """Turn groups into training rows.

    Left out and counted are trajectories without a score (their reward or the infrastructure failed), groups whose
    trajectories do not differ in `filter_groups_metric` (with `filter_groups_enable`), and groups whose rewards are
    all equal: their advantages are 0.

    Args:
        groups: As sampled and scored.
        config: The run's configuration.
        metrics: Gets mean, max and min of `critic/rewards/*` (scores after length shaping, of all trajectories that
            have one) and `critic/advantages/*` (of the trajectories trained on), `training/dropped_groups`,
            `training/masked_trajectories`, `training/num_samples`, and `training/empty_batch`, 1 without any sample.

    Returns:
        A sample for each token sequence of each trajectory that is left. Empty where nothing is.
    """
    rl = config.rl_config
    num_trajectories = sum(len(group.trajectories) for group in groups)
    everything = _score(groups, rl)
    kept = groups
    if rl.filter_groups_enable:
        kept, _ = drop_uninformative_groups(groups, rl.filter_groups_metric)
    scored = _score(kept, rl)
    estimate = ADVANTAGES[rl.adv_estimator]
    advantages = estimate(scored.rewards, scored.group_ids, divide_by_std=rl.norm_adv_by_std)
    informative = {int(group) for group in scored.group_ids[advantages != 0].unique()}
    is_kept = [int(group) in informative for group in scored.group_ids]
    samples = [
        _to_sample(trajectory, sequence, float(advantage))
        for trajectory, advantage, keep in zip(scored.trajectories, advantages, is_kept, strict=True)
        if keep
        for sequence in trajectory.sequences
        if sequence.num_sampled > 0
    ]
    _summarize(metrics, "critic/rewards", everything.rewards)
    _summarize(metrics, "critic/advantages", advantages[torch.tensor(is_kept, dtype=torch.bool)])
    metrics["training/dropped_groups"] = float(len(groups) - len(informative))
    metrics["training/masked_trajectories"] = float(num_trajectories - len(everything.trajectories))
    metrics["training/num_samples"] = float(len(samples))
    metrics["training/empty_batch"] = float(not samples)
    return samples


def _score(groups: Sequence[Group], rl: RLConfig) -> _Scored:
    members = [(i, t) for i, group in enumerate(groups) for t in group.trajectories if t.score is not None]
    trajectories = [trajectory for _, trajectory in members]
    rewards = torch.tensor([t.score for t in trajectories], dtype=torch.float32)
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


def _to_sample(trajectory: Trajectory, sequence: TokenSequence, advantage: float) -> Sample:
    loss_mask = torch.tensor(sequence.loss_mask, dtype=torch.float32)
    return Sample(
        trajectory_id=trajectory.id,
        group_id=trajectory.prompt.id,
        token_ids=torch.tensor(sequence.token_ids, dtype=torch.int64),
        loss_mask=loss_mask,
        advantages=loss_mask * advantage,
        rollout_logprobs=torch.tensor(sequence.logprobs, dtype=torch.float32),
    )


def _summarize(metrics: MutableMapping[str, float], name: str, values: Tensor) -> None:
    if len(values):
        metrics[f"{name}/mean"] = float(values.mean())
        metrics[f"{name}/max"] = float(values.max())
        metrics[f"{name}/min"] = float(values.min())
