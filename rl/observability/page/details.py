"""What the page shows of single steps on demand: recorded tokens and the timeline."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from itertools import groupby
from typing import Any

import numpy as np

from rl.errors import DataError
from rl.observability.run_directory import RunDirectory
from rl.observability.timeline import step_spans
from rl.observability.token_records import TokenRecord, read_tokens, read_trajectory_ids, recorded_steps

logger = logging.getLogger(__name__)

_VALUES = (
    "old_logprobs", "ref_logprobs", "new_logprobs", "advantages", "loss_weights", "ratios", "is_clipped", "entropy",
    "correction_weights",
)  # fmt: skip
"""The columns of what the update computed that the page can show."""


@dataclass(slots=True, frozen=True)
class Detail:
    """One chunk of a step."""

    name: str
    """`timeline/<step>` or `tokens/<step>/<number of the group>`."""
    covers: list[str]
    """Ids of the trajectories whose tokens it has; empty for a timeline."""
    make: Callable[[], bytes]
    """Builds the content, JSON; a DataError if a file is damaged."""


def step_details(run: RunDirectory) -> Iterator[Detail]:
    """Find what there is: the timelines, then the tokens, each from the last step to the first.

    A damaged tokens file, as a killed run leaves it, is left out, with a warning.
    """
    for step in reversed(run.timeline_steps()):
        yield Detail(f"timeline/{step}", [], partial(_timeline, run, step))
    for step in reversed(recorded_steps(run)):
        try:
            ids = read_trajectory_ids(run.tokens_file(step))
        except DataError as error:
            logger.warning("%s The page leaves the step's tokens out.", error)
            continue
        read = _OnceRead(run, step)
        for number, (prompt, members) in enumerate(groupby(ids, key=_prompt)):
            yield Detail(f"tokens/{step}/{number}", list(dict.fromkeys(members)), partial(read.group, prompt))


class _OnceRead:
    """Reads a step's tokens when the first of its groups is asked for."""

    def __init__(self, run: RunDirectory, step: int) -> None:
        self._run, self._step = run, step
        self._groups: dict[str, list[TokenRecord]] = {}
        self._error: DataError | None = None

    def group(self, prompt: str) -> bytes:
        if self._error is not None:
            raise self._error
        if not self._groups:
            try:
                rows = read_tokens(self._run, self._step)
            except DataError as error:
                self._error = error
                raise
            for row in rows:
                self._groups.setdefault(_prompt(row.trajectory_id), []).append(row)
        return json.dumps([_token_row(row) for row in self._groups[prompt]], ensure_ascii=False).encode(
            "utf-8", "replace"
        )


def _prompt(trajectory_id: str) -> str:
    return trajectory_id.rpartition("/")[0]


def _token_row(row: TokenRecord) -> dict[str, Any]:
    columns = {"rollout_logprobs": row.rollout_logprobs, "versions": row.versions}
    if row.trained is not None:
        columns |= {name: getattr(row.trained, name) for name in _VALUES}
    return {
        "trajectory_id": row.trajectory_id,
        "sequence": row.sequence,
        "pieces": list(row.pieces),
        "token_ids": np.asarray(row.token_ids).tolist(),
        "loss_mask": np.asarray(row.loss_mask).tolist(),
        "prompt_length": int(row.prompt_length),
        "values": {
            name: np.round(np.asarray(column, np.float64), 6).tolist()
            for name, column in columns.items()
            if column is not None
        },
    }


def _timeline(run: RunDirectory, step: int) -> bytes:
    return json.dumps([asdict(span) for span in step_spans(run, step)], ensure_ascii=False).encode("utf-8", "replace")
