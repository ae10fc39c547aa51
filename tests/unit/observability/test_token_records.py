from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from rl.batches import Recording, RunPlace, TrainedRow
from rl.errors import DataError
from rl.observability.run_directory import RunDirectory
from rl.observability.token_records import (
    rank_file,
    read_place,
    read_tokens,
    recorded_steps,
    write_sampled_rows,
    write_trained_rows,
)
from rl.rollout.headers import rows_of
from tests.unit.observability.examples import make_trajectory

PLACE = RunPlace(4, 20)


def floats(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


def make_recording(folder: Path, *, with_update: bool = True) -> RunDirectory:
    """Two groups of the example's 7 tokens; the first was trained on."""
    run = RunDirectory(folder)
    groups = [rows_of([make_trajectory(prompt_id=name)]) for name in ("train-1", "train-2")]
    write_sampled_rows(Recording(run.tokens_file(5), PLACE), groups, lambda ids: [f"<{i}>" for i in ids])
    zeros = np.zeros(7, np.float32)
    if with_update:
        row = TrainedRow(
            "train-1/0",
            0,
            old_logprobs=floats(0, 0, 0, -0.125, -0.25, 0, -0.5),
            ref_logprobs=None,
            advantages=floats(0, 0, 0, 1, 1, 0, 1),
            loss_weights=zeros,
            ratios=floats(0, 0, 0, 1, 1, 0, 1),
            is_clipped=np.array([0, 0, 0, 0, 1, 0, 0], np.uint8),
            correction_weights=floats(0, 0, 0, 1, 1, 0, 2),
            entropy=zeros,
            new_logprobs=floats(0, 0, 0, -0.125, -0.125, 0, -0.75),
        )
        write_trained_rows(rank_file(run.tokens_file(5), 1), [row])
    return run


def test_read_tokens_joins_what_was_sampled_with_what_the_ranks_trained_on(tmp_path: Path) -> None:
    first, second = read_tokens(make_recording(tmp_path), 5)
    assert (first.trajectory_id, first.sequence, first.prompt_length, len(first)) == ("train-1/0", 0, 3, 7)
    assert first.token_ids.tolist() == [1, 2, 3, 4, 5, 7, 2]
    assert first.pieces == ["<1>", "<2>", "<3>", "<4>", "<5>", "<7>", "<2>"]
    assert first.loss_mask.tolist() == [0, 0, 0, 1, 1, 0, 1]
    assert first.versions.tolist() == [-1, -1, -1, 0, 0, -1, 1]
    assert first.rollout_logprobs.tolist() == floats(0, 0, 0, -0.1, -0.2, 0, -0.3).tolist()
    assert first.trained is not None
    assert first.trained.is_clipped.tolist() == [0, 0, 0, 0, 1, 0, 0]
    assert first.trained.ref_logprobs is None
    assert first.change is not None and first.change.tolist() == [0, 0, 0, 0, 0.125, 0, -0.25]
    assert first.difference is not None
    assert first.difference.tolist() == pytest.approx([0, 0, 0, 0.025, 0.05, 0, 0.2])
    assert second.trained is None and second.change is None and second.difference is None


def test_rows_of_one_trajectory_are_numbered(tmp_path: Path) -> None:
    trajectory = make_trajectory()
    group = rows_of([replace(trajectory, sequences=trajectory.sequences * 2), make_trajectory(index=1)])
    run = RunDirectory(tmp_path)
    write_sampled_rows(Recording(run.tokens_file(5), PLACE), [group], lambda ids: [""] * len(list(ids)))
    found = [(row.trajectory_id, row.sequence) for row in read_tokens(run, 5)]
    assert found == [("train-1/0", 0), ("train-1/0", 1), ("train-1/1", 0)]


def test_recorded_step_knows_its_place_and_its_number(tmp_path: Path) -> None:
    run = make_recording(tmp_path)
    assert recorded_steps(run) == [5]  # the rank's file is not a step
    assert read_place(run.tokens_file(5)) == PLACE


def test_step_without_a_recording_names_those_with_one(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"--step: the tokens of step 6 are not recorded. Available: 5\."):
        read_tokens(make_recording(tmp_path), 6)
    with pytest.raises(DataError, match="record_tokens_every is above 0"):
        read_tokens(RunDirectory(tmp_path / "other"), 6)


def test_damaged_files_are_named(tmp_path: Path) -> None:
    run = make_recording(tmp_path)
    path = rank_file(run.tokens_file(5), 1)
    pq.write_table(pq.read_table(path).drop(["advantages"]), path)
    with pytest.raises(DataError, match=r"rank_1\.parquet: cannot be read as recorded tokens .*advantages"):
        read_tokens(run, 5)
    path.unlink()
    whole = run.tokens_file(5).read_bytes()
    run.tokens_file(5).write_bytes(whole[: len(whole) // 2])
    for read in (lambda: read_tokens(run, 5), lambda: read_place(run.tokens_file(5))):
        with pytest.raises(DataError, match=r"step_000005\.parquet: cannot be read as recorded tokens"):
            read()
