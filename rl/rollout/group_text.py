"""A scored group as text, for checkpoints and for the journal of a service."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from functools import partial
from typing import Any

import numpy as np
from pydantic import TypeAdapter

from rl.batches import GroupHeader, Sample
from rl.rollout.headers import headers_of
from rl.types import Prompt, Trajectory

_TRAJECTORY = TypeAdapter(Trajectory)
_PROMPT = TypeAdapter(Prompt)
_DTYPES = {
    "token_ids": partial(np.array, dtype=np.int32),
    "loss_mask": partial(np.array, dtype=np.uint8),
    "rollout_logprobs": partial(np.array, dtype=np.float32),
    "versions": partial(np.array, dtype=np.int32),
}


def to_text(prompt: Prompt | Mapping[str, Any], record: Sequence[Trajectory], rows: Sequence[Sample]) -> str:
    """A group as JSON text. Numpy's and similar numbers become Python's; other values that JSON lacks become text.

    Args:
        prompt: The prompt, or what is to be kept of it: at least its `id`.
        record: The trajectories, without tokens.
        rows: Their training rows.
    """
    trajectories = [{f.name: _plain(getattr(t, f.name)) for f in fields(t) if f.name != "prompt"} for t in record]
    saved = {"prompt": _plain(prompt), "trajectories": trajectories, "rows": [_plain(row) for row in rows]}
    return json.dumps(saved, default=_to_plain, skipkeys=True)


def prompt_id_of(text: str) -> str:
    """Id of the group's prompt."""
    name: str = json.loads(text)["prompt"]["id"]
    return name


def prompt_of(text: str) -> Prompt:
    """The group's prompt, where `to_text` got a whole one."""
    return _PROMPT.validate_python(json.loads(text)["prompt"])


def header_from_text(text: str, prompt: Prompt, keep: Callable[[Any], Any]) -> GroupHeader:
    """A group from `to_text`.

    Args:
        text: What it gave.
        prompt: The group's prompt.
        keep: Stores a value; returns a reference to it.
    """
    saved = json.loads(text)
    record = [_TRAJECTORY.validate_python({**one, "prompt": prompt}) for one in saved["trajectories"]]
    rows = [
        Sample(**{key: _DTYPES[key](value) if key in _DTYPES else value for key, value in row.items()})
        for row in saved["rows"]
    ]
    headers, prompt_ids = headers_of(record, rows)
    return GroupHeader(prompt, headers, prompt_ids, keep(rows), keep(record))


def _plain(value: Any) -> Any:
    """Convert records to mappings, also in nested lists; `asdict` would copy every value."""
    if is_dataclass(value):
        return {f.name: _plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, np.ndarray) and value.shape:
        return value.tolist()
    return [_plain(item) for item in value] if isinstance(value, list) else value


def _to_plain(value: Any) -> Any:
    return value.item() if getattr(value, "shape", None) == () else str(value)
