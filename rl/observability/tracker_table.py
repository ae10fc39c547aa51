"""The few trajectories of a step that trackers show, as rows of text."""

from __future__ import annotations

import json
from collections.abc import Sequence

from rl.batches import GroupHeader, TrajectoryHeader
from rl.interfaces import Rollouts
from rl.types import Message, Trajectory

Row = dict[str, str | float | None]
"""One trajectory: a value for each of `COLUMNS`."""
COLUMNS = ("id", "data_source", "score", "rewards", "stop_reason", "num_turns", "expected", "prompt", "response")
"""Columns of the table, in order."""
_LONGEST = 20_000
"""Characters of a prompt or response; a longer one loses its middle."""


def table_rows(groups: Sequence[GroupHeader], rollouts: Rollouts, count: int) -> list[Row]:
    """Pick trajectories from the best to the worst, evenly spaced by rank, and fetch their texts.

    Args:
        groups: Scored groups.
        rollouts: Has the texts; only the groups of the chosen trajectories are fetched.
        count: Trajectories to pick, at least 1.

    Returns:
        At most `count` rows, best score first.

    Raises:
        TurnwiseError: The texts are gone.
    """
    ranked = sorted(
        ((group, trajectory) for group in groups for trajectory in group.trajectories),
        key=lambda pair: _rank(pair[1]),
    )
    if not ranked:
        return []
    count = min(count, len(ranked))
    chosen = [ranked[round(i * (len(ranked) - 1) / max(1, count - 1))] for i in range(count)]
    records: dict[int, dict[str, Trajectory]] = {}
    rows = []
    for group, trajectory in chosen:
        if id(group) not in records:
            records[id(group)] = {record.id: record for record in rollouts.fetch_record(group)}
        rows.append(table_row(records[id(group)][trajectory.id]))
    return rows


def table_row(trajectory: Trajectory) -> Row:
    """A trajectory as values of `COLUMNS`."""
    return {
        "id": trajectory.id,
        "data_source": trajectory.prompt.data_source,
        "score": trajectory.score,
        "rewards": json.dumps({name: round(value, 6) for name, value in trajectory.rewards.items()}),
        "stop_reason": trajectory.stop_reason.value,
        "num_turns": float(len(trajectory.turns)),
        "expected": trajectory.prompt.ground_truth,
        "prompt": _shortened("\n\n".join(map(_message, trajectory.prompt.messages))),
        "response": _shortened(_response(trajectory)),
    }


def _rank(trajectory: TrajectoryHeader) -> float:
    return float("inf") if trajectory.score is None else -trajectory.score


def _response(trajectory: Trajectory) -> str:
    parts = []
    for number, turn in enumerate(trajectory.turns, start=1):
        parts.append(f"[model, turn {number}]\n{turn.text}")
        parts += [f"[{result.name or 'tool'}: {result.status.value}]\n{result.text}" for result in turn.results]
        parts += map(_message, turn.messages)
    return "\n\n".join(parts)


def _message(message: Message) -> str:
    content = message.get("content")
    text = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False, default=str)
    return f"[{message['role']}]\n{text}"


def _shortened(text: str) -> str:
    if len(text) <= _LONGEST:
        return text
    half = _LONGEST // 2
    return f"{text[:half]}\n[... {len(text) - 2 * half} characters ...]\n{text[-half:]}"
