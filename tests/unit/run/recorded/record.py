"""Writes what early warnings see of a run: `python -m tests.unit.run.recorded.record RUN TOKENIZER FILE COMMAND`.

`quickstart` is the DAPO run of the quickstart. The others start from the cold start of tests/e2e/conftest.py, 48 steps
of the tiny model. The JSON has the COMMAND that made the run. It has, for each step, the metrics that detectors read,
and for each group its trajectories as [score, response length, unread calls, repetition, statuses of tool results].
Repetition is computed from the recorded texts, whose tokens are the sampled ones up to rare differences.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from rl.batches import Sample
from rl.observability.run_directory import RunDirectory
from rl.observability.trajectories import from_record, read_records
from rl.rollout.signs import num_unread_calls, repetition
from rl.types import Trajectory

METRICS = (
    "actor/entropy", "actor/grad_norm", "actor/ppo_kl", "critic/score/mean", "response_length/clip_ratio",
    "response_length/mean", "response_repetition/mean", "rollout/num_groups", "training/dropped_groups",
    "training/rollout_probs_diff_mean",
)  # fmt: skip


def step_of(path: Path, row: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """The JSON of one step."""
    groups: dict[str, list[Any]] = {}
    repeated = []
    for record in read_records(path):
        trajectory = from_record(record)
        share = repetition([sampled(trajectory, tokenizer)])
        repeated.append(share)
        statuses = [result.status.value for turn in trajectory.turns for result in turn.results]
        num_unread = num_unread_calls(trajectory.turns)
        seen = [record["score"], trajectory.response_length, num_unread, round(share, 3), statuses]
        groups.setdefault(trajectory.prompt.id, []).append(seen)
    row = row | {"response_repetition/mean": float(np.mean(repeated))}
    metrics = {name: float(f"{row[name]:.4g}") for name in METRICS if row.get(name) is not None}
    return {"metrics": metrics, "groups": groups}


def sampled(trajectory: Trajectory, tokenizer: PreTrainedTokenizerBase) -> Sample:
    """A row of the sampled text alone."""
    ids = [i for turn in trajectory.turns for i in tokenizer(turn.text, add_special_tokens=False)["input_ids"]]
    return Sample(
        trajectory.id, "", np.array(ids, np.int32), np.ones(len(ids), np.uint8), None, np.zeros(len(ids), np.float32)
    )


def main(run: str, tokenizer_folder: str, file: str, command: str) -> None:
    """Record a run."""
    directory, tokenizer = RunDirectory.open(Path(run)), AutoTokenizer.from_pretrained(tokenizer_folder)
    steps = [
        step_of(directory.step_file(row["step"]), row, tokenizer)
        for row in directory.read_metrics()
        if "timing_s/step" in row
    ]
    lines = ",\n".join(json.dumps(step, separators=(",", ":")) for step in steps)
    Path(file).write_text(f'{{"command": {json.dumps(command)}, "steps": [\n{lines}\n]}}\n', encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
