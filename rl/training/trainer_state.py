"""What a checkpoint holds of the trainer beside tensors; read without Megatron, before a run starts."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from rl.config.model_folder import replacement
from rl.errors import CheckpointError

STATE_NAMES = ("main_param", "exp_avg", "exp_avg_sq")
"""What Adam keeps of each parameter, all float32: the parameter itself, mean and mean square of its gradients."""

_FILE = "trainer_state.json"
_FORMAT = 1


@dataclass(slots=True, frozen=True)
class TrainerState:
    """How far the optimizer is."""

    num_steps: int
    """Steps of the run that the learning-rate schedule has passed."""
    num_updates: int
    """Steps of Adam; fewer where some were skipped or had nothing to train on, more with several mini-batches."""
    format: int = _FORMAT


def folders_of(checkpoint: Path) -> tuple[Path, ...]:
    """Where a checkpoint has files: the model folder that it is, and the optimizer's state."""
    return (checkpoint, *(checkpoint / "optimizer" / name for name in STATE_NAMES))


def write_trainer_state(directory: Path, state: TrainerState) -> None:
    """Write the file whose presence says that all others of the actor are there."""
    (directory / _FILE).write_text(json.dumps(asdict(state), indent=2) + "\n", encoding="utf-8")


def read_trainer_state(directory: Path) -> TrainerState:
    """Read what `write_trainer_state` wrote.

    Raises:
        CheckpointError: The file is missing, malformed, or of another format.
    """
    path = directory / _FILE
    try:
        state = TrainerState(**json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{directory}: not a complete checkpoint, {_FILE} is missing. {replacement(directory)}"
        ) from error
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(f"{path}: malformed ({error}). {replacement(directory)}") from error
    if state.format != _FORMAT:
        raise CheckpointError(
            f"{path}: format must be {_FORMAT}, got {state.format}. Load it with the version that wrote it."
        )
    return state
