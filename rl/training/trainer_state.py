"""The progress of the trainer in a checkpoint; readable without Megatron, before a run starts."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from rl.config.model_folder import TRAINER_STATE_FILE, replacement
from rl.errors import CheckpointError

STATE_NAMES = ("main_param", "exp_avg", "exp_avg_sq")
"""Adam's float32 state for each parameter: the parameter itself, mean and mean square of its gradients."""

_FORMAT = 1


@dataclass(slots=True, frozen=True)
class TrainerState:
    """Progress of the optimizer."""

    num_steps: int
    """Steps of the run that the learning-rate schedule has completed."""
    num_updates: int
    """Steps of Adam: fewer if some were skipped or had no data, more with several mini-batches per step."""
    format: int = _FORMAT


def state_folder(checkpoint: Path, name: str) -> Path:
    """Folder of one of `STATE_NAMES` in a checkpoint."""
    return checkpoint / "optimizer" / name


def folders_of(checkpoint: Path) -> tuple[Path, ...]:
    """All folders with files in a checkpoint: the model folder itself and those of the optimizer's state."""
    return (checkpoint, *(state_folder(checkpoint, name) for name in STATE_NAMES))


def write_trainer_state(directory: Path, state: TrainerState) -> None:
    """Write the state. The actor writes this file last, so its presence marks the actor's part as complete."""
    (directory / TRAINER_STATE_FILE).write_text(json.dumps(asdict(state), indent=2) + "\n", encoding="utf-8")


def read_trainer_state(directory: Path) -> TrainerState:
    """Read what `write_trainer_state` wrote.

    Raises:
        CheckpointError: The file is missing, malformed, or of another format.
    """
    path = directory / TRAINER_STATE_FILE
    try:
        state = TrainerState(**json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{directory}: not a complete checkpoint, {TRAINER_STATE_FILE} is missing. {replacement(directory)}"
        ) from error
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(f"{path}: malformed ({error}). {replacement(directory)}") from error
    if state.format != _FORMAT:
        raise CheckpointError(
            f"{path}: format must be {_FORMAT}, got {state.format}. Load it with the version that wrote it."
        )
    return state
