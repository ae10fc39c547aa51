"""The timeline of a step: what the driver, each rank and each rollout worker did when."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rl.errors import DataError
from rl.observability.run_directory import RunDirectory
from rl.observability.trajectories import read_records
from rl.types import Span

DRIVER = "driver"
STEP = "step"
"""Name of the driver's span for the whole step. Its other spans lie within it."""
GENERATE = "generate"
TRAJECTORY = "trajectory"
"""Name of the span from a trajectory's start to the end of its scoring. Its other spans lie within it."""


def write_spans(path: Path, spans: Sequence[Span]) -> None:
    """Write the spans of a step's driver and workers. Those of trajectories follow from the trajectories' records."""
    path.parent.mkdir(exist_ok=True)
    rows = [
        {"who": span.who, "name": span.name, "start": round(span.start, 6), "end": round(span.end, 6)} for span in spans
    ]
    partial = path.with_suffix(".partial")  # readers of a live or killed run see whole files only
    partial.write_text("[\n" + ",\n".join(map(json.dumps, rows)) + "\n]\n", encoding="utf-8")
    partial.replace(path)


def step_spans(run: RunDirectory, step: int) -> list[Span]:
    """Read the whole timeline of a step.

    Args:
        run: The run.
        step: The step's number, from 1.

    Returns:
        The spans that `write_spans` wrote, then those of all trajectories that ran within the step: its own, those that
        were carried over to the next step, and those of an evaluation. Recorded ones of a replay ran in another run.

    Raises:
        DataError: The step has no timeline, or a file is malformed.
    """
    spans = _read_spans(run.timeline_file(step))
    start, end = min(span.start for span in spans), max(span.end for span in spans)
    files = [run.step_file(step), run.evaluation_file(step)]
    if any(row["step"] == step and row.get("rollout/surplus_groups") for row in run.read_metrics()):
        files.append(run.step_file(step + 1))
    for path in filter(Path.is_file, files):
        for record in read_records(path):
            own = list(trajectory_spans(record))
            if own and own[0].start < end and own[0].end > start:
                spans += own
    return spans


def trajectory_spans(record: dict[str, Any]) -> Iterator[Span]:
    """The spans of one trajectory: itself, its generations, calls and scoring; none without recorded times.

    A call waits first (`wait NAME`: for a worker, for its service, between attempts) and then runs (`tool NAME`). If
    it was retried, the waits between its attempts are drawn before all of them.

    Args:
        record: From `rl.observability.trajectories.read_records`.
    """
    if not record.get("started_at"):
        return
    who, name, begun = f"rollout {record.get('worker', 0)}", record["id"], record["started_at"]
    end = begun + record["wall_s"]
    reward_s = record.get("reward_s", 0.0)
    yield Span(who, TRAJECTORY, begun, end + reward_s, name)
    for turn in record["turns"]:
        at = begun + turn.get("start_s", 0.0)
        yield Span(who, GENERATE, at, at + turn["generate_s"], name)
        for result in turn["results"]:
            at = begun + result.get("start_s", 0.0)
            runs_at = at + result["queue_s"]
            if result["queue_s"]:
                yield Span(who, f"wait {result['name']}", at, runs_at, name)
            if result["run_s"]:
                yield Span(who, f"tool {result['name']}", runs_at, runs_at + result["run_s"], name)
    if reward_s:
        yield Span(who, "reward", end, end + reward_s, name)


def _read_spans(path: Path) -> list[Span]:
    if not path.is_file():
        raise DataError(f"{path}: no timeline of this step. Runs of older versions have none; name another step.")
    try:
        spans = [Span(row["who"], row["name"], row["start"], row["end"]) for row in json.loads(path.read_text("utf-8"))]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: not a timeline ({type(error).__name__}: {error}). Name another step.") from error
    if not spans:
        raise DataError(f"{path}: the timeline is empty. Name another step.")
    return spans
