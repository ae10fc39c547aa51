"""Recorded steps as the source of a run's groups, in the place of engines: the training half of a run by itself."""

from __future__ import annotations

import itertools
import logging
import re
import shutil
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from prometheus_client.core import Metric

from rl.batches import GroupHeader, Recording, RolloutStatus, RunPlace, Sample
from rl.errors import DataError
from rl.observability.run_directory import RunDirectory
from rl.observability.token_records import TokenRecord, not_written, read_place, read_sampled_rows, recorded_steps
from rl.observability.trajectories import from_record, read_records, write_records
from rl.rollout.headers import headers_of, uses_of
from rl.types import Prompt, Sampling, Scores, Span, Trajectory, WeightUpdate

logger = logging.getLogger(__name__)

_TOKENS_FILE = re.compile(r"step_(\d{6})\.parquet")


@dataclass(slots=True, frozen=True)
class RecordedStep:
    """Where a recorded step is, and its place in the run that recorded it."""

    tokens: Path
    trajectories: Path
    place: RunPlace


def find_recorded_steps(source: Path) -> list[RecordedStep]:
    """The recorded steps that `megatron_training.replay` names, in order.

    Args:
        source: A run directory, or the tokens file of one step in it.

    Raises:
        DataError: There are none, or a file is missing or damaged.
    """
    if source.is_dir():
        run = RunDirectory.open(source)
        if not (numbers := recorded_steps(run)):
            raise DataError(
                f"{source}: no step's tokens are recorded. Take a run with megatron_training.record_tokens_every "
                "above 0."
            )
    else:
        found = _TOKENS_FILE.fullmatch(source.name)
        if not found or not source.is_file():
            raise DataError(
                f"{source}: must be a run directory or the tokens file of a step (RUN/tokens/step_000001.parquet), "
                "and exist. Correct the path."
            )
        run, numbers = RunDirectory.open(source.absolute().parent.parent), [int(found[1])]
    for number in numbers:
        if not run.step_file(number).is_file():
            raise DataError(f"{run.step_file(number)}: the step's trajectories are missing. Replay another step.")
    return [RecordedStep(run.tokens_file(n), run.step_file(n), read_place(run.tokens_file(n))) for n in numbers]


def read_groups(step: RecordedStep) -> list[GroupHeader]:
    """Read the groups of a recorded step, with their rows and records.

    Raises:
        DataError: A file is damaged, or both do not belong together.
    """
    tokens: dict[str, list[TokenRecord]] = {}
    for row in read_sampled_rows(step.tokens):
        tokens.setdefault(row.trajectory_id, []).append(row)
    trajectories = [_trajectory(record) for record in read_records(step.trajectories)]
    for trajectory in trajectories:
        num_sampled = sum(int(row.loss_mask.sum()) for row in tokens.get(trajectory.id, []))
        if num_sampled != trajectory.num_sampled:
            raise DataError(
                f"{step.tokens}: must have the {trajectory.num_sampled} sampled tokens of {trajectory.id} in "
                f"{step.trajectories.name}, got {num_sampled}. The files are not of one step; record it again."
            )
    return [_group(list(members), tokens) for _, members in itertools.groupby(trajectories, key=lambda t: t.prompt.id)]


class Replay:
    """Recorded steps as `rl.interfaces.Rollouts`. Steps keep the numbers that they had when they were recorded.

    The driver reads the tokens of one step at a time.

    Args:
        steps: From `find_recorded_steps`.
        keep: Stores a value where the actor's ranks can fetch it; returns a reference to it.
        fetch: Resolves such a reference.
    """

    has_engines = False

    def __init__(
        self,
        steps: Sequence[RecordedStep],
        *,
        keep: Callable[[Any], Any] = lambda value: value,
        fetch: Callable[[Any], Any] = lambda reference: reference,
    ) -> None:
        self._steps = {step.place.step: step for step in steps}
        self._keep, self._fetch = keep, fetch

    def take(
        self, num_prompts: int, metrics: MutableMapping[str, float], *, step: int = 0, is_recorded: bool = False
    ) -> list[GroupHeader]:
        """The groups that were recorded in this step, however many; see `rl.interfaces.Rollouts`."""
        groups = read_groups(self._steps[step])
        return [replace(group, rows=self._keep(group.rows), record=self._keep(group.record)) for group in groups]

    def evaluate(self, prompts: list[Prompt], sampling: Sampling, num_samples: int = 1) -> list[GroupHeader]:
        """Nothing, since there is no engine."""
        assert not prompts, "a replay has no evaluation prompts"
        return []

    def update_weights(self, update: WeightUpdate) -> None:
        """Nothing, since there is no engine."""

    def take_spans(self) -> list[Span]:
        """Nothing, since there is no engine."""
        return []

    def write_trajectories(self, path: Path, groups: Sequence[GroupHeader], recording: Recording | None = None) -> None:
        """Write groups' trajectories, with what this run made of them, and copy their tokens."""
        write_records(path, [self.fetch_record(group) for group in groups], uses_of(groups))
        if recording is not None:
            try:
                recording.path.parent.mkdir(exist_ok=True)
                shutil.copyfile(self._steps[recording.place.step].tokens, recording.path)
            except OSError as error:
                logger.warning("%s", not_written(recording.path, error))

    def fetch_rows(self, group: GroupHeader) -> list[Sample]:
        """A group's training rows."""
        rows: list[Sample] = self._fetch(group.rows)
        return rows

    def fetch_record(self, group: GroupHeader) -> list[Trajectory]:
        """A group's trajectories, without their tokens."""
        record: list[Trajectory] = self._fetch(group.record)
        return record

    def status(self) -> RolloutStatus:
        """Nothing runs."""
        return RolloutStatus(groups_done=0, groups_wanted=0, groups_running=0, prompts_waiting=0, workers_alive=0)

    def engine_metrics(self, timeout_s: float) -> dict[int, list[Metric]]:
        """Nothing, since there is no engine."""
        return {}

    def next_step(self, completed: int) -> int | None:
        """The first recorded step from this number on; see `rl.interfaces.DataPlace`."""
        return min((step for step in self._steps if step >= completed), default=None)

    def expected_steps(self, completed: int) -> int | None:
        """Steps of the whole run, as they were known in the recorded step with this number, or the next one.

        A learning rate that decays is then that of the recorded run.
        """
        numbers = sorted(self._steps)
        at = next((number for number in numbers if number + 1 >= completed), numbers[-1])
        return self._steps[at].place.num_steps

    def state_dict(self) -> dict[str, Any]:
        """Which steps were replayed: there is no place in the data."""
        return {"replayed": [step + 1 for step in sorted(self._steps)]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing: the number of completed steps alone says which recorded step comes next."""


def _trajectory(record: dict[str, Any]) -> Trajectory:
    """A trajectory as it was before training used it; the prompt's further columns are not recorded."""
    trajectory = from_record(record)
    trajectory.failure, trajectory.prompt_length = record["failure"], record.get("prompt_length", 0)
    trajectory.take_scores(
        Scores(
            record["score"],
            record["rewards"],
            record.get("reward_texts", {}),
            record.get("turn_rewards", []),
            record["reward_error"],
        )
    )
    return trajectory


def _group(members: list[Trajectory], tokens: dict[str, list[TokenRecord]]) -> GroupHeader:
    rows = [sample for member in members for sample in _rows(member, tokens)]
    headers, prompt_ids = headers_of(members, rows)
    return GroupHeader(members[0].prompt, headers, prompt_ids, rows, members)


def _rows(trajectory: Trajectory, tokens: dict[str, list[TokenRecord]]) -> Iterator[Sample]:
    for row in tokens.get(trajectory.id, []):
        yield Sample(
            trajectory_id=trajectory.id,
            group_id=trajectory.prompt.id,
            token_ids=row.token_ids,
            loss_mask=row.loss_mask,
            advantages=None,
            rollout_logprobs=row.rollout_logprobs,
            versions=row.versions,
        )
