"""Checkpoints: a Hugging Face model folder with the optimizer's state beside it, under the same names.

    <directory>/config.json, model*.safetensors, tokenizer   a model folder for transformers and vLLM
    <directory>/optimizer/main_param/                        float32 parameters
    <directory>/optimizer/exp_avg/  exp_avg_sq/              Adam's moments, float32
    <directory>/trainer_state.json                           steps of the schedule and of Adam; written last

Whole tensors under Hugging Face names fit any layout, so a checkpoint loads under other parallel sizes as it is.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import Tensor

from rl.errors import CheckpointError, ModelError
from rl.training.hf_files import INDEX_NAME, finish_hf_folder, open_tensors, write_shards
from rl.training.hf_weights import WeightMapping, export_hf_weights, map_from_hf, map_to_hf, name_parameters
from rl.training.optimizer import STATE_NAMES, PolicyOptimizer
from rl.training.parallel import ParallelState

STATE_FILE = "trainer_state.json"
_FORMAT = 1


@dataclass(slots=True, frozen=True)
class TrainerState:
    """What a checkpoint holds beside tensors."""

    format: int
    num_steps: int
    """Steps of the learning-rate schedule."""
    num_updates: int
    """Steps of Adam; fewer where some were skipped."""


def save_checkpoint(
    directory: Path, chunks: list[Any], optimizer: PolicyOptimizer, parallel: ParallelState, *, source_folder: Path
) -> None:
    """Write a checkpoint, collectively; it appears whole or not at all.

    Each pipeline stage writes its own files, the first data- and tensor-parallel rank of it. One tensor is joined at a
    time.

    Args:
        directory: Empty or not there yet, on a file system that all ranks share.
        chunks: As `rl.training.optimizer.wrap_chunks` returned them.
        optimizer: Of the same model.
        parallel: This rank's place.
        source_folder: The model folder that training started from: config and tokenizer come from there.

    Raises:
        CheckpointError: The directory is not empty.
    """
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise CheckpointError(f"{directory}: not empty. Give another folder; nothing is overwritten.")
    partial = directory.with_name(directory.name + ".writing")
    dist.barrier()
    if parallel.rank == 0:
        shutil.rmtree(partial, ignore_errors=True)
        for name in STATE_NAMES:
            (partial / "optimizer" / name).mkdir(parents=True)
    dist.barrier()
    index = _write(partial, export_hf_weights(chunks, parallel), parallel)
    if parallel.rank == 0:
        finish_hf_folder(partial, index, source_folder=source_folder, dtype=next(chunks[0].parameters()).dtype)
    mapping = _mapping(chunks, parallel)
    for name in STATE_NAMES:
        folder = partial / "optimizer" / name
        gathered = ((key, optimizer.gather_state(p, name)) for key, p in name_parameters(chunks).items())
        index = _write(folder, map_to_hf(gathered, mapping), parallel)
        if parallel.rank == 0:
            (folder / INDEX_NAME).write_text(json.dumps({"weight_map": dict(sorted(index.items()))}, indent=2) + "\n")
    if parallel.rank == 0:
        state = TrainerState(_FORMAT, optimizer.num_steps, optimizer.num_updates)
        (partial / STATE_FILE).write_text(json.dumps(asdict(state), indent=2) + "\n")
        os.replace(partial, directory)
    dist.barrier()


def load_checkpoint(directory: Path, chunks: list[Any], optimizer: PolicyOptimizer, parallel: ParallelState) -> None:
    """Restore model, main parameters, moments and schedule; each rank reads its own share of the files.

    Args:
        directory: What `save_checkpoint` wrote, under any parallel layout.
        chunks: As `rl.training.optimizer.wrap_chunks` returned them.
        optimizer: Of the same model.
        parallel: This rank's place.

    Raises:
        CheckpointError: The checkpoint is missing or incomplete, or of another model.
    """
    state = read_trainer_state(directory)
    parameters = name_parameters(chunks)
    mapping = _mapping(chunks, parallel)
    for name in STATE_NAMES:
        folder = directory / "optimizer" / name
        for key, tensor in _read(folder, list(parameters), mapping):
            parameter = parameters[key]
            if tensor.shape != parameter.shape:
                raise CheckpointError(
                    f"{folder}: {', '.join(mapping.hf_names(key))}: this rank expects {tuple(parameter.shape)}, "
                    f"got {tuple(tensor.shape)}. The checkpoint is of another model than actor_config.load."
                )
            optimizer.scatter_state(parameter, name, tensor.to(parameter.device))
    optimizer.restore_progress(num_steps=state.num_steps, num_updates=state.num_updates)


def read_trainer_state(directory: Path) -> TrainerState:
    """Read what a checkpoint holds beside tensors.

    Raises:
        CheckpointError: The file is missing, malformed, or of another format.
    """
    path = directory / STATE_FILE
    try:
        content = json.loads(path.read_text())
        state = TrainerState(**content)
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{directory}: not a complete checkpoint, {STATE_FILE} is missing. Resume from an earlier one."
        ) from error
    except (json.JSONDecodeError, TypeError) as error:
        raise CheckpointError(f"{path}: malformed ({error}). Resume from an earlier checkpoint.") from error
    if state.format != _FORMAT:
        raise CheckpointError(
            f"{path}: format must be {_FORMAT}, got {state.format}. Load it with the version that wrote it."
        )
    return state


def _write(folder: Path, tensors: Iterator[tuple[str, Tensor]], parallel: ParallelState) -> dict[str, str]:
    """Write a stage's tensors; the index of all stages together, on rank 0."""
    index: dict[str, str] = {}
    if parallel.tp_rank == 0 and parallel.dp_rank == 0:
        index = write_shards(folder, tensors, stage=parallel.pp_rank)
    else:
        for _ in tensors:  # joining is a collective
            pass
    indices: list[Any] = [None] * parallel.world_size
    dist.all_gather_object(indices, index)
    return {name: file for part in indices for name, file in part.items()}


def _read(folder: Path, names: list[str], mapping: WeightMapping) -> Iterator[tuple[str, Tensor]]:
    """This rank's tensors from whole ones."""
    with ExitStack() as stack:
        try:
            read: Callable[[str], Tensor] = open_tensors(folder, stack)
            yield from map_from_hf(names, read, mapping)
        except ModelError as error:
            raise CheckpointError(f"not a complete checkpoint: {error}") from error


def _mapping(chunks: list[Any], parallel: ParallelState) -> WeightMapping:
    model = chunks[0]
    while not hasattr(model, "hf_config"):
        model = model.module
    return WeightMapping.of(model.hf_config, parallel)
