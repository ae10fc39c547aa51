"""`rl score`: scores recorded trajectories with the configured rewards, in seconds, without a model."""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from rl.config.schema import Config
from rl.data.prompts import load_prompts, row_of
from rl.errors import DataError
from rl.observability.log import console
from rl.observability.metrics import percentile
from rl.observability.run_directory import RunDirectory
from rl.observability.trajectories import from_record, read_records
from rl.observability.viewer import trajectory_file
from rl.rewards.registry import RewardSet, configured_rewards
from rl.types import INFRASTRUCTURE_FAILURES, Prompt, Trajectory

logger = logging.getLogger(__name__)

_SHOWN = 10
"""Number of trajectories listed individually if their score changed or is missing."""
_SAME = 1e-9


@dataclass(slots=True)
class Scored:
    """A trajectory with its new scores, and its record."""

    trajectory: Trajectory
    record: dict[str, Any]
    took_s: float


def main(config: Config, source: Path, step: int | None) -> int:
    """Score recorded trajectories again and compare the scores.

    Trajectories with an infrastructure failure are skipped, because rewards do not see them in training either.

    Args:
        config: Names the rewards; its data files provide the other columns of the rows.
        source: A run directory, or a .jsonl file with trajectories.
        step: Step of the run; None means the last.

    Returns:
        The exit code, 2 if a trajectory got no score.

    Raises:
        DataError: There are no such trajectories.
        RewardError: A reward cannot be loaded.
    """
    path = _file_of(source, step)
    records = [record for record in read_records(path) if record["stop_reason"] not in INFRASTRUCTURE_FAILURES]
    if not records:
        raise DataError(f"{path}: all trajectories have infrastructure failures and no score. Choose another step.")
    prompts = _prompts(config)
    rows = [_prompt_of(record, prompts) for record in records]
    trajectories = [from_record(record, row) for record, row in zip(records, rows, strict=True)]
    if missing := rows.count(None):
        logger.warning(
            "%d of %d trajectories have rows that are missing in the configured data files or have another question "
            "there. Their rewards get the recorded question and ground truth, but no other columns.",
            missing, len(records),
        )  # fmt: skip
    rewards = configured_rewards(config.rl_config)
    start = time.monotonic()
    try:
        times = asyncio.run(_score_all(rewards, trajectories))
    finally:
        rewards.close()
    scored = [Scored(*one) for one in zip(trajectories, records, times, strict=True)]
    report(scored, console(), title=f"{len(scored)} trajectories of {path} in {time.monotonic() - start:.1f} s")
    return 2 if any(one.trajectory.score is None for one in scored) else 0


async def _score_all(rewards: RewardSet, trajectories: list[Trajectory]) -> list[float]:
    """Score all trajectories; return the seconds of each, including waiting time."""

    async def score(trajectory: Trajectory) -> float:
        start = time.monotonic()
        trajectory.take_scores(await rewards.score(trajectory))
        return time.monotonic() - start

    return await asyncio.gather(*map(score, trajectories))


def report(scored: list[Scored], target: Console, *, title: str) -> None:
    """Print the recorded and new means, changed scores, and reasons for missing scores.

    Args:
        scored: At least one.
        target: Output console.
        title: First line.
    """

    def say(text: str) -> None:
        target.print(text, soft_wrap=True, markup=False)

    times = [one.took_s for one in scored]
    say(f"{title}: p50 {percentile(times, 50):.3f} s, slowest {max(times):.3f} s")
    names = dict.fromkeys(name for one in scored for name in one.trajectory.rewards)
    pairs = {"score": [(one.record["score"], one.trajectory.score) for one in scored]}
    pairs |= {name: [(o.record["rewards"].get(name), o.trajectory.rewards.get(name)) for o in scored] for name in names}
    width = max(map(len, pairs))
    say(f"{'':<{width}}  recorded  now")
    for name, values in pairs.items():
        say(f"{name:<{width}}  {_mean([old for old, _ in values]):>8}  {_mean([new for _, new in values])}")
    changed = [one for one in scored if _differ(one.record["score"], one.trajectory.score)]
    for one in changed[:_SHOWN]:
        say(f"{one.trajectory.id}: {_text(one.record['score'])} -> {_text(one.trajectory.score)}")
    if len(changed) > _SHOWN:
        say(f"... {len(changed)} changed scores in total")
    failed = [one.trajectory for one in scored if one.trajectory.score is None]
    for trajectory in failed[:_SHOWN]:
        say(f"{trajectory.id}: no score. {trajectory.reward_error}")
    if len(failed) > _SHOWN:
        say(f"... {len(failed)} trajectories without a score in total")


def _file_of(source: Path, step: int | None) -> Path:
    if source.is_dir():
        run = RunDirectory.open(source)
        has_steps = any(run.trajectories.glob("step_*.jsonl"))
        return trajectory_file(run, "step" if has_steps else "eval", step)
    if step is not None:
        raise DataError(f"--step: needs a run directory, got the file '{source}'. Remove the option.")
    return source


def _prompts(config: Config) -> dict[str, Prompt]:
    """Load the rows of the existing data files, by id."""
    training = config.megatron_training
    files = [(training.data_path, None), *((path, name) for name, path in training.eval_data_path.items())]
    there = [(path, name) for path, name in files if path and Path(path).is_file()]
    return {prompt.id: prompt for path, name in there for prompt in load_prompts(path, evaluation_set=name)}


def _prompt_of(record: dict[str, Any], prompts: dict[str, Prompt]) -> Prompt | None:
    """Find the row of a record; None if it is missing or now has another question."""
    prompt = prompts.get(row_of(record["id"].rpartition("/")[0]))
    return prompt if prompt is not None and prompt.messages == record["messages"] else None


def _mean(values: list[float | None]) -> str:
    numbers = [value for value in values if value is not None]
    return f"{sum(numbers) / len(numbers):.3f}" if numbers else "none"


def _differ(old: float | None, new: float | None) -> bool:
    return (old is None) != (new is None) or (old is not None and new is not None and abs(old - new) > _SAME)


def _text(score: float | None) -> str:
    return "none" if score is None else f"{score:.3f}"
