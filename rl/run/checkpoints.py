"""Checkpoints of a run: written whole or not at all, found by a path, and removed when there are newer ones."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

from rl.config.model_folder import RUN_STATE_FILE
from rl.errors import CheckpointError
from rl.interfaces import Checkpointed, DataPlace
from rl.observability.run_directory import RunDirectory

logger = logging.getLogger(__name__)

_FULL_DISK_MB = 100
"""A checkpoint that fails with less free space than this has filled the disk; files rarely fit to the last byte."""


def save_checkpoint(
    directory: RunDirectory, step: int, actor: Checkpointed, rows: DataPlace, *, max_checkpoints: int | None
) -> Path:
    """Write a checkpoint, rename it once it is complete, and remove the oldest beyond `max_checkpoints`.

    Args:
        directory: The run's.
        step: Completed steps.
        actor: Writes weights and optimizer.
        rows: Provides the place in the data.
        max_checkpoints: Number to keep; None keeps all.

    Returns:
        The checkpoint's folder.

    Raises:
        CheckpointError: It could not be written. An incomplete actor part is removed; earlier checkpoints stay.
    """
    final = directory.checkpoint(step)
    partial = final.with_name(f"{final.name}.partial")
    partial.mkdir()
    try:
        actor.save_checkpoint(partial)
    except Exception as error:
        is_full = _is_nearly_full(final.parent)
        for left in final.parent.glob(f"{partial.name}*"):
            shutil.rmtree(left)
        if is_full:
            raise disk_full(directory) from error
        if isinstance(error, OSError):
            raise CheckpointError(
                f"the checkpoint after step {step} could not be written to {final.parent.parent} ({error}). See to "
                "the disk."
            ) from error
        raise
    try:
        state = {"step": step, "data": rows.state_dict()}
        (partial / RUN_STATE_FILE).write_text(json.dumps(state, indent=2) + "\n", encoding="utf-8")
    except Exception as error:
        raise CheckpointError(
            f"{partial}: the place in the data could not be written ({error}). What was trained is whole: start "
            "anew from it with actor_config.load."
        ) from error
    partial.rename(final)
    logger.info("checkpoint %s", final)
    _remove_old(directory, max_checkpoints)
    return final


def find_checkpoint(source: Path) -> Path:
    """The checkpoint that a path names.

    Args:
        source: A checkpoint folder, or a run directory for its newest checkpoint.

    Raises:
        CheckpointError: There is no complete checkpoint.
    """
    if (source / RUN_STATE_FILE).is_file():
        return source.resolve()
    if not source.is_dir():
        raise CheckpointError(f"megatron_training.resume: {source} is not there. Give a run directory or a checkpoint.")
    latest = RunDirectory(source.resolve()).latest_checkpoint()
    if latest is None:
        raise CheckpointError(
            f"megatron_training.resume: {source} has no complete checkpoint. "
            "Give another run, or start anew without `resume`."
        )
    return latest


def read_state(checkpoint: Path) -> dict[str, Any]:
    """Read the run's state in a checkpoint.

    Raises:
        CheckpointError: It is missing or malformed.
    """
    path = checkpoint / RUN_STATE_FILE
    try:
        state: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        int(state["step"]), state["data"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{path}: the checkpoint's state cannot be read ({error}). Resume from an earlier checkpoint."
        ) from error
    return state


def disk_full(directory: RunDirectory) -> CheckpointError:
    """The error names the run's parent folder, since the run's own may be renamed."""
    base = directory.path.parent
    free_mb = shutil.disk_usage(base).free // 1_000_000
    go_on = "resume the run" if directory.latest_checkpoint() else "start the run again"
    return CheckpointError(
        f"megatron_training.output_dir: the disk of {base} is full, got {free_mb} MB left. Make room, or keep fewer "
        f"checkpoints with megatron_training.max_checkpoints, then {go_on}."
    )


def _remove_old(directory: RunDirectory, max_checkpoints: int | None) -> None:
    for old in directory.complete_checkpoints()[:-max_checkpoints] if max_checkpoints else ():
        shutil.rmtree(old)
        logger.info("removed %s: max_checkpoints is %d", old, max_checkpoints)


def _is_nearly_full(folder: Path) -> bool:
    return shutil.disk_usage(folder).free < _FULL_DISK_MB * 1_000_000
