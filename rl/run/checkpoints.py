"""Checkpoints of a run: written whole or not at all, found by a path, and removed when there are newer ones."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rl.config.model_folder import MANIFEST_FILE, RUN_STATE_FILE, replacement
from rl.errors import CheckpointError
from rl.interfaces import Checkpointed, DataPlace
from rl.observability.run_directory import RunDirectory
from rl.run.best import Best, state_of
from rl.run.manifest import has_manifest, manifest_damages, seal
from rl.training.hf_files import damaged_files
from rl.training.sync import sync_folder
from rl.training.trainer_state import folders_of, read_trainer_state

logger = logging.getLogger(__name__)

_FULL_DISK_MB = 100
"""A checkpoint that fails with less free space than this has filled the disk; files rarely fit to the last byte."""


def save_checkpoint(
    directory: RunDirectory,
    step: int,
    actor: Checkpointed,
    rows: DataPlace,
    *,
    max_checkpoints: int | None,
    best: Best | None = None,
) -> Path:
    """Write a checkpoint, rename it once all of it is on the disk, and remove the oldest beyond `max_checkpoints`.

    Args:
        directory: The run's.
        step: Completed steps.
        actor: Writes weights and optimizer.
        rows: Provides the place in the data.
        max_checkpoints: Number to keep; None keeps all.
        best: The best checkpoint, this one included; it is kept too.

    Returns:
        The checkpoint's folder.

    Raises:
        CheckpointError: It could not be written. An incomplete actor part is removed; earlier checkpoints stay.
    """
    final = directory.checkpoint(step)
    partial = final.with_name(f"{final.name}.partial")
    partial.mkdir()
    with _removed_on_failure(directory, step, partial):
        actor.save_checkpoint(partial)
    try:
        state = {"step": step, "data": rows.state_dict(), "best": state_of(best), "manifest": MANIFEST_FILE}
        (partial / RUN_STATE_FILE).write_text(json.dumps(state, indent=2) + "\n", encoding="utf-8")
    except Exception as error:
        raise CheckpointError(
            f"{partial}: the place in the data could not be written ({error}). What was trained is whole: start "
            "anew from it with actor_config.load."
        ) from error
    with _removed_on_failure(directory, step, partial):
        seal(partial)
        partial.rename(final)
        sync_folder(final.parent)
    logger.info("checkpoint %s", final)
    _remove_old(directory, max_checkpoints, best)
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
        if state.get("best") is not None:
            Best(**state["best"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{path}: the checkpoint's state cannot be read ({error}). Resume from an earlier checkpoint."
        ) from error
    return state


def checkpoint_damages(checkpoint: Path) -> list[str]:
    """Check every file of a checkpoint, those included that are not needed to resume.

    Files are compared with the manifest. A checkpoint of a version without manifests is checked for files that are cut
    off or filled with zeros.

    Returns:
        For each damaged or missing file, what is wrong with it and what to do; empty if the checkpoint is whole.
    """
    if has_manifest(checkpoint):
        damages = list(manifest_damages(checkpoint))
    else:
        damages = list(damaged_files(*folders_of(checkpoint)))
    if damages:
        return damages
    try:
        read_trainer_state(checkpoint)
        state = read_state(checkpoint)
    except CheckpointError as failure:
        return [str(failure)]
    if "manifest" in state and not has_manifest(checkpoint):
        return [f"{checkpoint / MANIFEST_FILE}: missing. {replacement(checkpoint)}"]
    return []


def disk_full(directory: RunDirectory) -> CheckpointError:
    """The error names the run's parent folder, since the run's own may be renamed."""
    base = directory.path.parent
    free_mb = shutil.disk_usage(base).free // 1_000_000
    go_on = "resume the run" if directory.latest_checkpoint() else "start the run again"
    return CheckpointError(
        f"megatron_training.output_dir: the disk of {base} is full, got {free_mb} MB left. Make room, or keep fewer "
        f"checkpoints with megatron_training.max_checkpoints, then {go_on}."
    )


@contextmanager
def _removed_on_failure(directory: RunDirectory, step: int, partial: Path) -> Iterator[None]:
    """Remove an incomplete checkpoint if the block fails, and say so of the disk if that is why."""
    try:
        yield
    except Exception as error:
        is_full = _is_nearly_full(partial.parent)
        for left in partial.parent.glob(f"{partial.name}*"):
            shutil.rmtree(left)
        if is_full:
            raise disk_full(directory) from error
        if isinstance(error, OSError):
            raise CheckpointError(
                f"the checkpoint after step {step} could not be written to {directory.path} ({error}). See to the disk."
            ) from error
        raise


def _remove_old(directory: RunDirectory, max_checkpoints: int | None, best: Best | None) -> None:
    for old in directory.complete_checkpoints()[:-max_checkpoints] if max_checkpoints else ():
        if best is not None and Path(best.checkpoint) == old:
            continue
        shutil.rmtree(old)
        logger.info("removed %s: max_checkpoints is %d", old, max_checkpoints)


def _is_nearly_full(folder: Path) -> bool:
    return shutil.disk_usage(folder).free < _FULL_DISK_MB * 1_000_000
