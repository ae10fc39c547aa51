"""Where a run continues from, as `resume_mode` says; decided before anything else reads `resume`."""

from __future__ import annotations

import logging
from pathlib import Path

from rl.config.changes import with_changes
from rl.config.model_folder import replacement
from rl.config.schema import Config, ResumeMode
from rl.observability.run_directory import RunDirectory
from rl.run.checkpoints import checkpoint_damages

logger = logging.getLogger(__name__)

_KEY = "megatron_training.resume_mode"


def with_checkpoint(config: Config) -> Config:
    """The configuration with `resume` as `resume_mode` says; with `auto` the log says what was found and skipped.

    Args:
        config: A validated configuration; stays as it is.
    """
    training = config.megatron_training
    if training.resume_mode is ResumeMode.PATH:
        return config
    if training.resume_mode is ResumeMode.NEVER:
        return with_changes(config, {"megatron_training.resume": None})
    checkpoint = newest_whole_checkpoint(Path(training.output_dir), training.run_name or "")
    if checkpoint is not None:
        logger.info("%s: continues from %s", _KEY, checkpoint)
        return with_changes(config, {"megatron_training.resume": str(checkpoint)})
    instead = f"continues from {training.resume}" if training.resume else "starts anew"
    logger.info("%s: no checkpoint of a run '%s' in %s, %s", _KEY, training.run_name, training.output_dir, instead)
    return config


def newest_whole_checkpoint(output_dir: Path, run_name: str) -> Path | None:
    """The newest checkpoint without damage in the directories of one run name.

    The directory with the highest number comes first, and in it the highest step. Logs a line for each checkpoint and
    for each directory that is skipped.
    """
    for run in reversed(RunDirectory.of_name(output_dir.resolve(), run_name)):
        checkpoints = run.complete_checkpoints()
        if not checkpoints:
            logger.info("%s: skipped %s: it has no checkpoint", _KEY, run.path)
        for checkpoint in reversed(checkpoints):
            damages = checkpoint_damages(checkpoint)
            if not damages:
                return checkpoint
            logger.warning("%s: skipped %s: %s", _KEY, checkpoint, _in_a_line(damages, checkpoint))
    return None


def _in_a_line(damages: list[str], checkpoint: Path) -> str:
    """The first damage, without the path and the advice that the line makes needless."""
    first = damages[0].splitlines()[0].removeprefix(f"{checkpoint}/").removesuffix(f" {replacement(checkpoint)}")
    others = len(damages) - 1
    first = first.rstrip(".")
    return f"{first}, and {others} further file{'s' * (others > 1)}" if others else first
