"""Advice for a damaged file of a model folder: fetch the model again, or take an older checkpoint."""

from __future__ import annotations

import re
from pathlib import Path

RUN_STATE_FILE = "run_state.json"
"""Completed steps, and the position in the data."""
TRAINER_STATE_FILE = "trainer_state.json"
"""Progress of the optimizer."""
KL_FILE = "kl_coefficient.json"
"""Only if the KL coefficient is adaptive."""
MANIFEST_FILE = "manifest.json"
"""Size and checksum of every other file."""
STATE_FILES = (RUN_STATE_FILE, TRAINER_STATE_FILE, KL_FILE, MANIFEST_FILE)
"""Files that a checkpoint has in addition to those of a model folder."""

_STEP_FOLDER = re.compile(r"step_\d+")


def complete_checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints of a run's folder of them, oldest first.

    One under way, or cut off by a kill, has a name with a suffix.
    """
    return sorted(p for p in folder.glob("step_*") if p.is_dir() and _STEP_FOLDER.fullmatch(p.name))


def replacement(folder: Path) -> str:
    """Say what to do about a damaged or missing file.

    Args:
        folder: A model folder, a checkpoint, or a folder in one.
    """
    places = (folder, *folder.resolve().parents[:2])  # optimizer/exp_avg is two below
    checkpoint = next((place for place in places if _is_checkpoint(place)), None)
    if checkpoint is None:
        return "Fetch the model again."
    earlier = [p for p in complete_checkpoints(checkpoint.resolve().parent) if p.name < checkpoint.resolve().name]
    if earlier:
        return f"The checkpoint is damaged: take the one before it, {earlier[-1]}."
    return "The checkpoint is damaged, and there is none before it: copy it again, or start the run anew."


def _is_checkpoint(folder: Path) -> bool:
    is_in_a_run = folder.parent.name == "checkpoints" and _STEP_FOLDER.fullmatch(folder.name) is not None
    return is_in_a_run or any((folder / name).exists() for name in STATE_FILES)
