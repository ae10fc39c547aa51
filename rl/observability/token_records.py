"""The tokens of recorded steps, as parquet files: what was sampled, and what the update made of it.

`tokens/step_000010.parquet` has a row for each training row of every group of the step, also of groups that are not
trained on. `tokens/step_000010.rank_0.parquet`, one file for each data-parallel rank, has the rows that were trained
on. Both are token-aligned: index t belongs to token t. `read_tokens` joins them.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from rl.batches import Recording, RunPlace, Sample, TrainedRow
from rl.errors import DataError
from rl.observability.run_directory import RunDirectory, step_numbers
from rl.types import FloatArray, IntArray

_NAME = (("trajectory_id", pa.string()), ("sequence", pa.int32()))
_SAMPLED = pa.schema(
    [
        *_NAME,
        ("token_ids", pa.list_(pa.int32())),
        ("pieces", pa.list_(pa.string())),
        ("loss_mask", pa.list_(pa.uint8())),
        ("prompt_length", pa.int32()),
        ("rollout_logprobs", pa.list_(pa.float32())),
        ("versions", pa.list_(pa.int32())),
    ]
)
_TRAINED = pa.schema(
    [
        *_NAME,
        *(
            (name, pa.list_(pa.uint8() if name == "is_clipped" else pa.float32()))
            for name in TrainedRow.__slots__
            if name not in dict(_NAME)
        ),
    ]
)
_PLACE = b"turnwise.place"
"""Key of the place of the step in the run, in a file's metadata."""


@dataclass(slots=True, frozen=True)
class TokenRecord:
    """The tokens of one training row. L is its length."""

    trajectory_id: str
    sequence: int
    """Number of the row in its trajectory, from 0."""
    token_ids: IntArray
    """[L] int32."""
    pieces: list[str]
    """L texts, see `rl.chat.pieces.token_pieces`. They may hold control characters."""
    loss_mask: NDArray[np.uint8]
    """[L] uint8, 1 on sampled tokens."""
    prompt_length: int
    """Tokens before the first sampled one."""
    rollout_logprobs: FloatArray
    """[L] float32, the engine's, 0 on unsampled tokens."""
    versions: IntArray
    """[L] int32, the `policy_version` that sampled each token, -1 elsewhere."""
    trained: TrainedRow | None = None
    """What the update computed; None if the row was not trained on."""

    def __len__(self) -> int:
        return len(self.token_ids)

    @property
    def difference(self) -> FloatArray | None:
        """[L] float32, the engine's log-prob minus the actor's of each sampled token; None if not trained on."""
        return None if self.trained is None else self.rollout_logprobs - self.trained.old_logprobs

    @property
    def change(self) -> FloatArray | None:
        """[L] float32, how far the update moved each sampled token's log-prob; None if not trained on."""
        return None if self.trained is None else self.trained.new_logprobs - self.trained.old_logprobs


def rank_file(path: Path, rank: int) -> Path:
    """The file of a data-parallel rank beside a step's tokens file."""
    return path.with_name(f"{path.stem}.rank_{rank}.parquet")


def write_sampled_rows(
    recording: Recording, groups: Iterable[Sequence[Sample]], pieces_of: Callable[[Iterable[int]], list[str]]
) -> str | None:
    """Write the rows of a step's groups, one group in memory at a time.

    Args:
        recording: Path and place of the step.
        groups: Rows of each group, in the order of its trajectories.
        pieces_of: Token ids to as many texts.

    Returns:
        Why they could not be written, if so.
    """
    try:
        _write_sampled_rows(recording, groups, pieces_of)
    except OSError as error:
        return not_written(recording.path, error)
    return None


def _write_sampled_rows(
    recording: Recording, groups: Iterable[Sequence[Sample]], pieces_of: Callable[[Iterable[int]], list[str]]
) -> None:
    place = {"step": recording.place.step, "num_steps": recording.place.num_steps}
    schema = _SAMPLED.with_metadata({_PLACE: json.dumps(place).encode()})
    with _whole_file(recording.path) as partial, pq.ParquetWriter(partial, schema) as writer:
        for group in groups:
            seen: dict[str, int] = defaultdict(int)
            rows = []
            for row in group:
                assert row.versions is not None, "a sampled row has versions"
                rows.append(
                    {
                        "trajectory_id": row.trajectory_id,
                        "sequence": seen[row.trajectory_id],
                        "token_ids": row.token_ids,
                        "pieces": pieces_of(row.token_ids),
                        "loss_mask": row.loss_mask,
                        "prompt_length": int(np.argmax(row.loss_mask)),
                        "rollout_logprobs": row.rollout_logprobs,
                        "versions": row.versions,
                    }
                )
                seen[row.trajectory_id] += 1
            if rows:
                writer.write_table(pa.Table.from_pylist(rows, schema))


def write_trained_rows(path: Path, rows: Sequence[TrainedRow]) -> str | None:
    """Write the rows that one data-parallel rank trained on; see `rank_file`.

    Returns:
        Why they could not be written, if so.
    """
    plain = [{name: getattr(row, name) for name in TrainedRow.__slots__} for row in rows]
    try:
        with _whole_file(path) as partial:
            pq.write_table(pa.Table.from_pylist(plain, _TRAINED), partial)
    except OSError as error:
        return not_written(path, error)
    return None


def not_written(path: Path, error: OSError) -> str:
    """A warning that a step's tokens could not be recorded, which ends no run."""
    return (
        f"{path}: the step's tokens could not be recorded ({error}). Make room, and put megatron_training.output_dir "
        "where all machines of the run see it; megatron_training.record_tokens_every=0 records none."
    )


def read_tokens(run: RunDirectory, step: int) -> list[TokenRecord]:
    """Read the tokens of a recorded step, with what the update computed for them.

    Args:
        run: The run.
        step: Number of the step, from 1.

    Returns:
        In the order of the step's trajectories.

    Raises:
        DataError: The step was not recorded, or a file is damaged.
    """
    path = run.tokens_file(step)
    if not path.is_file():
        raise DataError(_not_recorded(run, step))
    trained = {(row.trajectory_id, row.sequence): row for row in read_trained_rows(path)}
    rows = read_sampled_rows(path)
    return [replace(row, trained=trained.get((row.trajectory_id, row.sequence))) for row in rows]


def read_trajectory_ids(path: Path) -> list[str]:
    """Read of which trajectory each row of a step's tokens file is, without its tokens.

    Raises:
        DataError: The file is damaged.
    """
    return [row["trajectory_id"] for row in _read_rows(path, pa.schema(_NAME[:1]))]


def read_sampled_rows(path: Path, *, first_group: bool = False) -> list[TokenRecord]:
    """Read a step's tokens file by itself, without what the ranks recorded.

    Args:
        path: The file.
        first_group: Read only the rows of the first group.

    Raises:
        DataError: The file is damaged.
    """
    return [TokenRecord(**row) for row in _read_rows(path, _SAMPLED, first_group=first_group)]


def read_trained_rows(path: Path) -> list[TrainedRow]:
    """Read what the ranks recorded beside a step's tokens file.

    Raises:
        DataError: A file is damaged.
    """
    files = sorted(path.parent.glob(f"{path.stem}.rank_*.parquet"))
    return [TrainedRow(**row) for of_rank in files for row in _read_rows(of_rank, _TRAINED)]


def read_place(path: Path) -> RunPlace:
    """Read the place of a recorded step in its run.

    Raises:
        DataError: The file is damaged, or not one of tokens.
    """
    try:
        return RunPlace(**json.loads((pq.read_schema(path).metadata or {})[_PLACE]))
    except (OSError, pa.ArrowException, KeyError, TypeError, ValueError) as error:
        raise DataError(_damaged(path, error)) from error


def read_version(path: Path) -> int:
    """Read the newest `policy_version` that sampled tokens of a recorded step; -1 if there are none.

    Raises:
        DataError: The file is damaged.
    """
    try:
        versions = pq.read_table(path, columns=["versions"]).column("versions")
    except (OSError, pa.ArrowException, KeyError) as error:
        raise DataError(_damaged(path, error)) from error
    return max((int(chunk.flatten().to_numpy().max(initial=-1)) for chunk in versions.chunks), default=-1)


def recorded_steps(run: RunDirectory) -> list[int]:
    """Numbers of the steps whose tokens are recorded, from 1, in order."""
    return step_numbers(run.tokens, ".parquet")


def last_recorded_step(run: RunDirectory) -> int:
    """Number of the last step whose tokens are recorded.

    Raises:
        DataError: There is none.
    """
    steps = recorded_steps(run)
    if not steps:
        raise DataError(_not_recorded(run, 0))
    return steps[-1]


def _not_recorded(run: RunDirectory, step: int) -> str:
    known = recorded_steps(run)
    if not known:
        return (
            f"{run.path}: no step's tokens are recorded. A run records them if megatron_training.record_tokens_every "
            "is above 0."
        )
    return f"--step: the tokens of step {step} are not recorded. Available: {', '.join(map(str, known))}."


def _read_rows(path: Path, schema: pa.Schema, *, first_group: bool = False) -> Iterator[dict[str, Any]]:
    try:
        with pq.ParquetFile(path) as file:
            groups = [0] if first_group and file.num_row_groups else range(file.num_row_groups)
            table = file.read_row_groups(groups, columns=schema.names)
        table = table.select(schema.names).cast(schema)
        columns = {name: table.column(name).combine_chunks() for name in schema.names}
    except (OSError, pa.ArrowException, KeyError) as error:
        raise DataError(_damaged(path, error)) from error
    for number in range(table.num_rows):
        yield {name: _value(columns[name][number]) for name in schema.names}


def _value(scalar: pa.Scalar) -> Any:
    """A text or a number as itself, a list of numbers as an array."""
    if not pa.types.is_list(scalar.type) or pa.types.is_string(scalar.type.value_type):
        return scalar.as_py()
    return None if scalar.values is None else scalar.values.to_numpy(zero_copy_only=False)


def _damaged(path: Path, error: Exception) -> str:
    reason = str(error).partition("\n")[0].rstrip(".")
    return f"{path}: cannot be read as recorded tokens ({reason}). Was the run killed while writing? Take another step."


@contextmanager
def _whole_file(path: Path) -> Iterator[Path]:
    """Write under another name first, so that readers of a live run see whole files only."""
    path.parent.mkdir(exist_ok=True)
    partial = path.with_suffix(".partial")
    try:
        yield partial
        partial.replace(path)
    except OSError:
        with suppress(OSError):
            partial.unlink(missing_ok=True)  # on a full disk, make room
        raise
