"""Hugging Face model folders on disk: reading tensors by name, and writing safetensors with their index."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from rl.errors import CheckpointError, ModelError

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"
_WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", INDEX_NAME)


def open_tensors(folder: Path, stack: ExitStack) -> Callable[[str], Tensor]:
    """Open a folder's safetensors for reading one whole tensor at a time, on the CPU.

    Args:
        folder: With model.safetensors, or several files and their index.
        stack: Closes the files at its end.

    Returns:
        A function from a name to its tensor, which raises ModelError for a name that is not there.

    Raises:
        ModelError: A file is missing or corrupt.
    """
    files: dict[str, str] = {}
    if (folder / INDEX_NAME).is_file():
        files = _read_index(folder / INDEX_NAME)
    paths = sorted(set(files.values())) or [SINGLE_NAME]
    opened = {}
    for path in paths:
        if not (folder / path).is_file():
            raise ModelError(f"{folder}: {path} is missing. Fetch the model again; only safetensors are read.")
        try:
            opened[path] = stack.enter_context(safe_open(folder / path, framework="pt"))
        except SafetensorError as error:
            raise ModelError(f"{folder / path}: not a safetensors file ({error}). Fetch the model again.") from error
        if not files or len(paths) == 1:
            files.update(dict.fromkeys(opened[path].keys(), path))

    def read(name: str) -> Tensor:
        try:
            return opened[files[name]].get_tensor(name)
        except (KeyError, SafetensorError) as error:
            raise ModelError(f"{folder}: the tensor {name} is missing or unreadable. Fetch the model again.") from error

    return read


def save_hf_model(
    folder: Path,
    tensors: Iterable[tuple[str, Tensor]],
    *,
    source_folder: Path,
    dtype: torch.dtype | None = None,
    max_shard_size: int = 4 << 30,
) -> Path:
    """Write a model folder that `from_pretrained` and vLLM read; it appears whole or not at all.

    Args:
        folder: Must not exist.
        tensors: Hugging Face names and whole tensors; at most `max_shard_size` bytes are held at a time.
        source_folder: Its config, tokenizer, chat template and generation settings are copied.
        dtype: Of the files; None keeps each tensor's.
        max_shard_size: Bytes of one file.

    Returns:
        `folder`.

    Raises:
        CheckpointError: `folder` exists already.
    """
    if folder.exists():
        raise CheckpointError(f"{folder}: exists already. Give another folder; nothing is overwritten.")
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    index = write_shards(partial, tensors, dtype=dtype, max_shard_size=max_shard_size)
    finish_hf_folder(partial, index, source_folder=source_folder, dtype=dtype)
    os.replace(partial, folder)
    return folder


def write_shards(
    folder: Path,
    tensors: Iterable[tuple[str, Tensor]],
    *,
    stage: int = 0,
    dtype: torch.dtype | None = None,
    max_shard_size: int = 4 << 30,
) -> dict[str, str]:
    """Write tensors into safetensors files of a folder, `max_shard_size` bytes each.

    Args:
        folder: Exists.
        tensors: Names and whole tensors; copied to the CPU one by one.
        stage: The pipeline stage that writes; part of the file names, so that stages can write side by side.
        dtype: Of the files; None keeps each tensor's.
        max_shard_size: Bytes; a larger tensor stands alone.

    Returns:
        The file of each tensor, for `finish_hf_folder`.
    """
    index: dict[str, str] = {}
    pending: dict[str, Tensor] = {}
    num_bytes = num_files = 0

    def flush() -> None:
        nonlocal num_bytes, num_files
        if pending:
            name = f"model-{stage:03d}-{num_files:05d}.safetensors"
            save_file(pending, folder / name, metadata={"format": "pt"})
            index.update(dict.fromkeys(pending, name))
            pending.clear()
            num_bytes, num_files = 0, num_files + 1

    for name, tensor in tensors:
        # A copy: parts of one parameter share its storage, which safetensors refuses.
        whole = tensor.detach().to("cpu", dtype or tensor.dtype, copy=True, memory_format=torch.contiguous_format)
        if num_bytes + whole.nbytes > max_shard_size:
            flush()
        pending[name] = whole
        num_bytes += whole.nbytes
    flush()
    return index


def finish_hf_folder(
    folder: Path, index: dict[str, str], *, source_folder: Path, dtype: torch.dtype | None = None
) -> None:
    """Write the index of the shards, or rename a single one, and copy everything but weights from the source.

    Args:
        folder: With the shards of all stages.
        index: The file of each tensor, of all stages together.
        source_folder: Of the model that was trained.
        dtype: Recorded in config.json; None leaves what is there.
    """
    files = sorted(set(index.values()))
    if len(files) == 1:
        os.replace(folder / files[0], folder / SINGLE_NAME)
    else:
        total = sum((folder / file).stat().st_size for file in files)
        content = {"metadata": {"total_size": total}, "weight_map": dict(sorted(index.items()))}
        (folder / INDEX_NAME).write_text(json.dumps(content, indent=2) + "\n")
    for source in source_folder.iterdir():
        if source.is_file() and not source.name.endswith(_WEIGHT_SUFFIXES) and not source.name.startswith("."):
            shutil.copyfile(source, folder / source.name)
    if dtype is not None:
        path = folder / "config.json"
        config = json.loads(path.read_text())
        config.pop("torch_dtype", None)
        config["dtype"] = str(dtype).removeprefix("torch.")
        path.write_text(json.dumps(config, indent=2) + "\n")


def _read_index(path: Path) -> dict[str, str]:
    try:
        return dict(json.loads(path.read_text())["weight_map"])
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ModelError(f"{path}: not an index of safetensors ({error!r}). Fetch the model again.") from error
