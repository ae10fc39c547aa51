"""Trajectories as JSON lines: prompts, turns, tool calls, results and rewards."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from rl.batches import Use
from rl.errors import DataError
from rl.thoughts import turn_thoughts
from rl.types import Prompt, StopReason, Trajectory, Turn


@dataclass(slots=True)
class _Record:
    """The fields of a record that readers rely on."""

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


def write_records(path: Path, groups: Iterable[Sequence[Trajectory]], uses: Mapping[str, Use]) -> None:
    """Write trajectories to a file as JSON lines.

    Args:
        path: Its folder must exist.
        groups: Groups of trajectories.
        uses: What training made of each, by trajectory id; empty for an evaluation.
    """
    with path.open("w", encoding="utf-8") as stream:
        for trajectories in groups:
            for trajectory in trajectories:
                record = to_record(trajectory, uses.get(trajectory.id, Use()))
                stream.write(json.dumps(record, ensure_ascii=False, default=str) + "\n")


def to_record(trajectory: Trajectory, use: Use | None = None) -> dict[str, Any]:
    """A trajectory as plain values.

    Args:
        trajectory: Its tokens are not needed.
        use: What training made of it.

    Returns:
        `id`, `data_source`, `evaluation_set` (None in training), `messages`, `ground_truth`, `turns` (text, start and
        end of each thought in it, whether it begins in one, number of tokens, calls, results with status and times),
        `stop_reason`, `score`, `rewards`, `reward_texts`, `turn_rewards`, the fields of `Use`, `reward_error`,
        `environment`, `failure`, `prompt_length`, `num_sampled`, `response_length`, `policy_versions`, `starts` (how
        each token sequence began), `wall_s`, `started_at`, `reward_s` and `worker`.
    """
    return {
        "id": trajectory.id,
        "data_source": trajectory.prompt.data_source,
        "evaluation_set": trajectory.prompt.evaluation_set,
        "messages": trajectory.prompt.messages,
        "ground_truth": trajectory.prompt.ground_truth,
        "turns": [turn_record(turn) for turn in trajectory.turns],
        "stop_reason": trajectory.stop_reason.value,
        "score": trajectory.score,
        "rewards": trajectory.rewards,
        "reward_texts": trajectory.reward_texts,
        "turn_rewards": trajectory.turn_rewards,
        **asdict(use or Use()),
        "reward_error": trajectory.reward_error,
        "environment": trajectory.environment,
        "failure": trajectory.failure,
        "prompt_length": trajectory.prompt_length,
        "num_sampled": trajectory.num_sampled,
        "response_length": trajectory.response_length,
        "policy_versions": trajectory.policy_versions,
        "starts": [asdict(start) for start in trajectory.starts],
        "wall_s": round(trajectory.wall_s, 4),
        "started_at": round(trajectory.started_at, 4),
        "reward_s": round(trajectory.reward_s, 4),
        "worker": trajectory.worker,
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
                "start_s": round(result.start_s, 4),
                "num_failed_attempts": result.num_failed_attempts,
                "reward": result.reward,
                "stop": result.stop,
                "metrics": result.metrics,
            }
            for result in turn.results
        ],
        "asked": turn.asked,
        "messages": turn.messages,
        "sequence": turn.sequence,
        "is_cut": turn.is_cut,
        "start_s": round(turn.start_s, 4),
        "is_trained": turn.is_trained,
        "generate_s": round(turn.generate_s, 4),
        "tool_s": round(turn.tool_s, 4),
    }


def from_record(record: dict[str, Any], prompt: Prompt | None = None) -> Trajectory:
    """Undo `to_record`, as far as a reward needs it.

    Token ids are not recorded, and scores are left out.

    Args:
        record: From `to_record`.
        prompt: The data row; by default rebuilt from the record, without the row's other columns.
    """
    prompt_id, _, index = record["id"].rpartition("/")
    return Trajectory(
        replace(prompt, id=prompt_id)  # includes the epoch
        if prompt
        else Prompt(prompt_id, record["messages"], record["ground_truth"], record["data_source"]),
        int(index),
        [],
        _TURNS.validate_python(record["turns"]),
        StopReason(record["stop_reason"]),
        environment=record.get("environment"),
        wall_s=record["wall_s"],
        started_at=record.get("started_at", 0.0),
        reward_s=record.get("reward_s", 0.0),
        worker=record.get("worker", 0),
        num_sampled=record["num_sampled"],
        response_length=record["response_length"],
        policy_versions=record["policy_versions"],
    )


def read_records(path: Path) -> list[dict[str, Any]]:
    """Read a file that `write_records` wrote.

    Raises:
        DataError: The file is missing or malformed; says which row, from 1.
    """
    return [record for _, record in iterate_records(path)]


def iterate_records(path: Path) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """Read a file that `write_records` wrote, one record at a time.

    Yields:
        The line, with its line end, and its record.

    Raises:
        DataError: The file is missing or malformed; says which row, from 1.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file of trajectories. `rl view RUN --list` shows what there is.")
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
            yield line, record


def _record_problem(record: Any) -> str | None:
    """Why a record is invalid, if it is."""
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
