"""From groups to training rows with their advantages, as the training loop does it, without an object store."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import replace
from pathlib import Path

from rl.batch.groups import estimate_advantages, plan_batch
from rl.batch.layout import packing_layout
from rl.batch.packing import expand_advantages
from rl.batches import BatchPlan, GroupHeader, Recording, Sample
from rl.config.schema import Config
from rl.observability.token_records import write_sampled_rows
from rl.observability.trajectories import write_records
from rl.rollout.headers import header_of_group, uses_of
from rl.types import Group, Span, Trajectory


def group_of(*trajectories: Trajectory) -> GroupHeader:
    """The header of a local group, with its rows and records."""
    return header_of_group(Group(trajectories[0].prompt, [replace(t) for t in trajectories]))


class AtHand:
    """The part of `rl.interfaces.Rollouts` that reads local groups."""

    def write_trajectories(self, path: Path, groups: Sequence[GroupHeader], recording: Recording | None = None) -> None:
        write_records(path, [group.record for group in groups], uses_of(groups))
        if recording is not None:
            write_sampled_rows(recording, [group.rows for group in groups], lambda ids: [f"<{i}>" for i in ids])

    def take_spans(self) -> list[Span]:
        return []

    def fetch_rows(self, group: GroupHeader) -> list[Sample]:
        return group.rows

    def fetch_record(self, group: GroupHeader) -> list[Trajectory]:
        return group.record


def headers(groups: Sequence[Group]) -> list[GroupHeader]:
    """Headers of groups, including a test's later changes to trajectories."""
    return [header_of_group(Group(g.prompt, [replace(t) for t in g.trajectories])) for g in groups]


def make_plan(
    groups: Sequence[Group],
    config: Config,
    metrics: MutableMapping[str, float],
    *,
    kl_penalties: Mapping[str, float] | None = None,
    num_data_parallel: int = 1,
) -> BatchPlan:
    layout = packing_layout(config, num_data_parallel=num_data_parallel)
    planned = headers(groups)
    plan = plan_batch(planned, config, layout, metrics)
    if plan.rows:
        for member in plan.members:
            member.kl_penalty = (kl_penalties or {}).get(member.id, 0.0)
        estimate_advantages(plan, planned, config, layout, metrics)
    return plan


def make_samples(
    groups: Sequence[Group],
    config: Config,
    metrics: MutableMapping[str, float],
    *,
    kl_penalties: Mapping[str, float] | None = None,
) -> list[Sample]:
    plan = make_plan(groups, config, metrics, kl_penalties=kl_penalties)
    samples = [plan.sources[row.source][row.index] for row in plan.rows]
    return [
        replace(sample, advantages=expand_advantages(advantages, sample.loss_mask))
        for sample, advantages in zip(samples, plan.advantages, strict=True)
    ]
