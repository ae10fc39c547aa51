"""A scored group in three parts: headers for the driver, rows for the actor, and records for rewards and the viewer."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from rl.batch.rows import row_headers
from rl.batches import GroupHeader, RowHeader, Sample, TrajectoryHeader, Use
from rl.rewards.answers import voted_answer
from rl.rollout.signs import num_unread_calls, repetition
from rl.types import Group, IntArray, StopReason, ToolStatus, Trajectory, Turn


def rows_of(trajectories: Sequence[Trajectory]) -> list[Sample]:
    """A training row for each token sequence with sampled tokens, in order."""
    return [
        Sample(
            trajectory_id=trajectory.id,
            group_id=trajectory.prompt.id,
            token_ids=sequence.token_ids,
            loss_mask=sequence.loss_mask,
            advantages=None,
            rollout_logprobs=sequence.logprobs,
            versions=sequence.versions,
        )
        for trajectory in trajectories
        for sequence in trajectory.sequences
        if sequence.num_sampled
    ]


def headers_of(records: Sequence[Trajectory], rows: Sequence[Sample]) -> tuple[list[TrajectoryHeader], IntArray]:
    """What the driver needs to know about a group.

    Args:
        records: The trajectories; their tokens are not needed.
        rows: From `rows_of`.

    Returns:
        A header for each trajectory, and the group's `prompt_ids`.
    """
    of_rows, prompt_ids = row_headers(rows)
    own: dict[str, tuple[list[Sample], list[RowHeader]]] = {record.id: ([], []) for record in records}
    for row, header in zip(rows, of_rows, strict=True):
        own[row.trajectory_id][0].append(row)
        own[row.trajectory_id][1].append(header)
    return [_header(record, *own[record.id]) for record in records], prompt_ids


def header_of_group(group: Group) -> GroupHeader:
    """The header of a local group: it holds rows and records directly, without an object store."""
    rows = rows_of(group.trajectories)
    records = [trajectory.without_tokens() for trajectory in group.trajectories]
    headers, prompt_ids = headers_of(records, rows)
    return GroupHeader(group.prompt, headers, prompt_ids, rows, records)


def uses_of(groups: Sequence[GroupHeader]) -> dict[str, Use]:
    """What training made of each trajectory, by id."""
    return {trajectory.id: trajectory.use for group in groups for trajectory in group.trajectories}


def _header(trajectory: Trajectory, rows: Sequence[Sample], headers: list[RowHeader]) -> TrajectoryHeader:
    given = trajectory.turn_rewards or [0.0] * len(trajectory.turns)
    return TrajectoryHeader(
        id=trajectory.id,
        stop_reason=trajectory.stop_reason,
        score=trajectory.score,
        rewards=trajectory.rewards,
        reward_error=trajectory.reward_error,
        failure=_failure(trajectory),
        turn_tokens=[turn.num_tokens if turn.is_trained else 0 for turn in trajectory.turns],
        turn_rewards=[
            reward + sum(r.reward or 0.0 for r in turn.results)
            for turn, reward in zip(trajectory.turns, given, strict=True)
        ],
        results=[replace(result, text="") for turn in trajectory.turns for result in turn.results],
        num_tool_calls=trajectory.num_tool_calls,
        prompt_length=trajectory.prompt_length,
        response_length=trajectory.response_length,
        num_sampled=trajectory.num_sampled,
        tool_s=sum(turn.tool_s for turn in trajectory.turns),
        wall_s=trajectory.wall_s,
        policy_versions=trajectory.policy_versions,
        rows=headers,
        answer=voted_answer(trajectory) if trajectory.prompt.evaluation_set is not None else "",
        repetition=repetition(rows),
        num_unread_calls=num_unread_calls(trajectory.turns),
        num_untrained=sum(turn.num_tokens for turn in trajectory.turns if not turn.is_trained),
        num_as_sampled=_num_as_sampled(trajectory.turns, rows),
        starts=trajectory.starts,
        tokens_by_version=_tokens_by_version(rows),
        ended_at=trajectory.started_at + trajectory.wall_s + trajectory.reward_s,
    )


def _tokens_by_version(rows: Sequence[Sample]) -> dict[int, int]:
    found: Counter[int] = Counter()
    for row in rows:
        if row.versions is not None:
            versions, counts = np.unique(row.versions[row.loss_mask > 0], return_counts=True)
            found.update(dict(zip(versions.tolist(), counts.tolist(), strict=True)))
    return dict(found)


def _num_as_sampled(turns: Sequence[Turn], rows: Sequence[Sample]) -> int:
    """Tokens with loss mask 1 that are, turn by turn, those that the engine gave."""
    trained = [np.asarray(row.token_ids)[np.asarray(row.loss_mask) > 0] for row in rows]
    ids = np.concatenate([np.empty(0, np.int32), *trained], dtype=np.int32)
    found, end = 0, 0
    for turn in (turn for turn in turns if turn.is_trained):
        start, end = end, end + turn.num_tokens
        found += turn.num_tokens * (turn.checksum == zlib.crc32(ids[start:end].tobytes()))
    return found


def _failure(trajectory: Trajectory) -> str | None:
    """Why a trajectory has no score, in words."""
    if trajectory.score is not None:
        return None
    if trajectory.reward_error is not None:
        return trajectory.reward_error
    if trajectory.failure is not None:
        return trajectory.failure
    results = [result for turn in trajectory.turns for result in turn.results]
    if trajectory.stop_reason is StopReason.TOOL_UNAVAILABLE:
        return next((f"{r.name}: {r.text}" for r in results if r.status is ToolStatus.UNAVAILABLE), "no answer")
    return f"{trajectory.stop_reason} after {trajectory.wall_s:.1f} s and {len(trajectory.turns)} turns"
