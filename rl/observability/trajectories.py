"""Trajectories as JSON lines: what was asked, generated, called, answered and rewarded."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from rl.errors import DataError
from rl.thoughts import turn_thoughts
from rl.types import Group, Prompt, StopReason, TokenSequence, Trajectory, Turn


@dataclass(slots=True)
class _Record:
    """What a reader relies on of a record."""

    id: str
    data_source: str
    messages: list[dict[str, Any]]
    ground_truth: str
    turns: list[Turn]
    stop_reason: StopReason
    score: float | None
    rewards: dict[str, float]
    num_sampled: int
    response_length: int
    policy_versions: list[int]
    wall_s: float


_TURNS = TypeAdapter(list[Turn])
_RECORD = TypeAdapter(_Record)


class TrajectoryWriter:
    """Writes the trajectories of steps and evaluations into a folder, a file for each.

    Args:
        folder: There already.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def write_step(self, step: int, groups: Sequence[Group]) -> Path:
        """Write `step_<step>.jsonl`: the rollouts that the step with this number (from 1) learned from."""
        return self._write(self._folder / f"step_{step:06d}.jsonl", groups)

    def write_evaluation(self, step: int, groups: Sequence[Group]) -> Path:
        """Write `eval_<step>.jsonl`: the evaluation after this many steps."""
        return self._write(self._folder / f"eval_{step:06d}.jsonl", groups)

    def _write(self, path: Path, groups: Iterable[Group]) -> Path:
        with path.open("w", encoding="utf-8") as stream:
            for group in groups:
                for trajectory in group.trajectories:
                    stream.write(json.dumps(to_record(trajectory), ensure_ascii=False, default=str) + "\n")
        return path


def to_record(trajectory: Trajectory) -> dict[str, Any]:
    """A trajectory as plain values.

    Returns:
        `id`, `data_source`, `messages`, `ground_truth`, `turns` (text, start and end of each thought in it, whether
        it begins in one, number of tokens, calls, results with status and times), `stop_reason`, `score`, `rewards`,
        `reward_texts`, `turn_rewards`, `kl_penalty`, `reward_error`, `environment`, `failure`, `num_sampled`,
        `response_length`, `policy_versions` and `wall_s`.
    """
    versions = sorted({span.policy_version for s in trajectory.sequences for span in s.spans})
    return {
        "id": trajectory.id,
        "data_source": trajectory.prompt.data_source,
        "messages": trajectory.prompt.messages,
        "ground_truth": trajectory.prompt.ground_truth,
        "turns": [turn_record(turn) for turn in trajectory.turns],
        "stop_reason": trajectory.stop_reason.value,
        "score": trajectory.score,
        "rewards": trajectory.rewards,
        "reward_texts": trajectory.reward_texts,
        "turn_rewards": trajectory.turn_rewards,
        "kl_penalty": trajectory.kl_penalty,
        "reward_error": trajectory.reward_error,
        "environment": trajectory.environment,
        "failure": trajectory.failure,
        "num_sampled": trajectory.num_sampled,
        "response_length": trajectory.response_length,
        "policy_versions": versions,
        "wall_s": round(trajectory.wall_s, 4),
    }


def turn_record(turn: Turn) -> dict[str, Any]:
    """A turn as plain values; see `to_record`."""
    return {
        "text": turn.text,
        "thoughts": turn_thoughts(turn),
        "begins_in_thought": turn.begins_in_thought,
        "num_tokens": turn.num_tokens,
        "calls": [
            {"name": call.name, "arguments": call.arguments, "raw": call.raw, "error": call.error}
            for call in turn.calls
        ],
        "results": [
            {
                "name": result.name,
                "text": result.text,
                "status": result.status.value,
                "is_truncated": result.is_truncated,
                "queue_s": round(result.queue_s, 4),
                "run_s": round(result.run_s, 4),
                "num_failed_attempts": result.num_failed_attempts,
                "reward": result.reward,
                "stop": result.stop,
                "metrics": result.metrics,
            }
            for result in turn.results
        ],
        "messages": turn.messages,
        "is_cut": turn.is_cut,
        "generate_s": round(turn.generate_s, 4),
        "tool_s": round(turn.tool_s, 4),
    }


def from_record(record: dict[str, Any], prompt: Prompt | None = None) -> Trajectory:
    """Undo `to_record` as far as a reward can tell.

    Token ids are not recorded: in their place stand zeros, of which as many are sampled as were, so that lengths are
    right. Scores are left out.

    Args:
        record: As `to_record` made it.
        prompt: The data row; by default one of what was recorded, without the row's other columns.
    """
    prompt_id, _, index = record["id"].rpartition("/")
    sequence = TokenSequence([])
    num_sampled = record["num_sampled"]
    sequence.append_sampled([0] * num_sampled, [0.0] * num_sampled, max(record["policy_versions"], default=0))
    sequence.append_context([0] * (record["response_length"] - num_sampled))
    return Trajectory(
        replace(prompt, id=prompt_id)  # which names the epoch too
        if prompt
        else Prompt(prompt_id, record["messages"], record["ground_truth"], record["data_source"]),
        int(index),
        [sequence],
        _TURNS.validate_python(record["turns"]),
        StopReason(record["stop_reason"]),
        environment=record.get("environment"),
        wall_s=record["wall_s"],
    )


def read_records(path: Path) -> list[dict[str, Any]]:
    """Read a file that `TrajectoryWriter` wrote.

    Raises:
        DataError: The file is missing or malformed; says which row, from 1.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file of trajectories. `rl view RUN --list` shows what there is.")
    records = []
    with path.open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            try:
                record = json.loads(line.decode())
            except (ValueError, RecursionError) as error:
                raise DataError(
                    f"{path}, row {number}: not JSON ({error}). Was the run killed while writing?"
                ) from error
            if (problem := _record_problem(record)) is not None:
                raise DataError(f"{path}, row {number}: not a trajectory: {problem}. Remove the row.")
            records.append(record)
    return records


def _record_problem(record: Any) -> str | None:
    """What keeps a record from being one of `to_record`."""
    try:
        checked = _RECORD.validate_python(record)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        return f"{where}: {first['msg']}" if where else first["msg"]
    if not checked.id.rpartition("/")[2].isdecimal():
        return f"id: must end in /NUMBER, got {checked.id!r}"
    if not 0 <= checked.num_sampled <= checked.response_length:
        return f"num_sampled: must be at most response_length {checked.response_length}, got {checked.num_sampled}"
    return None
