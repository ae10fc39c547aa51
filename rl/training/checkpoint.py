"""Checkpoints: a Hugging Face model folder that also contains the optimizer's state, under the same tensor names.

    <directory>/config.json, model*.safetensors, tokenizer   a model folder for transformers and vLLM
    <directory>/optimizer/main_param/                        float32 parameters
    <directory>/optimizer/exp_avg/  exp_avg_sq/              Adam's moments, float32
    <directory>/trainer_state.json                           steps of the schedule and of Adam; written last

Tensors are stored whole under Hugging Face names, so a checkpoint loads under any parallel sizes.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import Tensor

from rl.errors import CheckpointError, ModelError
from rl.training.hf_files import INDEX_NAME, SourceFiles, damaged_files, finish_hf_folder, open_tensors, write_shards
from rl.training.hf_weights import WeightMapping, export_hf_weights, map_from_hf, map_to_hf, name_parameters
from rl.training.model import unwrap_chunk
from rl.training.optimizer import PolicyOptimizer
from rl.training.parallel import ParallelState
from rl.training.trainer_state import (
    STATE_NAMES,
    TrainerState,
    folders_of,
    read_trainer_state,
    state_folder,
    write_trainer_state,
)


def save_checkpoint(
    directory: Path, chunks: list[Any], optimizer: PolicyOptimizer, parallel: ParallelState, *, source: SourceFiles
) -> None:
    """Write a checkpoint atomically; a collective over all ranks.

    The first data- and tensor-parallel rank of each pipeline stage writes the stage's files. One tensor is joined at a
    time.

    Args:
        directory: Empty or missing, on a file system that all ranks share.
        chunks: From `rl.training.optimizer.wrap_chunks`.
        optimizer: Optimizer of the same model.
        parallel: This rank's place.
        source: Config and tokenizer files of the model folder that training started from.

    Raises:
        CheckpointError: The directory is not empty.
    """
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise CheckpointError(f"{directory}: the folder is not empty. Name another one; nothing is overwritten.")
    partial = directory.with_name(directory.name + ".writing")
    dist.barrier()
    if parallel.rank == 0:
        shutil.rmtree(partial, ignore_errors=True)
        for name in STATE_NAMES:
            state_folder(partial, name).mkdir(parents=True)
    dist.barrier()
    index = _write(partial, export_hf_weights(chunks, parallel), parallel)
    if parallel.rank == 0:
        finish_hf_folder(partial, index, source=source, dtype=next(chunks[0].parameters()).dtype)
    mapping = _mapping(chunks, parallel)
    for name in STATE_NAMES:
        folder = state_folder(partial, name)
        gathered = ((key, optimizer.gather_state(p, name)) for key, p in name_parameters(chunks).items())
        index = _write(folder, map_to_hf(gathered, mapping), parallel)
        if parallel.rank == 0:
            (folder / INDEX_NAME).write_text(json.dumps({"weight_map": dict(sorted(index.items()))}, indent=2) + "\n")
    if parallel.rank == 0:
        write_trainer_state(partial, TrainerState(optimizer.num_steps, optimizer.num_updates))
        os.replace(partial, directory)
    dist.barrier()


def load_checkpoint(directory: Path, chunks: list[Any], optimizer: PolicyOptimizer, parallel: ParallelState) -> None:
    """Restore model, main parameters, moments and schedule; each rank reads its own tensors.

    Args:
        directory: Written by `save_checkpoint` under any parallel layout.
        chunks: From `rl.training.optimizer.wrap_chunks`.
        optimizer: Optimizer of the same model.
        parallel: This rank's place.

    Raises:
        CheckpointError: The checkpoint is missing or incomplete, any of its files is damaged, or it belongs to another
            model.
    """
    state = read_trainer_state(directory)
    for damage in damaged_files(*folders_of(directory)):
        raise CheckpointError(damage)
    parameters = name_parameters(chunks)
    mapping = _mapping(chunks, parallel)
    for name in STATE_NAMES:
        folder = state_folder(directory, name)
        for key, tensor in _read(folder, list(parameters), mapping):
            parameter = parameters[key]
            if tensor.shape != parameter.shape:
                raise CheckpointError(
                    f"{folder}: {', '.join(mapping.hf_names(key))}: this rank expects {tuple(parameter.shape)}, "
                    f"got {tuple(tensor.shape)}. The checkpoint belongs to another model than actor_config.load."
                )
            optimizer.scatter_state(parameter, name, tensor.to(parameter.device))
    optimizer.restore_progress(num_steps=state.num_steps, num_updates=state.num_updates)


def _write(folder: Path, tensors: Iterator[tuple[str, Tensor]], parallel: ParallelState) -> dict[str, str]:
    """Write this stage's tensors and return the index of all stages."""
    index: dict[str, str] = {}
    if parallel.tp_rank == 0 and parallel.dp_rank == 0:
        index = write_shards(folder, tensors, stage=parallel.pp_rank)
    else:
        for _ in tensors:  # joining each tensor is a collective
            pass
    indices: list[Any] = [None] * parallel.world_size
    dist.all_gather_object(indices, index)
    return {name: file for part in indices for name, file in part.items()}


def _read(folder: Path, names: list[str], mapping: WeightMapping) -> Iterator[tuple[str, Tensor]]:
    """Read whole tensors and yield this rank's shards."""
    with ExitStack() as stack:
        try:
            read: Callable[[str], Tensor] = open_tensors(folder, stack)
            yield from map_from_hf(names, read, mapping)
        except ModelError as error:
            raise CheckpointError(f"not a complete checkpoint: {error}") from error


def _mapping(chunks: list[Any], parallel: ParallelState) -> WeightMapping:
    return WeightMapping.of(unwrap_chunk(chunks[0]).hf_config, parallel)
